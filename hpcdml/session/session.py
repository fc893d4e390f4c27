"""``hpcdml.Session``: a training loop of the user's own as a worker of the parameter server."""

from __future__ import annotations

import atexit
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hpcdml.config import TrainConfig
from hpcdml.errors import UsageError
from hpcdml.launcher import launcher_rank
from hpcdml.session.alone import Alone
from hpcdml.session.batches import Batches
from hpcdml.session.options import configure
from hpcdml.session.places import Places


class Session:
    """Trains the model of one's own loop together with the other ranks of the MPI job.

    Started by ``python`` the loop runs as it is, in one process without MPI. Started by ``mpirun -n N`` rank 0 is the
    parameter server and every other rank a worker: steps of the optimizer are local steps, and what the policy says
    happens within ``optimizer.step()``. Rank 0 gets no minibatches: it serves within its first loop over them, until
    every worker's loop has ended. After the loop over ``epochs``, or else after ``finish``, every rank's model holds
    the final global parameters.

    Use it as a context manager, or call ``start`` before the loop. An exception on one rank ends all ranks with one
    line and status 1; a worker that breaks out of its loop leaves, and the others go on.

    Parameters stay the same objects, and so do the names and shapes of ``state_dict``. Whatever else the loop does,
    such as schedulers, clipping, accumulation, autocast and a ``GradScaler``, it goes on doing; a step that the scaler
    skips is none. A session writes ``run.h5`` and checkpoints as ``hpcdml train`` does. Without MPI nothing is
    written.

    With ``resume="auto"`` the script, started again after it was killed or ended by a signal, goes on from the newest
    valid checkpoint: model, optimizer, what is in ``stateful``, random numbers, the epoch of ``epochs``, and the place
    in the data, which ``batches`` goes on from. A signal (``signals``, by default SIGTERM, SIGINT and SIGUSR1) on any
    rank has a checkpoint written; then every rank's loop ends, and ``SystemExit`` with status 75 is raised after it.

    Args:
        model: on the device where it is trained. All ranks begin with rank 0's values.
        optimizer: the one optimizer of the model, which may have several groups.
        evaluate: called on rank 0 with the model, beside the serving, every ``eval_seconds``; returns the accuracy, or
            a mapping with ``accuracy``, ``loss`` or both, for the record. Not called without MPI.
        stateful: what else of the loop a checkpoint is to have, by name: a scheduler, a ``GradScaler``, anything with
            ``state_dict`` and ``load_state_dict``.
        options: as in ``hpcdml train --help``, with underscores: ``policy``, ``compensation``, ``local_steps``,
            ``staleness``, ``max_local_steps``, ``weighting``, ``outer_optimizer``, ``outer_lr``, ``outer_momentum``,
            ``max_update_norm``, ``wire_dtype``, ``epochs``, ``max_samples``, ``max_seconds``, ``output``,
            ``overwrite``, ``seed``, ``eval_seconds``, ``threads``, ``bind``, ``chunk_kib``, ``poll_us``, ``progress``,
            ``cuda_aware``, ``worker_timeout``, ``min_workers``, ``checkpoint_seconds``, ``checkpoint_rounds``,
            ``checkpoint_samples``, ``keep_checkpoints``, ``keep_every``, ``resume``, ``signals``, ``debug``. With
            ``epochs``, ``max_samples`` or ``max_seconds`` the server stops all loops when all workers together have
            done so much; without, every loop ends by itself.

    Raises:
        UsageError: an argument is wrong. In an MPI job ``__enter__`` says so in one line of one rank, and raises
            ``SystemExit`` with status 2 on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
        stateful: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.evaluate = evaluate
        self.stateful = dict(stateful or {})
        self.options = options
        self._parallel = launcher_rank() is not None
        self._part: Any = None
        self._meeting: Any = None
        self._finished = False
        self._preempted = False
        self._places = Places()
        self._known: dict[int, tuple[Iterable[Any], Batches]] = {}
        if not self._parallel:
            self._configure()

    def __enter__(self) -> Session:
        if self._parallel:
            parts = importlib.import_module("hpcdml.session.parts")
            self._part, self._meeting = parts.take_part(
                self._configure,
                self.model,
                self.optimizer,
                self.evaluate,
                self.stateful,
                self._places,
                bool(self.options.get("debug")),
            )
        else:
            self._part = Alone(self._configure(), self.optimizer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._preempted:
            return
        if error is not None and not (isinstance(error, SystemExit) and not error.code):
            if self._meeting is not None:
                self._meeting.fail(error)
            self._part.fail(error)
            return
        self.finish()

    def start(self) -> Session:
        """Begin, without a ``with`` block: the session ends after the loop over ``epochs``, or with the program."""
        self.__enter__()
        if self._meeting is not None:
            before = sys.excepthook

            def fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
                if self._finished:
                    before(kind, error, trace)
                else:
                    self._meeting.fail(error)

            sys.excepthook = fail
            atexit.register(self._finish_at_exit)
        return self

    def epochs(self, count: int | None = None) -> Iterator[int]:
        """Count epochs of this process's loop, from 0, until there are ``count``, or the server says stop.

        In a run that goes on the first one is that in which the checkpoint was made.

        Args:
            count: passes over this worker's part of the data; None: until the session's bounds are reached.

        Raises:
            UsageError: neither is there.
        """
        stop = self._configure().stop
        if count is None and stop.epochs is stop.max_samples is stop.max_seconds is None:
            raise UsageError("session.epochs(): needs a number, or Session(epochs=, max_samples= or max_seconds=)")
        places = self._places
        while count is None or places.epoch < count:
            yield places.epoch
            places.epoch += 1
            # The server has served within its first epoch.
            if not self._part.running:
                break
        self.finish()

    def batches(self, loader: Iterable[Any], shard: bool = True) -> Batches:
        """This process's minibatches: iterate what is returned once for every epoch; ``len`` tells how many there are.

        Args:
            loader: a ``DataLoader``, of whose data every worker gets its part, in minibatches of the same size; of
                anything else every worker gets all.
            shard: whether to divide the data; False: every worker's loader gives its own already.

        Raises:
            UsageError: the data cannot be divided, or ``Session(epochs=...)`` cannot be counted.
        """
        known = self._known.get(id(loader))
        if known is not None:
            return known[1]
        divided = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
        samples = _samples(loader) if divided and shard and isinstance(loader, DataLoader) else None
        if samples is None and self._configure().stop.epochs is not None:
            raise UsageError("Session(epochs=...): cannot be counted, as the loader is not divided; take max_samples")
        batches = Batches(self._part.shard(loader) if shard else loader, self._part, samples, self._places)
        self._known[id(loader)] = loader, batches
        return batches

    def loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Tell the loss of a minibatch for the record, and return it. A record without losses is as good otherwise."""
        self._part.loss(loss)
        return loss

    def drawn(self, samples: int) -> None:
        """Tell that a minibatch of so many samples is trained on, which did not come from ``batches``."""
        self._part.drawn(samples, 0.0)

    def finish(self) -> None:
        """End this process's part; afterwards the model holds the final parameters.

        Called by itself after the loop over ``epochs``, at the end of a ``with`` block and at the end of the program.
        It waits for all ranks.

        Raises:
            SystemExit: with status 75, where a signal has ended the run after a checkpoint.
        """
        if not self._finished:
            self._finished = True
            try:
                self._part.finish()
            except SystemExit:
                self._preempted = True
                raise

    def _finish_at_exit(self) -> None:
        try:
            self.finish()
        except SystemExit as error:
            # Raised at the end of the program it would not be the program's status.
            importlib.import_module("hpcdml.mpi.world").end_process(error.code)

    @property
    def stopped(self) -> bool:
        """Whether there is nothing more to train: the run has ended, or this is the server."""
        return not self._part.running

    @property
    def is_server(self) -> bool:
        """Whether this process is the parameter server, which trains nothing."""
        return self._part.worker is None

    @property
    def is_first(self) -> bool:
        """Whether this is the one of the processes that train which is to print and save."""
        return bool(self._part.worker == 0)

    @property
    def worker(self) -> int | None:
        """Number of this worker, from 0; None on the server."""
        worker: int | None = self._part.worker
        return worker

    @property
    def workers(self) -> int:
        """How many processes train."""
        return int(self._part.workers)

    def _configure(self) -> TrainConfig:
        _check(self.model, self.optimizer)
        for name, part in self.stateful.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                kind = type(part).__name__
                raise UsageError(f"Session(stateful=...): {name}: a {kind} has no state_dict and load_state_dict")
        return configure(self.options)


