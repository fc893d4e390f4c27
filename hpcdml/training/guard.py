"""Keeps chunks that are not finite out of the global parameters, where their push's header promised that it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hpcdml.protocol.rounds import Round


def finite(values: torch.Tensor) -> bool:
    """Whether all values are finite."""
    # The sum of float32 is quick, and finite unless one of the values is not, or together they overflow.
    total = torch.sum(values, dtype=torch.float32 if values.element_size() < 4 else None)
    return math.isfinite(float(total)) or bool(torch.isfinite(values).all())


class Guard:
    """Decides what of a round's chunks is left out; only a fault on the way from a worker can give it any work.

    A sum is looked at once, when it is closed: that costs the least. As it does not tell who spoiled it, the first one
    that is spoiled is left out whole, and from then on every worker's chunk is looked at before it is added.

    Args:
        tell: is told of the first chunk that is left out in a round: the worker's rank, 0 if it is not known, and what
            happened.

    Attributes:
        left_out: chunks that were left out.
    """

    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self.tell = tell
        self.left_out = 0
        self._wary = False
        self._told: Round | None = None
        self._spoiled: dict[tuple[Round, int], set[int]] = {}

    def admits(self, round_: Round, worker: int, chunk: int, update: torch.Tensor) -> bool:
        """Whether a worker's chunk may be added to the sum."""
        if not self._wary or finite(update):
            return True
        self._spoiled.setdefault((round_, chunk), set()).add(worker)
        self._leave_out(round_, chunk, (worker,))
        return False

    def contributors(self, round_: Round, chunk: int, contributors: tuple[int, ...]) -> tuple[int, ...]:
        """Those whose chunks are in the sum, which is closed now."""
        if not self._spoiled:
            return contributors
        spoiled = self._spoiled.pop((round_, chunk), set())
        return tuple(worker for worker in contributors if worker not in spoiled)

    def spoiled(self, round_: Round, chunk: int, contributors: tuple[int, ...]) -> None:
        """The sum of a chunk is not finite, and was left out."""
        self._wary = True
        self._leave_out(round_, chunk, contributors)

    def _leave_out(self, round_: Round, chunk: int, workers: tuple[int, ...]) -> None:
        self.left_out += 1
        if self._told is not round_:
            self._told = round_
            who = "of the update" if len(workers) == 1 else f"of the updates of workers {', '.join(map(str, workers))}"
            text = f"chunk {chunk} {who} is not finite, though its push said so; version {round_.version} is without it"
            self.tell(workers[0] if len(workers) == 1 else 0, text)
