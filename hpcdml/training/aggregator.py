"""The server's arithmetic: the weighted sum of a round, chunk by chunk, applied to the global parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpcdml.parameters import Layout, Narrowed, WireVector
from hpcdml.parameters.layout import Kind
from hpcdml.training.guard import finite
from hpcdml.training.outer import OuterOptimizer
from hpcdml.training.state import to_tensor


class Aggregator:
    """Holds the global parameters, the sums of the round under way and the outer optimizer.

    A sum takes memory from its first term to its ``close``, and the memory is used again at once, while it is in the
    processor's cache: one model at most, where a worker is far ahead, and a few chunks as a rule.

    Args:
        layout: layout in which updates and global parameters travel; the parameters are held in its ``full()``.
        outer: the outer optimizer.

    Attributes:
        x: the global parameters.
        narrowed: what travels of them, where that is not ``x`` itself.
    """

    def __init__(self, layout: Layout, outer: OuterOptimizer) -> None:
        self.layout = layout
        self.outer = outer
        self.x = WireVector(layout.full())
        self.narrowed = Narrowed(self.x, layout) if layout.narrow else None
        self._sums: dict[int, torch.Tensor] = {}
        self._unused: dict[tuple[int, torch.dtype], list[torch.Tensor]] = {}
        self._outgoing: list[np.ndarray] = []
        self._steps = [0] * len(layout.chunks)
        self._value = [layout.segments[c.segment].kind is Kind.VALUE for c in layout.chunks]

    def add(self, chunk: int, terms: Sequence[tuple[torch.Tensor, float]], first: bool) -> None:
        """Add ``weight * update`` of each term, in this order, to the sum of a chunk.

        The sum is begun if the terms are the ``first`` ones, or there is none. The bits of the sum do not depend on how
        its terms are spread over calls.
        """
        if not terms:
            return
        begins = first or chunk not in self._sums
        total = self._total(chunk)
        for update, weight in terms[self._begin(total, terms) :] if begins else terms:
            total.add_(update, alpha=weight)

    @staticmethod
    def _begin(total: torch.Tensor, terms: Sequence[tuple[torch.Tensor, float]]) -> int:
        """Begin a sum with the first terms, and return with how many."""
        update, weight = terms[0]
        if len(terms) > 1 and weight == 1.0 and update.dtype == terms[1][0].dtype == total.dtype:
            # In one pass, where copying and adding are two. Narrow values would be added as such.
            torch.add(update, terms[1][0], alpha=terms[1][1], out=total)
            return 2
        total.copy_(update)
        if weight != 1.0:
            total.mul_(weight)
        return 1

    def close(self, chunk: int, weight: float, share: float, alone: torch.Tensor | None = None) -> bool:
        """Apply the sum of a chunk, whose weights sum to ``weight``, to the global parameters.

        Buffers move towards the mean of the workers' values by ``share``, the part of the workers that is in the round.

        Args:
            alone: the only term of the sum, in place of one formed by ``add``, with weight 1; it may be overwritten.

        Returns:
            Whether the sum was finite; otherwise it is dropped, and the global parameters stay as they are.
        """
        x = self.x.chunks[chunk]
        if alone is not None:
            weight = 1.0
        if alone is None:
            total = self._total(chunk)
        elif alone.dtype == x.dtype:
            total = alone
        else:
            total = self._total(chunk).copy_(alone)
        if not finite(total):
            self._free(chunk)
            return False
        if not self._value[chunk]:
            self._steps[chunk] += 1
            self.outer.apply(chunk, self._steps[chunk], x, total, weight)
        elif share == 1.0:
            torch.div(total, weight, out=x)
        else:
            x.lerp_(total.div_(weight), share)
        self._free(chunk)
        if self.narrowed is not None:
            self.narrowed.encode(chunk)
        return True

    def restore(self, state: dict[str, Any], steps: int) -> None:
        """Go on from a checkpoint: the vectors of the outer optimizer and of the narrowed values, after so many steps.

        ``x`` has been set.
        """
        self._steps = [steps] * len(self._steps)
        vectors = [(self.outer.state[name], arrays) for name, arrays in state["outer"].items()]
        vectors += [(getattr(self.narrowed, name), arrays) for name, arrays in state["narrowed"].items()]
        for vector, arrays in vectors:
            for segment, array in zip(vector.segments, arrays, strict=True):
                segment.copy_(to_tensor(array))

    def outgoing(self, chunk: int) -> np.ndarray:
        """The bytes (uint8) of a chunk that are sent to the workers, valid until the chunk's next ``close``."""
        if not self._outgoing:
            out = self.x if self.narrowed is None else self.narrowed.out
            self._outgoing = [out.chunk_bytes(index) for index in range(len(self.layout.chunks))]
        return self._outgoing[chunk]

    def _total(self, chunk: int) -> torch.Tensor:
        if chunk not in self._sums:
            x = self.x.chunks[chunk]
            unused = self._unused.get((x.numel(), x.dtype))
            self._sums[chunk] = unused.pop() if unused else torch.empty_like(x)
        return self._sums[chunk]

    def _free(self, chunk: int) -> None:
        total = self._sums.pop(chunk, None)
        if total is not None:
            self._unused.setdefault((total.numel(), total.dtype), []).append(total)
