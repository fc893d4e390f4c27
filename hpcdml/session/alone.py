"""A session in one process that no MPI launcher has started: the user's loop as it is, up to the session's bounds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import torch

from hpcdml.config import TrainConfig


class Alone:
    """Trains, with nobody to exchange anything with; needs no MPI and writes nothing.

    Attributes:
        worker: this worker, counted from 0.
        workers: how many there are.
        running: whether the loop is to go on.
    """

    def __init__(self, config: TrainConfig, optimizer: torch.optim.Optimizer) -> None:
        self.config = config
        self.worker: int | None = 0
        self.workers = 1
        self.running = True
        self._samples = 0
        self._bound: float = config.stop.max_samples or math.inf
        self._end = time.perf_counter() + (config.stop.max_seconds or math.inf)
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def shard(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The loader as it is."""
        return loader

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins."""
        if self.config.stop.epochs is not None and epoch_samples is not None:
            self._bound = min(self._bound, math.ceil(self.config.stop.epochs * epoch_samples))

    def drawn(self, samples: int, seconds: float) -> None:
        """A minibatch is about to be trained on."""
        self._samples += samples

    def passed(self) -> None:
        """The loop's body has been gone through."""

    def loss(self, loss: torch.Tensor) -> None:
        """The loss of a minibatch, which is recorded nowhere."""

    def finish(self) -> None:
        """The loop is over."""
        self.running = False
        self._hook.remove()

    def fail(self, error: BaseException) -> None:
        """The loop has raised."""
        self._hook.remove()

    def _after_step(self, *unused: Any) -> None:
        if self._samples >= self._bound or time.perf_counter() >= self._end:
            self.running = False