def device() -> torch.device:
    """The device for this process's model: in an MPI job every worker of a host has a GPU of its own in turn, if there
    are any, and the server the CPU.
    """
    if launcher_rank() is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: torch.device = importlib.import_module("hpcdml.session.ranks").own_device()
    return found


def _samples(loader: DataLoader[Any]) -> int:
    own = loader.batch_sampler is None or type(loader.batch_sampler) is torch.utils.data.BatchSampler
    return len(loader.sampler) if own else len(loader.dataset)  # type: ignore[arg-type]


def _check(model: object, optimizer: object) -> None:
    """Make sure that a model and its one optimizer were given.

    Raises:
        UsageError: they were not.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"Session(model): is a {type(model).__name__}; must be an nn.Module")
    if isinstance(optimizer, (list, tuple, dict)):
        raise UsageError(
            f"Session(optimizer): {len(optimizer)} optimizers; must be one, as each of its steps is a local step; "
            "parameters that need other settings can be groups of it"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"Session(optimizer): is a {type(optimizer).__name__}; must be a torch.optim.Optimizer")
    own = {id(p) for p in model.parameters()}
    given = [p for group in optimizer.param_groups for p in group["params"]]
    strange = sum(id(p) not in own for p in given)
    if strange:
        raise UsageError(
            f"Session(optimizer): {strange} of its {len(given)} parameters are not the model's, and would not be shared"
        )
