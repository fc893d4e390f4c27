"""Where a run goes on from: the newest valid checkpoint, what it means for this job, and each worker's part of it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hpcdml.config import RunOptions, StopOptions, TrainConfig, flag
from hpcdml.errors import UsageError
from hpcdml.mpi.world import World, at_server, hand_out, share
from hpcdml.observability import resources
from hpcdml.parameters import FlatModel
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.server import Server
from hpcdml.storage.checkpoint import Checkpoint, read_checkpoint
from hpcdml.storage.checkpoint_folder import newest_valid
from hpcdml.storage.image import pack, unpack
from hpcdml.storage.run_file import CHECKPOINT_FOLDER
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import EVALUATIONS, EVENTS, PUSHES, ROUNDS, STEPS
from hpcdml.storage.tree import TensorArray
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.setup import share_values, together
from hpcdml.training.state import load_state, to_tensor

OWN_LOOP = "(own loop)"
"""How the data set of a ``hpcdml.Session`` ends in the record: its loop is the user's."""

FREE = {field.name for group in (StopOptions, RunOptions) for field in dataclasses.fields(group)} - {"seed"}
"""Options that may be others when a run goes on."""

_OF_THE_END = (b"finished", b"parameters", resources.EVENT.encode())


@dataclass(frozen=True)
class Resumption:
    """A checkpoint from which this job goes on; only rank 0 has one.

    Attributes:
        path: its file.
        checkpoint: its content, but for the workers' states.
        workers: the ranks of the job's workers.
    """

    path: Path
    checkpoint: Checkpoint
    workers: tuple[int, ...]

    @property
    def server(self) -> dict[str, Any]:
        found: dict[str, Any] = self.checkpoint.server
        return found

    @property
    def _parameters(self) -> dict[str, TensorArray]:
        return cast(dict[str, TensorArray], self.checkpoint.parameters)

    @property
    def seconds(self) -> float:
        return float(self.server["seconds"])

    @property
    def saved(self) -> tuple[int, ...]:
        """Ranks of the workers whose states are in it."""
        return tuple(sorted(int(rank) for rank in self.server["clocks"]))

    @property
    def exact(self) -> bool:
        """Whether every worker goes on in the midst of what it did; otherwise all begin anew at the version."""
        return not self.server["ended"] and self.saved == self.workers

    @property
    def complete(self) -> bool:
        """Whether the run had come to its end, and its result is in its file."""
        try:
            return bool(self.server["ended"]) and RunReader(self.path.parent.parent).finished
        except UsageError:
            return False

    def told(self) -> str:
        """One line: from where the run goes on, and what is dropped."""
        machine = self.server["machine"]
        text = f"going on from {self.path.name}: version {self.checkpoint.version}, {machine['samples']:,} samples"
        if self.saved != self.workers:
            text += f"; workers {_ranks(self.workers)} in place of {_ranks(self.saved)}"
        if not self.exact and not self.server["ended"]:
            clocks, contained = self.server["clocks"], machine["clock"]
            lost = sum(int(clocks[rank]) - int(contained[rank]) for rank in clocks)
            text += f"; dropped: {lost} local steps that were not in that version yet"
        if gone := [rank for rank in self.saved if rank not in self.workers]:
            text += f", the states of workers {', '.join(map(str, gone))}"
        if new := [rank for rank in self.workers if rank not in self.saved]:
            text += f"; workers {', '.join(map(str, new))} begin with copies of others' optimizer states"
        return text

    def rows(self) -> dict[str, np.ndarray]:
        """The rows of the run's record that belong to what the checkpoint contains, by table.

        Where the record cannot be read, it begins anew, and a line says so.
        """
        version, machine = self.checkpoint.version, self.server["machine"]
        clocks = self.server["clocks"] if self.exact else machine["clock"]
        try:
            run = RunReader(self.path.parent.parent)
            tables = {t.name: run.table(t.name) for t in (STEPS, PUSHES, ROUNDS, EVALUATIONS, EVENTS)}
        except UsageError as error:
            print(f"hpcdml: warning: {error}; the record begins anew", file=sys.stderr, flush=True)
            return {}
        steps, pushes, events = tables["steps"], tables["pushes"], tables["events"]
        return {
            "steps": steps[steps["step"] <= _by_worker(steps, clocks)],
            "pushes": pushes[pushes["push"] <= _by_worker(pushes, machine["sequence"])],
            **{name: tables[name][tables[name]["round"] <= version] for name in ("rounds", "evaluations")},
            "events": events[(events["time"] <= self.seconds) & ~np.isin(events["kind"], _OF_THE_END)],
        }

    def load_start(self, flat: FlatModel) -> None:
        """Load into a model the values with which workers that begin anew start.

        Raises:
            UsageError: the checkpoint is that of another model.
        """
        load_state(flat.model, self._parameters)
        narrowed = self.server["narrowed"]
        with torch.no_grad():
            for values, array in zip(flat.flats, narrowed["out"] if narrowed else (), strict=False):
                values.copy_(to_tensor(array))

    def load_server(self, flat: FlatModel, aggregator: Aggregator) -> None:
        """Load the server's own values."""
        load_state(flat.model, self._parameters)
        flat.values_into(aggregator.x)
        for segment, array in zip(aggregator.x.segments, self.server["x"] or (), strict=False):
            segment.copy_(to_tensor(array))
        aggregator.restore(self.server, self.checkpoint.version)

    def go_on(self, machine: Server) -> Server:
        """Let a server's machine that knows nothing yet go on from here."""
        (machine.restore if self.exact else machine.restart)(self.server["machine"])
        return machine

    def parts(self, config: TrainConfig, epoch_samples: int | None) -> dict[int, dict[str, Any]]:
        """What each worker needs beside its saved state."""
        machine = self.go_on(Server(make_policy(config.policy), self.workers))
        return {
            rank: {
                "exact": self.exact,
                "seconds": self.seconds,
                "version": machine.version,
                "seen": machine.samples,
                "clock": machine.clock[rank],
                "sequence": machine.sequence[rank],
                "same_workers": self.saved == self.workers,
                "pass": machine.samples / epoch_samples if epoch_samples else 0.0,
            }
            for rank in self.workers
        }

    def state_of(self, rank: int) -> tuple[bool, dict[str, Any]]:
        """A worker's saved state, or for a new one another worker's; and whether it is its own."""
        own = rank in self.saved
        source = rank if own else self.saved[(rank - 1) % len(self.saved)]
        found = read_checkpoint(self.path, parameters=False, server=False, workers=(source,), check=False)
        tree: dict[str, Any] = found.workers[source]
        if not self.exact:
            tree = {key: part for key, part in tree.items() if key not in ("model", "base")}
        return own, tree


