"""How the ranks of a session come together, and how they part."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn, TypeVar

import torch
from torch import nn

from hpcdml.config import StopOptions, TrainConfig
from hpcdml.errors import PREEMPTED, HpcdmlError, MachineError, UsageError
from hpcdml.mpi import faults
from hpcdml.mpi.clocks import common_zero
from hpcdml.mpi.world import (
    World,
    abort,
    failure,
    finish,
    join_world,
    others_go_on,
    same_everywhere,
    send_final,
)
from hpcdml.parameters import FlatModel
from hpcdml.session.options import in_python
from hpcdml.training.devices import pick_device, set_threads
from hpcdml.training.resumption import OWN_LOOP, Resumption, Start, begin
from hpcdml.training.setup import WIRE_DTYPES, AgreedFailure, compare_options, need_workers, together

T = TypeVar("T")


class Preempted(SystemExit):
    """The run has been ended by a signal after a checkpoint: what the script does after its loop is for later."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Meeting:
    """The ranks of a session before it starts.

    Args:
        configure: makes and checks the configuration.
        debug: whether a failure shows its traceback.

    Attributes:
        rescuer: is called when the server has died, and tells what was saved.
    """

    def __init__(self, configure: Callable[[], TrainConfig], debug: bool) -> None:
        self.debug = debug
        config = self._agreed(configure)
        self.world = join_world()
        self.config = config
        self.rescuer: Callable[[], str] = str
        self._agreed(self._compare)

    def flatten(self, model: nn.Module) -> FlatModel:
        """The model's parameters and buffers, of the same layout on every rank; the server's go to the CPU.

        Raises:
            SystemExit: something is wrong on any rank, and its line has been printed.
        """
        flat = self._agreed(lambda: self._flatten(model))
        layout = flat.layout.digest()
        self._agreed(lambda: same_everywhere(self.world, layout, "Session(model): the layout of its parameters"))
        # Dropout and the like differ between workers; the model itself is the same.
        torch.manual_seed((torch.initial_seed() + self.world.rank) % 2**63)
        return flat

    def begin(self, record: TrainConfig, flat: FlatModel) -> Start:
        """From where the run begins, or goes on. The model then has the values with which it does.

        Args:
            record: the configuration as the record of the run has it.

        Raises:
            SystemExit: as ``flatten``.
        """
        return begin(self.world, record, flat, None, lambda found: _is_over(record.stop, found), self._agreed)

    def make(self, part: Callable[[], T]) -> T:
        """Make every rank's part.

        Raises:
            SystemExit: as ``flatten``.
        """
        return self._agreed(part)

    def zero(self) -> float:
        """The time of ``perf_counter`` at which training begins; the same moment on all ranks."""
        return common_zero(self.world)

    def fail(self, error: BaseException) -> NoReturn:
        """End all ranks, with one line that says what happened in the user's code, and where. Does not return."""
        if self.debug:
            traceback.print_exception(error)
        text = " ".join(str(error).split())
        if not isinstance(error, HpcdmlError):
            text = f"{_place(error)}: {type(error).__name__}: {text}"
            text += "" if self.debug else " (Session(debug=True) shows the traceback)"
        elif isinstance(error, (faults.ServerLost, faults.NoWord)):
            text += self.rescuer()
        told = MachineError(text)
        if others_go_on(self.world, error):
            faults.leave(failure(self.world, told))
        abort(self.world, told)
        raise SystemExit(1)  # no MPI is known that comes back from its abort

    def _agreed(self, stage: Callable[[], T]) -> T:
        def in_words() -> T:
            try:
                return stage()
            except UsageError as error:
                raise in_python(error) from error

        try:
            return together(in_words)
        except AgreedFailure as failure:
            raise SystemExit(failure.status) from None

    def _compare(self) -> None:
        world = self.world
        advice = (
            "a session needs at least 2 ranks, a server and its workers, or no mpirun at all: "
            f"mpirun -n 3 python {os.path.basename(sys.argv[0])}"
        )
        need_workers(world, advice)
        compare_options(self.config, world)
        set_threads(self.config.run.threads, self.config.run.bind, world)

    def _flatten(self, model: nn.Module) -> FlatModel:
        if self.world.is_server:
            model.cpu()
        try:
            flat = FlatModel(model, self.config.run.chunk_kib * 1024, WIRE_DTYPES[self.config.policy.wire_dtype])
        except ValueError as error:
            raise UsageError(f"Session(model): {error}") from error
        if flat.device.type not in ("cpu", "cuda"):
            raise UsageError(f"Session(model): lies on {flat.device}; must be on the CPU or on a CUDA device")
        return flat


def _is_over(stop: StopOptions, found: Resumption) -> bool:
    """Whether a run had come to the bounds that it has still; loops that end by themselves know it by their place."""
    saved = found.checkpoint.config
    if not found.complete or any(saved.get(name) != value for name, value in dataclasses.asdict(stop).items()):
        return False
    # A run stops where that is nearest to its bound: it may have a few samples less.
    return bool(found.server["stopped"])


def end_together(
    world: World, flat: FlatModel, status: int = 0, present: Iterable[int] = (), silent: Collection[int] = ()
) -> None:
    """Wait until the server has ended, then take its parameters. Where a worker hangs, all ranks are ended by force.

    Args:
        status: on rank 0 whether its part went well: 0.
        present: on rank 0 the workers that are to hear of it; the others are lost.
        silent: on rank 0 the workers from which nothing comes any more.

    Raises:
        MachineError: on every rank, where it did not.
        Preempted: on every rank, where a signal ended it.
        ServerLost: the server has died.
    """
    workers = tuple(present)
    agreed = finish(world, status, workers, silent)
    if agreed == PREEMPTED:
        raise Preempted
    if agreed:
        raise MachineError("the run has failed")
    integers = flat.integers()
    copies = [values.detach().cpu() for values in flat.flats]
    send_final(world, [*(copy.view(torch.uint8).numpy() for copy in copies), integers], workers)
    with torch.no_grad():
        for values, copy in zip(flat.flats, copies, strict=True):
            values.copy_(copy)
    flat.set_integers(integers)


def own_device() -> torch.device:
    """This rank's device: the GPUs of a host in turn, by the number of the worker there; the CPU for the server."""
    return pick_device("auto", join_world())


def described(config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, watched: bool) -> TrainConfig:
    """The configuration as the record of the run has it: what is the user's own, by name."""
    script = os.path.basename(sys.argv[0]) or "python"
    rate = float(optimizer.param_groups[0].get("lr", 0.0))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, dataset=f"{script} {OWN_LOOP}", batch_size=0),
        model=dataclasses.replace(config.model, model=type(model).__name__, loss="own"),
        optimizer=dataclasses.replace(config.optimizer, optimizer=type(optimizer).__name__, lr=rate),
        run=config.run if watched else dataclasses.replace(config.run, eval_seconds=1e9),
    )


def _place(error: BaseException) -> str:
    """Where in the user's script an exception came from: the last line of it that the traceback knows."""
    frames = traceback.extract_tb(error.__traceback__)
    script = os.path.abspath(sys.argv[0])
    found = [frame for frame in frames if os.path.abspath(frame.filename) == script] or list(frames)
    return f"{os.path.basename(found[-1].filename)}:{found[-1].lineno}" if found else "no traceback"
