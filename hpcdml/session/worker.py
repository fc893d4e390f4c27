"""A worker of a session: the loop is the user's, and what follows each step of its optimizer is that of any worker."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from hpcdml.config import TrainConfig
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.mpi.world import World
from hpcdml.parameters import FlatModel
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.worker import Worker
from hpcdml.session.batches import shard
from hpcdml.session.ranks import end_together
from hpcdml.training.blank import BlankState
from hpcdml.training.staging import make_staging
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_job import direct, patience
from hpcdml.training.worker_loop import WorkerLoop


class WorkerPart:
    """Trains by the user's loop. Nothing is sent before ``start``.

    From one step of the optimizer to the next the user's code runs, whatever it does, and hooks and thread poll; all
    that a round does to the model happens within the optimizer's ``step``, after the step proper.

    Attributes:
        worker: this worker, counted from 0.
        workers: how many there are.
        running: whether the loop is to go on.
    """

    def __init__(self, config: TrainConfig, world: World, flat: FlatModel, optimizer: torch.optim.Optimizer) -> None:
        self.config = config
        self.world = world
        self.flat = flat
        self.worker: int | None = world.rank - 1
        self.workers = len(world.workers)
        self.running = False
        staging = make_staging(flat.layout, flat.device, direct(config, world, flat.device))
        self.machine = Worker(world.rank, make_policy(config.policy), self.workers)
        self.channel = WorkerChannel(
            world.comm, world.run_id, staging.pull, staging.push, staging.ready, staging.landed
        )
        self.loop = WorkerLoop(
            self.machine,
            flat,
            self.channel,
            staging,
            flat.model,
            config.run.poll_us * 1e-6,
            config.run.progress,
            None,
            False,
            None,
            StopSignals(),
            None,
            patience(config),
            forget=BlankState(optimizer).restore_unless_finite,
        )
        self._optimizer = optimizer
        self._open = ExitStack()
        self._computing: AbstractContextManager[None] = self.loop.poller.computing()
        self._polled = 0.0
        self._samples = 0
        self._data_seconds = 0.0
        self._losses: list[torch.Tensor] = []

    def start(self, start: float) -> None:
        """From now on steps of the optimizer are local steps; ``start`` as in ``WorkerLoop.begin``."""
        self.loop.begin(start)
        self._open.enter_context(self.loop.poller)
        self._open.callback(self._optimizer.register_step_post_hook(self._after_step).remove)
        self.running = self.loop.proceed()
        self._compute()

    def shard(self, loader: Iterable[Any]) -> Iterable[Any]:
        """This worker's part of a loader."""
        return shard(loader, self.world.rank - 1, self.workers, self.config.run.seed)

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins."""

    def drawn(self, samples: int, seconds: float) -> None:
        """A minibatch is about to be trained on."""
        self._samples += samples
        self._data_seconds += seconds

    def loss(self, loss: torch.Tensor) -> None:
        """The loss of a minibatch of the step under way."""
        self._losses.append(loss.detach())

    def finish(self) -> None:
        """The loop is over: push what is left, wait for all ranks and take over the final parameters."""
        if self.running:
            self._computing.__exit__(None, None, None)
            self.machine.end()
            self.loop.proceed()
            self._leave()
        end_together(self.world, self.flat)

    def _after_step(self, *unused: Any) -> None:
        if not self.running:
            return
        poller = self.loop.poller
        self.loop.pace.keep(poller.poll_beside)
        self._computing.__exit__(None, None, None)
        loss = torch.stack(self._losses).mean() if self._losses else torch.tensor(torch.nan)
        # A loop over something else than minibatches of the session counts its steps.
        samples, waited = self._samples or 1, self._data_seconds
        self._losses, self._samples, self._data_seconds = [], 0, 0.0
        if self.loop.stepped(loss, samples, waited, poller.seconds - self._polled):
            self._compute()
        else:
            self._leave()

    def _compute(self) -> None:
        self._polled = self.loop.poller.seconds
        self._computing.__enter__()

    def _leave(self) -> None:
        self.running = False
        self._open.close()
        self.loop.finish()
        self.channel.close()