@dataclass(frozen=True)
class Start:
    """From where this rank begins.

    Attributes:
        over: the run had come to its end before.
        found: on rank 0 the checkpoint from which the run goes on; None: it begins.
        part: on a worker its part of that: what ``WorkerState.go_on`` takes, with the state in ``"state"``.
    """

    over: bool = False
    found: Resumption | None = None
    part: dict[str, Any] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training before."""
        if self.found is not None:
            return self.found.seconds
        return float(self.part["seconds"]) if self.part is not None else 0.0


def begin(
    world: World,
    config: TrainConfig,
    flat: FlatModel,
    epoch_samples: int | None,
    is_over: Callable[[Resumption], bool],
    agreed: Callable[[Callable[[], Resumption | None]], Resumption | None] = together,
    valid: Path | None = None,
) -> Start:
    """Find out from where the run goes on, if it does, and let the model have the values with which it begins; every
    rank calls this.

    Args:
        epoch_samples: training samples of all workers together in one epoch; None: not known.
        is_over: asked on rank 0: whether nothing is left to do after this checkpoint.
        agreed: how ranks agree on a stage that may fail on one of them.
        valid: on rank 0 the newest valid checkpoint, if it is known; None: it is looked for.
    """
    found = agreed(lambda: _find(config, world, flat, valid))
    goes_on = at_server(world, found is not None)
    share_values(world, flat)
    if not goes_on:
        return Start()
    if at_server(world, found is not None and is_over(found)):
        return Start(over=True)
    return Start(found=found, part=_give_states(world, found, config, epoch_samples))


def _find(config: TrainConfig, world: World, flat: FlatModel, valid: Path | None) -> Resumption | None:
    """On rank 0, if the run is to go on, the newest valid checkpoint in its folder, whose values are loaded into the
    model. Damaged ones are told of. None: there is none, or this is not rank 0.

    Raises:
        UsageError: it is one of another configuration or model; the message names the first difference.
    """
    if not world.is_server or config.run.resume == "never":
        return None
    path = valid or _newest(config.run.output)
    if path is None:
        return None
    checkpoint = read_checkpoint(path, workers=(), check=False)
    mine = config.flat()
    for name, value in checkpoint.config.items():
        if name in mine and name not in FREE and mine[name] != value:
            raise UsageError(
                f"{flag(name)} {_show(mine[name])}: {path} has {_show(value)}; a run goes on only with the same"
            )
    found = Resumption(path, checkpoint, tuple(range(1, len(world.workers) + 1)))
    found.load_start(flat)
    return found


def _newest(folder: str) -> Path | None:
    return newest_valid(
        Path(folder) / CHECKPOINT_FOLDER,
        lambda line: print(f"hpcdml: warning: {line}", file=sys.stderr, flush=True),
    )


def saved_config(folder: str) -> tuple[Path, dict[str, Any]]:
    """The newest valid checkpoint of a run, and the configuration in it. Damaged ones are told of.

    Raises:
        UsageError: there is none.
    """
    path = _newest(folder)
    if path is None:
        raise UsageError(
            f"{folder}: holds no valid checkpoint to go on from (none in {Path(folder) / CHECKPOINT_FOLDER})"
        )
    return path, dict(read_checkpoint(path, parameters=False, server=False, workers=(), check=False).config)


def _give_states(
    world: World, found: Resumption | None, config: TrainConfig, epoch_samples: int | None
) -> dict[str, Any] | None:
    """Hand every worker its part, and say from where the run goes on. Returns a worker's own; None on rank 0."""
    parts: dict[int, dict[str, Any]] = {}
    if found is not None:
        print(f"hpcdml: {found.told()}", file=sys.stderr, flush=True)
        parts = found.parts(config, epoch_samples)

    def image(rank: int) -> np.ndarray:
        assert found is not None
        own, tree = found.state_of(rank)
        return pack({**parts[rank], "own": own, "state": tree})

    data = hand_out(world, image)
    tree: dict[str, Any] | None = None if data is None else unpack(data)
    return tree


