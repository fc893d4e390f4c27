"""The file of a benchmark's results: options, machine, every run with its curve, and the table."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import (
    abandon,
    escape,
    get_attributes,
    reading,
    set_attribute,
    unescape,
    write_failure,
)

FORMAT = "hpcdml-bench"
FORMAT_VERSION = 1
_DESCRIPTION = (
    "Results of a benchmark by hpcdml. /runs: one group a run, its figures as attributes, and the scores of its "
    "parameters over time as the data set curve (seconds of training, samples of all workers, accuracy from 0 to 1, "
    "mean loss). /table: one data set a column, one row a side; three numbers are median, smallest and largest; nan: "
    "none. /options and /environment: attributes."
)
CURVE = np.dtype([("seconds", "<f8"), ("samples", "<i8"), ("accuracy", "<f8"), ("loss", "<f8")])
_SPREAD = ("median", "min", "max")

Run = tuple[dict[str, Any], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Results:
    """What a file holds; see ``BenchFile``."""

    benchmark: str
    options: dict[str, Any]
    environment: dict[str, Any]
    runs: list[Run]
    rows: list[dict[str, Any]]


class BenchFile:
    """Keeps results and writes them, whole, whenever a run is added: a benchmark that is killed leaves what it has.

    The file appears at once, so that a wrong place is told before anything is measured.

    Args:
        path: the file, which is replaced; None: nothing is written.
        benchmark: its name.
        options: of the benchmark; bool, number, text, None, and lists and dicts of them.

    Raises:
        UsageError, MachineError: the file cannot be written; ``add`` and ``finish`` raise likewise.
    """

    def __init__(
        self, path: str | None, benchmark: str, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.runs: list[Run] = []
        self._about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "description": _DESCRIPTION,
            "benchmark": benchmark,
            "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        self._options, self._environment = options, environment
        self._write([])

    def add(self, run: Run) -> None:
        """A run has ended: its figures, and its curve of (seconds, samples, accuracy or None, loss or None)."""
        self.runs.append(run)
        self._write([])

    def finish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The benchmark has ended with this table; all rows have the same keys."""
        self._write(rows)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.path is None:
            return
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        file: h5py.File | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = h5py.File(temporary, "w", libver=("v110", "v110"), locking=False)
            self._fill(file, rows)
            file.flush()  # while it is still whole: a close that fails leaves nothing to mend
            file.close()
            os.replace(temporary, self.path)
        except BaseException as error:
            if file is not None:
                abandon(file)
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, (OSError, RuntimeError)):
                raise write_failure(f"--output {self.path}", error) from error
            raise

    def _fill(self, file: h5py.File, rows: Sequence[Mapping[str, Any]]) -> None:
        for owner, values in (
            (file, self._about),
            (file.create_group("options"), self._options),
            (file.create_group("environment"), self._environment),
        ):
            for name, value in values.items():
                set_attribute(owner, name, value)
        group = file.create_group("runs", track_order=True)
        for number, (values, curve) in enumerate(self.runs):
            run = group.create_group(f"{number:04d}")
            for name, value in values.items():
                set_attribute(run, name, value)
            points = [tuple(np.nan if value is None else value for value in point) for point in curve]
            run.create_dataset("curve", data=np.array(points, CURVE))
        columns = file.create_group("table", track_order=True)
        for name in rows[0] if rows else ():
            columns.create_dataset(escape(name), data=_column([row[name] for row in rows]))


def read_results(path: str | os.PathLike[str], benchmark: str) -> Results:
    """Read the file of a benchmark.

    Raises:
        UsageError: there is no such file, it is damaged or none of ours, or it is of another benchmark.
    """
    source = Path(path)
    with reading(source):
        if not source.is_file():
            raise UsageError(f"--results {source}: there is no such file")
        with h5py.File(source, "r", locking=False) as file:
            about = get_attributes(file)
            if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
                raise UsageError(f"--results {source}: is not a file of results by this hpcdml")
            if about["benchmark"] != benchmark:
                raise UsageError(f"--results {source}: is of the benchmark {about['benchmark']}, not {benchmark}")
            runs: list[Run] = [(get_attributes(run), _curve(run["curve"])) for run in file["runs"].values()]
            columns = {unescape(name): _values(data) for name, data in file["table"].items()}
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            options, environment = get_attributes(file["options"]), get_attributes(file["environment"])
            return Results(benchmark, options, environment, runs, rows)


def _column(values: Sequence[Any]) -> np.ndarray:
    """A column of the table: text, whole numbers, numbers, or (n, 3) for medians with their spread."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        return np.array([value.encode() for value in values], np.bytes_)
    if kinds == {int}:
        return np.array(values, np.int64)
    if kinds == {dict}:
        empty = dict.fromkeys(_SPREAD)
        return np.array([[(value or empty)[part] for part in _SPREAD] for value in values], np.float64)
    return np.array(values, np.float64)


def _values(data: h5py.Dataset) -> list[Any]:
    """The inverse of ``_column``."""
    array = np.asarray(data[()])
    if array.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in array.tolist()]
    if array.ndim == 2:
        return [dict(zip(_SPREAD, map(_number, row), strict=True)) for row in array.tolist()]
    return [_number(value) for value in array.tolist()]


def _curve(data: h5py.Dataset) -> list[tuple[Any, ...]]:
    if data.dtype != CURVE:
        raise ValueError("a curve has other columns")
    return [tuple(map(_number, point)) for point in data[()].tolist()]


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
