"""A run followed while it lasts: each look reads only the rows that are new."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcdml.observability.lines import PARTS, by_worker, taken
from hpcdml.storage import RunReader

WINDOW_SECONDS = 10.0
"""Seconds of training over which the figures of the moment are taken."""


@dataclass(frozen=True)
class WorkerNow:
    """One worker over the last seconds: None where nothing is known yet.

    Attributes:
        steps: local steps since the start.
        rate: samples a second.
        step_seconds: mean time of a local step, all that blocked it included.
        idle: share of the time for which it was blocked, from 0 to 1.
        data: the same for waiting for data.
        steps_per_push, staleness: means over the updates that arrived.
    """

    worker: int
    steps: int = 0
    rate: float | None = None
    step_seconds: float | None = None
    idle: float | None = None
    data: float | None = None
    steps_per_push: float | None = None
    staleness: float | None = None


@dataclass(frozen=True)
class Now:
    """A run at one moment.

    Attributes:
        seconds: of training, up to the last row.
        samples: of all workers; rate: a second, lately; rate_overall: since the start.
        losses: mean training losses of the rounds so far, thinned out; loss: the last of them.
        accuracy, best_accuracy, evaluated_loss: on the held-out data; evaluated_at: seconds of that version.
        state: kind and text of the last event.
        age: seconds since the file was last written.
    """

    path: str
    config: dict[str, Any]
    workers: tuple[WorkerNow, ...]
    seconds: float = 0.0
    rounds: int = 0
    samples: int = 0
    rate: float = 0.0
    rate_overall: float = 0.0
    losses: tuple[float, ...] = ()
    loss: float | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    evaluated_loss: float | None = None
    evaluated_at: float | None = None
    finished: bool = False
    state: tuple[str, str] = ("", "")
    age: float = 0.0


@dataclass
class _Tail:
    """The last rows of one worker, and what is known of those before them."""

    steps: np.ndarray
    pushes: np.ndarray
    count: int = 0


@dataclass
class Live:
    """Follows a run. ``look`` reads what is new and tells where the run is.

    Args:
        path: folder of the run, or its file.
    """

    path: str
    _reader: RunReader | None = None
    _file: tuple[int, int] = (0, 0)
    _read: dict[str, int] = field(default_factory=dict)
    _tails: dict[int, _Tail] = field(default_factory=dict)
    _losses: list[float] = field(default_factory=list)
    _every: int = 1
    _rounds: int = 0
    _evaluations: list[np.ndarray] = field(default_factory=list)

    def look(self, now: float) -> Now:
        """Read the new rows; ``now`` is the time of the day in seconds, as of ``time.time``.

        Raises:
            UsageError: there is no run, or its file is damaged.
        """
        run = self._open()
        for name in ("steps", "pushes", "rounds", "evaluations"):
            rows = run.table(name, self._read.get(name, 0))
            self._read[name] = self._read.get(name, 0) + len(rows)
            getattr(self, f"_{name}_came")(rows)
        self._forget()
        return self._now(run, now)

    def _open(self) -> RunReader:
        """The reader; a new run in the place of the old one is followed from its start."""
        if self._reader is not None:
            state = os.stat(self._reader.path) if self._reader.path.exists() else None
            if state is not None and (state.st_dev, state.st_ino) == self._file:
                return self._reader
            self.__init__(self.path)  # type: ignore[misc]
        self._reader = RunReader(self.path)
        state = os.stat(self._reader.path)
        self._file = state.st_dev, state.st_ino
        empty = self._reader.table("steps")[:0], self._reader.table("pushes")[:0]
        self._tails = {rank: _Tail(*empty) for rank in range(1, self._reader.workers + 1)}
        return self._reader

    def _steps_came(self, rows: np.ndarray) -> None:
        for worker, new in by_worker(rows).items():
            tail = self._tails.setdefault(worker, _Tail(rows[:0], np.zeros(0)))
            tail.steps = np.concatenate([tail.steps, new])
            tail.count += len(new)

    def _pushes_came(self, rows: np.ndarray) -> None:
        for worker, new in by_worker(taken(rows)).items():
            tail = self._tails.get(worker)
            if tail is not None:
                tail.pushes = np.concatenate([tail.pushes, new]) if len(tail.pushes) else new

    def _rounds_came(self, rows: np.ndarray) -> None:
        for loss in rows["loss"][np.isfinite(rows["loss"])].tolist():
            self._rounds += 1
            if self._rounds % self._every == 0:
                self._losses.append(loss)
        while len(self._losses) > 512:
            # Every second one is enough for a line of a few dozen characters.
            self._losses, self._every = self._losses[1::2], 2 * self._every

    def _evaluations_came(self, rows: np.ndarray) -> None:
        self._evaluations.append(rows)

    def _forget(self) -> None:
        for tail in self._tails.values():
            if len(tail.steps):
                since = float(tail.steps["time"][-1]) - WINDOW_SECONDS
                # At least two steps, from one end to the next, and one update.
                first = min(int(np.searchsorted(tail.steps["time"], since)), max(len(tail.steps) - 2, 0))
                tail.steps = tail.steps[first:]
                if len(tail.pushes):
                    late = int(np.searchsorted(tail.pushes["time"], since))
                    tail.pushes = tail.pushes[min(late, len(tail.pushes) - 1) :]

    def _now(self, run: RunReader, now: float) -> Now:
        workers = tuple(_worker(rank, tail) for rank, tail in sorted(self._tails.items()))
        ends = [tail.steps[-1] for tail in self._tails.values() if len(tail.steps)]
        samples = sum(int(row["samples"]) for row in ends)
        seconds = max((float(row["time"]) for row in ends), default=0.0)
        self._evaluations = [np.concatenate(self._evaluations)]
        scores = self._evaluations[0]
        events = run.events()
        return Now(
            path=self.path,
            config=run.config,
            workers=workers,
            seconds=seconds,
            rounds=self._read["rounds"],
            samples=samples,
            rate=sum(worker.rate or 0.0 for worker in workers),
            rate_overall=samples / seconds if seconds > 0 else 0.0,
            losses=tuple(self._losses),
            loss=self._losses[-1] if self._losses else None,
            accuracy=_finite(scores["accuracy"][-1]) if len(scores) else None,
            best_accuracy=_finite(np.fmax.reduce(scores["accuracy"])) if len(scores) else None,
            evaluated_loss=_finite(scores["loss"][-1]) if len(scores) else None,
            evaluated_at=float(scores["time"][-1]) if len(scores) else None,
            finished=any(kind == "finished" for _, _, kind, _ in events),
            state=(events[-1][2], events[-1][3]) if events else ("", ""),
            age=max(0.0, now - os.stat(run.path).st_mtime),
        )


def _worker(rank: int, tail: _Tail) -> WorkerNow:
    steps, pushes = tail.steps, tail.pushes
    if len(steps) < 2:
        return WorkerNow(rank, tail.count)
    length = float(steps["time"][-1] - steps["time"][0])
    spent = {part: float(steps[f"{part}_seconds"][1:].sum(dtype=np.float64)) for part in PARTS}
    whole = sum(spent.values())
    return WorkerNow(
        rank,
        tail.count,
        rate=float(steps["samples"][-1] - steps["samples"][0]) / length if length > 0 else None,
        step_seconds=length / (len(steps) - 1),
        idle=spent["idle"] / whole if whole > 0 else None,
        data=spent["data"] / whole if whole > 0 else None,
        steps_per_push=float(pushes["local_steps"].mean()) if len(pushes) else None,
        staleness=float(pushes["staleness"].mean()) if len(pushes) else None,
    )


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
