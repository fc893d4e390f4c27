"""The server of a session: rank 0 serves within its first loop over minibatches, of which it gets none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hpcdml.config import TrainConfig
from hpcdml.errors import UsageError
from hpcdml.mpi.world import World
from hpcdml.parameters import FlatModel
from hpcdml.session.batches import shard
from hpcdml.session.ranks import end_together
from hpcdml.training.bounds import sample_bound
from hpcdml.training.evaluation import Score
from hpcdml.training.resumption import Resumption
from hpcdml.training.server_job import ServerJob
from hpcdml.training.stop_signals import StopSignals

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]


class OwnModel:
    """A user's model as a server job needs it.

    Attributes:
        epoch_samples: training samples of all workers in one epoch; None until the first loop tells.
    """

    def __init__(self, flat: FlatModel, evaluation: Evaluate | None) -> None:
        self.flat = flat
        self.epoch_samples: int | None = None
        self.evaluation = evaluation

    def evaluate(self) -> Score | None:
        """What the user's function gives for the model as it is now: an accuracy, or a mapping with it and the loss."""
        if self.evaluation is None:
            return None
        with torch.no_grad():
            score = self.evaluation(self.flat.model.eval())
        values = score if isinstance(score, Mapping) else {"accuracy": score}
        if unknown := set(values) - {"accuracy", "loss"}:
            raise UsageError(f"Session(evaluate=...): returned {sorted(unknown)}; must be accuracy, loss or both")
        return Score(float(values.get("accuracy", math.nan)), float(values.get("loss", math.nan)))


class ServerPart:
    """Serves. The constructor makes ``run.h5``; nothing is sent before ``start``.

    Args:
        about: what the record says of the ranks.
        home: the device where the user has the model, to which it returns at the end.
        resumption: where the run goes on from; None: it is a new one.
        signals: which tell that the run is to end.

    Attributes:
        worker: None, as the server trains nothing.
        workers: how many there are.
        running: False: there are no minibatches for the server.

    Raises:
        UsageError, MachineError: the output folder cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        flat: FlatModel,
        optimizer: torch.optim.Optimizer,
        evaluation: Evaluate | None,
        about: Mapping[str, str],
        home: torch.device,
        resumption: Resumption | None,
        signals: StopSignals,
    ) -> None:
        self.config = config
        self.world = world
        self.worker: int | None = None
        self.workers = len(world.workers)
        self.running = False
        self.model = OwnModel(flat, evaluation)
        self.job = ServerJob(config, world, self.model, about, resumption, None, signals)
        self._optimizer = optimizer
        self._home = home
        self._start = 0.0
        self._served = False
        self._status = 0

    def start(self, start: float) -> None:
        """``start`` is the ``perf_counter`` time at which this job's training begins."""
        resumption = self.job.resumption
        self._start = start - (resumption.seconds if resumption is not None else 0.0)
        self._hook = self._optimizer.register_step_pre_hook(_refuse)

    def shard(self, loader: Iterable[Any]) -> Iterable[Any]:
        """The first worker's part of a loader, for its length."""
        return shard(loader, 0, self.workers, self.config.run.seed, tell=True)

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins: serve until all workers have ended."""
        if self._served:
            return
        self._served = True
        self.model.epoch_samples = epoch_samples
        self.job.machine.max_samples = sample_bound(self.config.stop, epoch_samples)[0]
        if not self.config.stop.epochs and not self.config.stop.max_samples:
            self.job.machine.max_samples = None  # the workers' own loops end the run
        model, threads = self.model.flat.model, torch.get_num_threads()
        training = model.training
        self._status = self.job.run(self._start)
        model.train(training)
        torch.set_num_threads(threads)

    def drawn(self, samples: int, seconds: float) -> None:
        """Never called, as there are no minibatches."""

    def passed(self) -> None:
        """Never called."""

    def loss(self, loss: torch.Tensor) -> None:
        """A loss of the server's own is no part of the run."""

    def finish(self) -> None:
        """The loop is over: serve, if there was none, and leave the final parameters in every rank's model."""
        self.opened(None)
        self._hook.remove()
        self.job.signals.unwatch()
        machine = self.job.machine
        end_together(self.world, self.model.flat, self._status, machine.present, machine.silent)
        self.model.flat.model.to(self._home)


def _refuse(*unused: Any) -> None:
    raise UsageError(
        "a step of the optimizer on rank 0, which is the server and must not train: take the minibatches from "
        "session.batches(...), which gives it none"
    )
