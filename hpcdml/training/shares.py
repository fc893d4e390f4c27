"""The samples of a worker that is out of the run, shared by the others."""

from __future__ import annotations

import torch

from hpcdml.config import TrainConfig
from hpcdml.training.data import TaskData
from hpcdml.training.data.sampler import place_at
from hpcdml.training.local_step import batches
from hpcdml.training.step_state import StepState


class Shares:
    """Gives this worker its share of the samples when another one leaves or comes back.

    All divide the samples anew among those that are there, and go on in the same pass at the same share of it. What of
    this pass a lost worker had still to see, the others see a part of, and all of it from the next pass on. Where
    every worker has data of its own, there is nothing to share.

    Args:
        config: of the run.
        data: this worker's data.
        state: holds the worker's sampler and step.
        device: that of the model.
        rank: of this worker.
        workers: number of workers at the start.
    """

    def __init__(
        self, config: TrainConfig, data: TaskData, state: StepState, device: torch.device, rank: int, workers: int
    ) -> None:
        self.config = config
        self.data = data
        self.state = state
        self.device = device
        self.rank = rank
        self.live = list(range(1, workers + 1))

    def change(self, rank: int, present: bool) -> None:
        """The worker of that rank is out of the run, or is present again."""
        if rank == self.rank or (rank in self.live) == present:
            return
        if present:
            self.live = sorted([*self.live, rank])
        else:
            self.live.remove(rank)
        if self.data.sharded:
            return
        options, old = self.config.data, self.state.sampler
        weights = [options.shard_weights[r - 1] for r in self.live] if options.shard_weights else ()
        seed, mine = self.config.run.seed, self.live.index(self.rank)
        new = self.data.train.sampler(mine, len(self.live), options.batch_size, seed, weights)
        number, position = old.state
        new.restore(place_at(new, number, position / old.size))
        self.state.sampler = new
        self.state.step.batches = batches(self.data.train.feed(new), self.device)
