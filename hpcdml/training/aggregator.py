"""The server's arithmetic: the weighted sum of a round, chunk by chunk, applied to the global parameters."""

from __future__ import annotations

import torch

from hpcdml.parameters import Layout, WireVector
from hpcdml.parameters.layout import Kind
from hpcdml.training.outer import OuterOptimizer


class Aggregator:
    """Holds the global parameters, the sum of the round under way and the outer optimizer.

    Args:
        layout: layout of the vector.
        outer: the outer optimizer.
    """

    def __init__(self, layout: Layout, outer: OuterOptimizer) -> None:
        self.layout = layout
        self.outer = outer
        self.x = WireVector(layout)
        self._sum: WireVector | None = None
        self._steps = [0] * len(layout.chunks)
        self._value = [layout.segments[c.segment].kind is Kind.VALUE for c in layout.chunks]

    def add(self, chunk: int, update: torch.Tensor, weight: float, first: bool) -> None:
        """Add ``weight * update`` to the sum of a chunk, or begin the sum with it."""
        total = self._total(chunk)
        if not first:
            total.add_(update, alpha=weight)
        elif weight == 1.0:
            total.copy_(update)
        else:
            torch.mul(update, weight, out=total)

    def close(self, chunk: int, weight: float, share: float, alone: torch.Tensor | None = None) -> None:
        """Apply the sum of a chunk, whose weights sum to ``weight``, to the global parameters.

        Buffers move towards the mean of the workers' values by ``share``, the part of the workers that is in the round.

        Args:
            alone: the only term of the sum, in place of one formed by ``add``, with weight 1; it may be overwritten.
        """
        total, weight = (self._total(chunk), weight) if alone is None else (alone, 1.0)
        x = self.x.chunks[chunk]
        if not self._value[chunk]:
            self._steps[chunk] += 1
            self.outer.apply(chunk, self._steps[chunk], x, total, weight)
        elif share == 1.0:
            torch.div(total, weight, out=x)
        else:
            x.lerp_(total.div_(weight), share)

    def _total(self, chunk: int) -> torch.Tensor:
        if self._sum is None:
            self._sum = WireVector(self.layout)
        return self._sum.chunks[chunk]
