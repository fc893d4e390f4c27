"""A worker of a session: the loop is the user's, and what follows each step of its optimizer is that of any worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from hpcdml.session.loop_state import LoopState, Stateful
from hpcdml.session.places import Places
from hpcdml.session.ranks import end_together
from hpcdml.training.blank import BlankState
from hpcdml.training.random_state import set_random_state
from hpcdml.training.staging import make_staging
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_job import direct, patience
from hpcdml.training.worker_loop import WorkerLoop
from hpcdml.training.worker_state import WorkerState


class WorkerPart:
    """Trains by the user's loop. Nothing is sent before ``start``.

    Args:
        part: what ``give_states`` gave; None: the run is a new one.
        stateful: what the loop has beside model and optimizer, by name.
        places: where it is in its data.
        signals: which tell that the run is to end.

    From one step of the optimizer to the next the user's code runs, whatever it does, and hooks and thread poll; all
    that a round does to the model happens within the optimizer's ``step``, after the step proper.

    Attributes:
        worker: this worker, counted from 0.
        workers: how many there are.
        running: whether the loop is to go on.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        flat: FlatModel,
        optimizer: torch.optim.Optimizer,
        part: dict[str, Any] | None,
        stateful: Mapping[str, Stateful],
        places: Places,
        signals: StopSignals,
    ) -> None:
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
        blank = BlankState(optimizer)
        self.state = WorkerState(
            self.machine, flat, self.channel, staging, LoopState(optimizer, stateful, places, flat.device)
        )
        self._seconds = 0.0
        if part is not None:
            self.state.go_on(part)
            self._seconds = float(part["seconds"])
            if part["own"]:
                places.on_ready = lambda: set_random_state(part["state"]["random"], flat.device)
        self.loop = WorkerLoop(
            self.machine,
            flat,
            self.channel,
            staging,
            flat.model,
            config.run.poll_us * 1e-6,
            config.run.progress,
            self.state,
            config.run.checkpoints,
            None,
            signals,
            None,
            patience(config),
            forget=blank.restore_unless_finite,
        )
        self._optimizer = optimizer
        self._signals = signals
        self._leaving = False
        self._open = ExitStack()
        self._computing: AbstractContextManager[None] = self.loop.poller.computing()
        self._polled = 0.0
        self._samples = 0
        self._data_seconds = 0.0
        self._losses: list[torch.Tensor] = []

    def start(self, start: float) -> None:
        """From now on steps of the optimizer are local steps; ``start`` as in ``ServerPart.start``."""
        self.loop.begin(start - self._seconds)
        self._open.enter_context(self.loop.poller)
        self._open.callback(self._optimizer.register_step_pre_hook(lambda *unused: self.passed()).remove)
        self._open.callback(self._optimizer.register_step_post_hook(self._after_step).remove)
        self.running = self.loop.proceed()
        if self.running:
            self._compute()
        else:  # a run that goes on may have reached its end
            self._stop()

    def shard(self, loader: Iterable[Any]) -> Iterable[Any]:
        """This worker's part of a loader."""
        return shard(loader, self.world.rank - 1, self.workers, self.config.run.seed)

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins."""

    def drawn(self, samples: int, seconds: float) -> None:
        """A minibatch is about to be trained on."""
        self.passed()
        self._samples += samples
        self._data_seconds += seconds

    def passed(self) -> None:
        """The loop's body has been gone through: what it has done after the step is as a checkpoint is to have it."""
        self.loop.passed()
        if self._leaving:
            self._leave()

    def loss(self, loss: torch.Tensor) -> None:
        """The loss of a minibatch of the step under way."""
        self._losses.append(loss.detach())

    def finish(self) -> None:
        """The loop is over: push what is left, wait for all ranks and take over the final parameters."""
        if self.running:
            self._computing.__exit__(None, None, None)
            self.machine.end()
            self.loop.proceed()
            self._stop()
        self.passed()
        self._signals.unwatch()
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
            return
        self._stop()
        if self.loop.holds:
            self.loop.push_out()
        else:
            self._leave()

    def _compute(self) -> None:
        self._polled = self.loop.poller.seconds
        self._computing.__enter__()

    def _stop(self) -> None:
        self.running = False
        self._leaving = True
        self._open.close()

    def _leave(self) -> None:
        self._leaving = False
        self.loop.finish()
        self.channel.close()
