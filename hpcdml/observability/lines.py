"""Who did what and when, derived from the tables of a run: the workers' steps, and their updates under way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcdml.storage import RunReader

PARTS = ("compute", "data", "idle")
"""What a worker's time consists of, by the names of the columns of the table of steps, without ``_seconds``."""


@dataclass(frozen=True)
class WorkerLine:
    """One worker's steps in their order.

    A step consists of a blocked, a waiting and a computing part. They are taken to follow one another in this order:
    what blocks a worker (forming its update, taking global parameters in, starting the push, waiting) lies before the
    step's minibatch. Only polls within the step, a small part, are in truth spread over the computing.

    Attributes:
        rows: rows of the table of steps whose figures are finite.
        pushes: rows of the table of pushes that were taken, in the order in which the worker sent them.
    """

    worker: int
    rows: np.ndarray
    pushes: np.ndarray

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Seconds of each step by ``PARTS``, float64, none below 0."""
        return {part: np.maximum(self.rows[f"{part}_seconds"].astype(np.float64), 0.0) for part in PARTS}

    @cached_property
    def end(self) -> np.ndarray:
        return np.ascontiguousarray(self.rows["time"])

    @cached_property
    def begin(self) -> np.ndarray:
        return self.end - self.parts["compute"] - self.parts["data"] - self.parts["idle"]

    @cached_property
    def ready(self) -> np.ndarray:
        """When each step was free to begin with its minibatch: all that blocked it was over."""
        return self.end - self.parts["compute"] - self.parts["data"]

    @cached_property
    def fresh(self) -> np.ndarray:
        """Whether each step is the first that is based on its version of the global parameters."""
        return np.diff(self.rows["version"], prepend=-1) > 0

    def cumulated(self, edges: np.ndarray) -> dict[str, np.ndarray]:
        """Seconds of each of ``PARTS``, and ``samples``, from the beginning up to each time of ``edges``."""
        if not len(self.rows):
            return {name: np.zeros(len(edges)) for name in (*PARTS, "samples")}
        times = np.concatenate([self.begin[:1], np.maximum.accumulate(self.end)])
        sums = {part: np.cumsum(seconds) for part, seconds in self.parts.items()}
        sums["samples"] = self.rows["samples"].astype(np.float64)
        return {name: np.interp(edges, times, np.concatenate([[0.0], values])) for name, values in sums.items()}

    @cached_property
    def flights(self) -> Flights:
        """The worker's updates under way."""
        last = np.searchsorted(self.rows["step"], self.pushes["last_step"])
        back = np.searchsorted(self.rows["version"], self.pushes["round"])
        return Flights(self.pushes["round"], _at(self.end, last), _at(self.ready, back))


@dataclass(frozen=True)
class Flights:
    """Updates of one worker under way, one entry for each.

    Attributes:
        round: the version that the update went into.
        left: when the last local step in it ended; the push leaves then, at once.
        back: when the worker was ready to train on that version or a later one; nan: never, or not yet.
    """

    round: np.ndarray
    left: np.ndarray
    back: np.ndarray


def worker_lines(run: RunReader) -> list[WorkerLine]:
    """The lines of all workers by rank: those at the start, and those that joined later.

    Raises:
        UsageError: the run file is damaged.
    """
    rows, pushed = run.table("steps"), taken(run.table("pushes"))
    steps, pushes = by_worker(rows), by_worker(pushed)
    ranks = sorted({*range(1, run.workers + 1), *steps})
    return [WorkerLine(rank, _finite(steps.get(rank, rows[:0])), pushes.get(rank, pushed[:0])) for rank in ranks]


def extent(lines: list[WorkerLine]) -> tuple[float, float]:
    """From the begin of the first step of any worker to the end of the last of any; (0, 0) without steps."""
    some = [line for line in lines if len(line.rows)]
    if not some:
        return 0.0, 0.0
    return min(float(line.begin[0]) for line in some), max(float(line.end.max()) for line in some)


def by_worker(rows: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of each worker in their order."""
    # One sort instead of one pass over the whole table for each worker; "stable" keeps each worker's rows in order.
    rows = rows[np.argsort(rows["worker"], kind="stable")]
    present, first = np.unique(rows["worker"], return_index=True)
    return dict(zip(present.tolist(), np.split(rows, first[1:]), strict=True)) if len(rows) else {}


def taken(pushes: np.ndarray) -> np.ndarray:
    """The rows of the pushes that went into a version."""
    return pushes[pushes["refused"] == 0]


def _finite(rows: np.ndarray) -> np.ndarray:
    columns = ["time", *(f"{part}_seconds" for part in PARTS)]
    return rows[np.logical_and.reduce([np.isfinite(rows[name]) for name in columns])]


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The values at those places; nan behind the last one."""
    return np.append(values, np.nan)[np.minimum(index, len(values))]