def share_config(world: World, config: dict[str, Any] | None) -> dict[str, Any]:
    """Rank 0's configuration on every rank."""
    found: dict[str, Any] = json.loads(share(world, json.dumps(config).encode()))
    return found


def is_own_loop(config: dict[str, Any]) -> bool:
    """Whether a configuration is that of a session, whose loop is in the user's script."""
    return str(config.get("dataset")).endswith(OWN_LOOP)


def known_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options in a file's configuration that this hpcdml has.

    Raises:
        UsageError: they are those of a session, whose loop is not hpcdml's.
    """
    if is_own_loop(config):
        raise UsageError(
            "this was a run of a hpcdml.Session, whose loop is in its script: that goes on when it is started again "
            'with Session(resume="auto"), and cannot be repeated bit for bit'
        )
    known = TrainConfig().flat()
    return {name: value for name, value in config.items() if name in known}


def _by_worker(rows: np.ndarray, bounds: dict[Any, Any]) -> np.ndarray:
    """For each row, the bound of its worker; 0 for a worker without one."""
    bound = {int(worker): int(value) for worker, value in bounds.items()}
    return np.array([bound.get(int(worker), 0) for worker in rows["worker"]], np.int64)


def _ranks(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) < 5 else f"{ranks[0]} to {ranks[-1]} ({len(ranks)})"


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value) if isinstance(value, (dict, list)) else str(value)
