"""What made an asynchronous run what it was, from its record: when each worker took in which version, and in which
order the server took the pushes. A job that keeps to it repeats the run bit for bit, however fast its ranks are."""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.errors import UsageError
from hpcdml.mpi.events import PushArrived
from hpcdml.mpi.world import World, share
from hpcdml.parameters import WireVector
from hpcdml.storage.run_reader import RunReader


@dataclass(frozen=True)
class WorkerScript:
    """When a worker takes in what has arrived.

    Attributes:
        clocks: numbers of its local steps after which it took in global parameters, in order.
        end: its last recorded step.
        finished: whether it was told to stop after that one; otherwise the record ends there.
    """

    clocks: frozenset[int]
    end: int
    finished: bool

    def takes(self, clock: int) -> bool:
        """Whether the worker waits for a message after so many local steps, and takes it in."""
        return clock in self.clocks or (self.finished and clock == self.end)

    def free(self, clock: int) -> bool:
        """Whether the record says nothing any more."""
        return clock >= self.end and not self.finished


@dataclass
class ServerScript:
    """In which order the server takes pushes, when it stops, and what each version was.

    Attributes:
        order: ranks in the order in which their pushes were taken, where each makes a version of its own; None: in any.
        stop: the version after which the run began to stop; None: at ``last``.
        last: the last version that is repeated.
        hashes: by version, the recorded hash of its parameters.
        differs: the first version whose hash is another one.
        kept, integers: the last version, copied when it was made.
    """

    order: deque[int] | None
    stop: int | None
    last: int
    hashes: dict[int, int]
    differs: int | None = None
    checked: int = 0
    kept: WireVector | None = None
    integers: np.ndarray | None = None
    _waiting: dict[int, deque[PushArrived]] = field(default_factory=dict)

    def in_turn(self, event: PushArrived) -> list[PushArrived]:
        """A push has arrived: which pushes are to be taken now, in order."""
        if self.order is None or not event.push.local_steps:
            return [event]
        self._waiting.setdefault(event.push.worker, deque()).append(event)
        taken = []
        while self.order and self._waiting.get(self.order[0]):
            taken.append(self._waiting[self.order.popleft()].popleft())
        if not self.order:
            taken += self.rest()
        return taken

    def rest(self) -> list[PushArrived]:
        """All pushes that wait for their turn: what comes from now on is not in the record."""
        self.order = None
        left = [event for waiting in self._waiting.values() for event in waiting]
        self._waiting.clear()
        return left

    def copy(self, version: int, chunk: int, x: WireVector) -> None:
        """Chunk ``chunk`` of a version is final in ``x``: keep it, if it is the last version."""
        if version == self.last:
            if self.kept is None:
                self.kept = WireVector(x.layout)
            self.kept.chunks[chunk].copy_(x.chunks[chunk])

    def check(self, version: int, found: int) -> None:
        """Compare a version's hash with the recorded one."""
        if version in self.hashes and version <= self.last and self.differs is None:
            self.checked += 1
            if self.hashes[version] != found:
                self.differs = version


@dataclass(frozen=True)
class Scripts:
    """The scripts of all ranks, and the configuration and CPU threads that the run had."""

    server: ServerScript
    workers: dict[int, WorkerScript]
    config: dict[str, Any]
    threads: dict[int, int]


def read_scripts(run: RunReader, collective: bool, until: int | None) -> Scripts:
    """Read what a run did.

    Args:
        run: its record; the run may have been killed.
        collective: whether its rounds take one push of every worker.
        until: the last version to repeat; None: all that the record explains.

    Raises:
        UsageError: the record explains less than is asked for.
    """
    steps, pushes, rounds = run.table("steps"), run.table("pushes"), run.table("rounds")
    ranks = range(1, run.workers + 1)
    taken = {rank: np.sort(steps["step"][steps["worker"] == rank]) for rank in ranks}
    # A killed run has pushes of which the steps were not reported yet.
    known = {rank: _unbroken(taken[rank]) for rank in ranks}
    last = _explained(pushes, rounds, known, run.finished)
    anew = _changes(run)
    if anew is not None and (until or last) > anew:
        raise UsageError(f"{run.path}: from version {anew} on it is a run whose workers began anew; --until {anew}")
    if until is not None and not 1 <= until <= last:
        raise UsageError(f"--until {until}: must be from 1 to {last}, the last version that the record explains")
    if last < 1:
        raise UsageError(f"{run.path}: holds no version that can be repeated")
    finished = run.finished and until in (None, last)
    last = last if until is None else until
    stopping = rounds["round"][rounds["stop"] == 1]
    stop = int(stopping.min()) - 1 if len(stopping) and stopping.min() <= last else None
    by_round = pushes[np.argsort(pushes["round"], kind="stable")]
    server = ServerScript(
        order=None if collective else deque(by_round["worker"][by_round["round"] <= last].tolist()),
        stop=stop,
        last=last,
        hashes=dict(zip(rounds["round"].tolist(), rounds["hash"].tolist(), strict=True)),
    )
    workers = {rank: _script(_of(steps, rank), _of(pushes, rank), known[rank], finished) for rank in ranks}
    threads = {rank: int(run.environment.get(f"rank{rank}_threads", 1)) for rank in ranks}
    return Scripts(server, workers, run.config, threads)


