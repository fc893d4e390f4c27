"""Copies of a peer's parameters, taken during training and evaluated after it."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from hpcdml.training.data import TaskData
from hpcdml.training.data.losses import Loss
from hpcdml.training.evaluation import evaluate

MOST_BYTES = 2 << 30
"""Most memory for copies; beyond it every second one is dropped and they are taken half as often."""

Point = tuple[float, int, float | None, float | None]
"""Seconds, samples of all workers together, accuracy (None in a regression) and loss on the held-out data."""


class Copies:
    """Copies of the parameters and buffers of a model.

    Args:
        seconds: least time between two copies.
    """

    def __init__(self, model: nn.Module, seconds: float) -> None:
        self.spent = 0.0
        self._taken: list[tuple[float, int, list[torch.Tensor]]] = []
        self._model = model
        self._interval = seconds
        self._next = seconds
        size = sum(t.numel() * t.element_size() for t in self._tensors())
        self._most = max(4, MOST_BYTES // max(1, size))

    def consider(self, seconds: float, samples: int) -> None:
        """Take a copy if one is due; the time that it takes adds to ``spent``."""
        if seconds < self._next:
            return
        begin = time.perf_counter()
        if len(self._taken) >= self._most:
            del self._taken[::2]
            self._interval = max(2.0 * self._interval, 2.0 * seconds / self._most)
        self.take(seconds, samples)
        self._next = seconds + self._interval
        self.spent += time.perf_counter() - begin

    def take(self, seconds: float, samples: int) -> None:
        """Take a copy of the parameters as they are now."""
        self._taken.append((seconds, samples, [t.detach().clone() for t in self._tensors()]))

    def evaluate(self, criterion: Loss, data: TaskData) -> list[Point]:
        """The scores of every copy in turn; the model is left with the last one."""
        curve: list[Point] = []
        for seconds, samples, tensors in self._taken:
            with torch.no_grad():
                for mine, copy in zip(self._tensors(), tensors, strict=True):
                    mine.copy_(copy)
            score = evaluate(self._model, criterion, data)
            curve.append((seconds, samples, finite(score.accuracy), finite(score.loss)))
        return curve

    def _tensors(self) -> list[torch.Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


def finite(value: float) -> float | None:
    """The value, or None where JSON could not say it."""
    return value if math.isfinite(value) else None
