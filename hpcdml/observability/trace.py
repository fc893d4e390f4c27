"""A run in the trace format of Chrome, which https://ui.perfetto.dev and chrome://tracing show."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hpcdml.observability.lines import WorkerLine
from hpcdml.observability.output import check_ending, replacing
from hpcdml.observability.view import RunView

ENDINGS = (".json", ".json.gz")
_PARTS = (("blocked", "begin", "ready"), ("data", "ready", "data"), ("compute", "data", "end"))
_STEPS, _UPDATES, _EVALUATION = 0, 1, 2
_FIRST_PROCESS = 1000
_HALF_NANOSECOND = 5e-10

Event = dict[str, Any]


def write_trace(view: RunView, path: str, begin: float = -np.inf, end: float = np.inf) -> int:
    """Write what happened between two times, in seconds of training, and return the number of events.

    Raises:
        UsageError: the name has another ending, the folder cannot be written, or the run file is damaged.
        MachineError: the disk is full or fails.
    """
    check_ending("trace", path, ENDINGS)
    # All tables are read before the file is begun: a damaged run leaves no half of a trace.
    every = events(view, begin, end)
    first = next(every)
    with replacing("trace", path) as place, _open(place, path.endswith(".gz")) as file:
        return _write(file, first, every, view)


def events(view: RunView, begin: float = -np.inf, end: float = np.inf) -> Iterator[Event]:
    """The events of a run that lie, in part at least, between two times.

    Every rank is a process. A worker has its steps in one row and its updates under way in another; rank 0 has rounds
    in two rows in turn, as one may begin before the last has ended, and evaluations in a third.
    """
    rounds, evaluations, lines = view.rounds, view.evaluations, view.lines
    yield from _names(lines)
    limits = rounds["time"] - rounds["seconds"], rounds["time"]
    begin_of, end_of = limits[0].copy(), limits[1]
    # What lies in one row must not overlap.
    begin_of[2:] = np.maximum(begin_of[2:], end_of[:-2])
    seen = (end_of >= begin) & (begin_of <= end)
    for row, a, b in zip(rounds[seen], begin_of[seen].tolist(), end_of[seen].tolist(), strict=True):
        about: Event = {
            "members": int(row["members"]),
            "local steps": int(row["local_steps"]),
            "bytes": int(row["bytes"]),
        }
        yield _slice(f"round v{row['round']}", 0, int(row["round"]) % 2, a, b, about)
    for row in evaluations[(evaluations["time"] >= begin) & (evaluations["time"] <= end)]:
        about = {"accuracy": _number(row["accuracy"]), "loss": _number(row["loss"])}
        from_ = float(row["time"])
        yield _slice(f"evaluate v{row['round']}", 0, _EVALUATION, from_, from_ + float(row["seconds"]), about)
    closed = dict(zip(rounds["round"].tolist(), zip(begin_of.tolist(), end_of.tolist(), strict=True), strict=True))
    for line in lines:
        yield from _steps(line, begin, end)
        yield from _updates(line, closed, begin, end)
    yield from _counters(view, begin, end)


def _open(path: Path, packed: bool) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path, "wb") if packed else path.open("wb")


def _write(file: BinaryIO | gzip.GzipFile, first: Event, rest: Iterator[Event], view: RunView) -> int:
    about = {"displayTimeUnit": "ms", "otherData": {k: str(v) for k, v in view.run.config.items()}}
    file.write((json.dumps(about)[:-1] + ', "traceEvents": [\n' + json.dumps(first)).encode())
    count = 1
    for event in rest:
        file.write((",\n" + json.dumps(event, separators=(",", ":"), allow_nan=False)).encode())
        count += 1
    file.write(b"\n]}\n")
    return count


def _names(lines: list[WorkerLine]) -> Iterator[Event]:
    rows = {_STEPS: "rounds, even versions", _UPDATES: "rounds, odd versions", _EVALUATION: "evaluation"}
    for rank in (0, *(line.worker for line in lines)):
        yield _name("process_name", rank, 0, name=f"worker {rank}" if rank else "rank 0, the server")
        yield _name("process_sort_index", rank, 0, sort_index=rank)
        for row, name in ({_STEPS: "local steps", _UPDATES: "updates under way"} if rank else rows).items():
            yield _name("thread_name", rank, row, name=name)


def _steps(line: WorkerLine, begin: float, end: float) -> Iterator[Event]:
    low, high = int(np.searchsorted(line.end, begin)), int(np.searchsorted(line.begin, end))
    places = {"begin": line.begin, "ready": line.ready, "data": line.ready + line.parts["data"], "end": line.end}
    for at in range(low, high, 4096):
        block = slice(at, min(at + 4096, high))
        rows = line.rows[block]
        times = [places[name][block].tolist() for name in ("begin", "ready", "data", "end")]
        for row, *limits in zip(rows, *times, strict=True):
            about = {"step": int(row["step"]), "version": int(row["version"]), "loss": _number(row["loss"])}
            for (part, _, _), a, b in zip(_PARTS, limits, limits[1:], strict=False):
                if b - a > _HALF_NANOSECOND:
                    yield _slice(part, line.worker, _STEPS, a, b, about if part == "compute" else None)


def _updates(line: WorkerLine, closed: dict[int, tuple[float, float]], begin: float, end: float) -> Iterator[Event]:
    flights = line.flights
    back = np.fmin(flights.back, np.append(flights.left[1:], np.inf))
    for row, made, a, b in zip(line.pushes, flights.round.tolist(), flights.left.tolist(), back.tolist(), strict=True):
        if not (a <= end and b >= begin) or b == np.inf:
            continue
        about = {"local steps": int(row["local_steps"]), "staleness": int(row["staleness"]), "into version": made}
        yield _slice(f"update for v{made}", line.worker, _UPDATES, a, b, about)
        if made in closed:
            # An arrow from the update to its round; it must end within the round's slice.
            arrow = {"name": "update", "cat": "update", "id": line.worker << 40 | made}
            since, until = closed[made]
            yield {**arrow, "ph": "s", **_place(line.worker, _UPDATES), "ts": _micro(a)}
            yield {**arrow, "ph": "f", "bp": "e", **_place(0, made % 2), "ts": _micro(min(max(a, since), until))}


def _counters(view: RunView, begin: float, end: float) -> Iterator[Event]:
    c = view.curves
    for name, values in (("training loss", c.loss), ("samples a second", c.rate)):
        for at, value in zip(c.seconds.tolist(), values.tolist(), strict=True):
            if np.isfinite(value) and begin <= at <= end:
                yield {"name": name, "ph": "C", **_place(0, 0), "ts": _micro(at), "args": {name: value}}


def _slice(name: str, rank: int, row: int, begin: float, end: float, about: Event | None) -> Event:
    event = {"name": name, "ph": "X", **_place(rank, row), "ts": _micro(begin)}
    # From rounded ends, so that neighbours do not overlap.
    event["dur"] = round(_micro(end) - _micro(begin), 3)
    return {**event, "args": about} if about else event


def _name(kind: str, rank: int, row: int, **args: object) -> Event:
    return {"name": kind, "ph": "M", **_place(rank, row), "args": args}


def _place(rank: int, row: int) -> Event:
    """Process and thread of a row. Perfetto takes thread 0 of every process for the same one, the idle one of Linux."""
    process = _FIRST_PROCESS + rank
    return {"pid": process, "tid": 10 * process + row}


def _micro(seconds: float) -> float:
    return round(1e6 * seconds, 3)


def _number(value: Any) -> float | str:
    number = float(value)
    return number if np.isfinite(number) else str(number)
