"""The layout of the tables in ``run.h5``: every column with its type, its unit and its meaning.

Each table is one resizable dataset at the root of the file and names the worker in a column, so that a worker that
joins later needs nothing new in a file whose structure is fixed once it is written for readers to follow.
All times are seconds since the start of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Column:
    """One column: its name, its numpy type (little endian), its unit ("1" for a pure number) and its meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """One table of ``run.h5``. ``chunk`` is the number of rows that are stored, and written again, together."""

    name: str
    meaning: str
    chunk: int
    columns: tuple[Column, ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The packed structured type of one row."""
        return np.dtype([(column.name, "<" + column.dtype) for column in self.columns])

    def rows(self, *records: tuple[Any, ...]) -> np.ndarray:
        """Rows from tuples in the order of the columns: shape (len(records),), dtype ``self.dtype``."""
        return np.array(list(records), dtype=self.dtype)


STEPS = Table(
    "steps",
    "one row per local step of a worker",
    1024,
    (
        Column("worker", "i4", "1", "rank of the worker, from 1"),
        Column("step", "i8", "1", "number of the step among the worker's own, from 1"),
        Column("time", "f8", "s", "end of the step"),
        Column("samples", "i8", "1", "samples that the worker has trained on up to here"),
        Column("loss", "f8", "1", "mean training loss of the step's samples"),
        Column("version", "i8", "1", "version of the global parameters that the step's initial model is based on"),
        Column("since_push", "i4", "1", "local steps since the worker's last push, this one included"),
        Column("data_seconds", "f4", "s", "time spent waiting for data"),
        Column("compute_seconds", "f4", "s", "time spent computing"),
        Column("idle_seconds", "f4", "s", "time blocked on communication, copies and polls included"),
    ),
)

PUSHES = Table(
    "pushes",
    "one row per push that the server received",
    512,
    (
        Column("worker", "i4", "1", "rank of the worker, from 1"),
        Column("push", "i8", "1", "number of the push among the worker's own, from 1"),
        Column("time", "f8", "s", "when the push had arrived"),
        Column("version", "i8", "1", "version that the update is based on"),
        Column("round", "i8", "1", "version that the update went into, or, if it was refused, its worker was given"),
        Column("staleness", "i8", "1", "round - 1 - version: versions made between the base and the update"),
        Column("local_steps", "i4", "1", "local steps in the update"),
        Column("samples", "i8", "1", "samples in the update"),
        Column("last_step", "i8", "1", "number of the last local step in the update among the worker's own"),
        Column("refused", "u1", "1", "1: the update was refused and is in no version"),
    ),
)

ROUNDS = Table(
    "rounds",
    "one row per new version of the global parameters",
    512,
    (
        Column("round", "i8", "1", "the new version, from 1"),
        Column("time", "f8", "s", "when the last chunk was aggregated"),
        Column("members", "i4", "1", "workers whose updates are in it"),
        Column("local_steps", "i8", "1", "local steps in it, over its members"),
        Column("samples", "i8", "1", "samples of all workers up to and including this round"),
        Column("seconds", "f8", "s", "from the header of the first push to the last chunk"),
        Column("bytes", "i8", "B", "bytes received for it"),
        Column("loss", "f8", "1", "mean training loss of the local steps reported since the last round; nan: none"),
        Column("stop", "u1", "1", "1: it was sent to nobody, as the run was stopping"),
        Column(
            "hash", "u8", "1", "hash of its parameters and floating-point buffers: sum over the chunks of their XXH3"
        ),
    ),
)

EVALUATIONS = Table(
    "evaluations",
    "one row per evaluation of a version of the global parameters on the held-out data",
    256,
    (
        Column("round", "i8", "1", "the version that was evaluated"),
        Column("time", "f8", "s", "when that version was made, not when it was evaluated"),
        Column("samples", "i8", "1", "samples of all workers up to that version"),
        Column("accuracy", "f8", "1", "share of right answers, from 0 to 1; nan for regression"),
        Column("loss", "f8", "1", "mean loss of the held-out samples"),
        Column("seconds", "f8", "s", "duration of the evaluation"),
    ),
)

EVENTS = Table(
    "events",
    "what happened to the run: started, stopped, lost worker, finished, ...",
    64,
    (
        Column("time", "f8", "s", "when it happened"),
        Column("rank", "i4", "1", "rank it happened to; 0 is the server"),
        Column("kind", "S16", "text", "one word, UTF-8"),
        Column("text", "S256", "text", "the rest of the story, UTF-8"),
    ),
)

# Written in this order: an event is on the disk only when the rows that it speaks of are.
TABLES: tuple[Table, ...] = (STEPS, PUSHES, ROUNDS, EVALUATIONS, EVENTS)


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        KeyError: there is no such table.
    """
    for candidate in TABLES:
        if candidate.name == name:
            return candidate
    raise KeyError(f"no table {name!r} in run.h5; there are {', '.join(t.name for t in TABLES)}")