def _unbroken(steps: np.ndarray) -> int:
    """How many steps there are from 1 on without a gap."""
    gaps = np.flatnonzero(steps != np.arange(1, len(steps) + 1))
    return int(gaps[0]) if len(gaps) else len(steps)


def _explained(pushes: np.ndarray, rounds: np.ndarray, known: dict[int, int], finished: bool) -> int:
    """The last version all of whose updates, and those before, consist of recorded steps.

    A push, but for the last one of a finished run, is explained by the step after it: only that tells whether the
    worker had taken in a message by then.
    """
    last = _unbroken(np.sort(rounds["round"]))
    for rank, steps in known.items():
        mine = _of(pushes, rank)
        unknown = mine["round"][mine["last_step"] > (steps if finished else steps - 1)]
        if len(unknown):
            last = min(last, int(unknown.min()) - 1)
    return last


def _script(steps: np.ndarray, pushes: np.ndarray, known: int, finished: bool) -> WorkerScript:
    steps = np.sort(steps, order="step")[:known]
    before = np.concatenate([[0], steps["version"][:-1]])
    # What a worker has done since its last push ends with a push, or because it goes on afresh: it took in the answer
    # to a push that was refused, perhaps with the version that it had before.
    begins = (steps["since_push"] == 1) & (steps["step"] > 1)
    afresh = begins & ~np.isin(steps["step"] - 1, pushes["last_step"])
    clocks = steps["step"][(steps["version"] != before) | afresh] - 1
    return WorkerScript(frozenset(clocks.tolist()), known, finished)


def _of(rows: np.ndarray, rank: int) -> np.ndarray:
    return rows[rows["worker"] == rank]


def _changes(run: RunReader) -> int | None:
    """The version from which on a run did what the record before does not explain.

    Raises:
        UsageError: a worker left the run, and nothing tells when the others learned of it.
    """
    for _, rank, kind, text in run.events():
        version = re.search(r"version (\d+)", text)
        if kind == "restarted" and version:
            return int(version.group(1))
        if kind in ("lost", "silent", "dropped"):
            raise UsageError(f"{run.path}: worker {rank} left it ({kind}); such a run cannot be repeated")
    return None


@dataclass(frozen=True)
class Part:
    """What one rank knows of a replay."""

    config: dict[str, Any]
    threads: int
    script: WorkerScript | None


def share_script(world: World, scripts: Scripts | None) -> Part:
    """Every rank's part of what rank 0 has read."""
    data = b""
    if scripts is not None:
        workers = {rank: (sorted(s.clocks), s.end, s.finished) for rank, s in scripts.workers.items()}
        data = json.dumps([scripts.config, scripts.threads, workers]).encode()
    config, threads, found = json.loads(share(world, data))
    if world.is_server:
        return Part(config, 1, None)
    clocks, end, finished = found[str(world.rank)]
    return Part(config, threads[str(world.rank)], WorkerScript(frozenset(clocks), end, finished))


def as_replayed(folder: str) -> dict[str, Any]:
    """Options that a replay has in place of the run's: where it goes, and what has no part in the result."""
    return {
        "output": f"{folder}/replay",
        "overwrite": True,
        "resume": "never",
        "eval_seconds": 1e9,
        "checkpoint_seconds": None,
        "checkpoint_rounds": None,
        "checkpoint_samples": None,
        "slowdown": {},
        "step_seconds": None,
    }


def tell_replay(run: RunReader, script: ServerScript, until: int | None) -> int:
    """Say how a replay compares with the record, in one line.

    Returns:
        0 if it is the same, else 1.
    """
    if script.differs is not None:
        print(f"hpcdml: version {script.differs} differs from that of {run.path}, the first one of {script.last}")
        return 1
    text = f"{script.checked} of {script.last} versions compared, all as recorded"
    recorded = run.parameters() if until is None else None
    if recorded is not None:
        found = RunReader(Path(run.path.parent) / "replay").parameters() or {}
        wrong = [name for name, values in recorded.items() if not _same(values, found.get(name))]
        if wrong:
            print(f"hpcdml: {text}, but the final {wrong[0]} differs")
            return 1
        text += "; the final parameters and buffers are the same, bit for bit"
    print(f"hpcdml: {run.path}: {text}", flush=True)
    return 0


def _same(one: np.ndarray, other: np.ndarray | None) -> bool:
    return other is not None and one.dtype == other.dtype and one.tobytes() == other.tobytes()
