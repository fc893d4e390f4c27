"""A session whose run had ended before: there is nothing to train, and every rank's model holds the result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hpcdml.mpi.world import World
from hpcdml.session.batches import shard


class OverPart:
    """Trains nothing.

    Attributes:
        worker: this worker, counted from 0; None on the server.
        workers: how many there are.
        running: False.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.worker = None if world.is_server else world.rank - 1
        self.workers = len(world.workers)
        self.running = False
        self._seed = seed

    def start(self, start: float) -> None:
        """Nothing begins."""

    def shard(self, loader: Iterable[Any]) -> Iterable[Any]:
        """A worker's part of a loader, for its length."""
        return shard(loader, self.worker or 0, self.workers, self._seed)

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins, of no minibatches."""

    def drawn(self, samples: int, seconds: float) -> None:
        """Whatever the loop does by itself is no part of the run."""

    def passed(self) -> None:
        """Nothing to do."""

    def loss(self, loss: torch.Tensor) -> None:
        """Recorded nowhere."""

    def finish(self) -> None:
        """All had ended."""

    def fail(self, error: BaseException) -> None:
        """The loop has raised."""
