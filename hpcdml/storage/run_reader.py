"""Reading of ``run.h5``: of a run that is going on, of one that was killed, of one that has finished."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import get_attributes, open_for_reading, read_group, reading, unescape
from hpcdml.storage.run_file import FILE_NAME, FORMAT, FORMAT_VERSION
from hpcdml.storage.tables import EVENTS, table


class RunReader:
    """Reads one run. Every access opens the file anew, so it sees what the writer has flushed by then.

    Attributes:
        path: the run file.
        config: every option with its value.
        environment: versions, host, command line, ...
        workers: number of workers at the start of the run.
        created: ISO time at which the file was made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a run by its folder or its file and read all but the tables and the parameters.

        Raises:
            UsageError: there is no run, or the file is damaged, unreadable or none of ours.
        """
        given = Path(path)
        with reading(given):
            self.path = given / FILE_NAME if given.is_dir() else given
            if not self.path.exists():
                what = f"there is no run here (no {FILE_NAME})" if given.is_dir() else "there is no such file or folder"
                raise UsageError(f"{given}: {what}")
        with reading(self.path):
            self.path.open("rb").close()  # is_hdf5 is silent about a file that may not be read
            if not h5py.is_hdf5(self.path):
                raise UsageError(f"{self.path}: is not an HDF5 file")
        with self._open() as file:
            root = get_attributes(file)
            if root.get("format") != FORMAT:
                raise UsageError(f"{self.path}: is not the record of a run by hpcdml")
            if root.get("format_version") != FORMAT_VERSION:
                raise UsageError(
                    f"{self.path}: has format version {root.get('format_version')}; this hpcdml reads {FORMAT_VERSION}"
                )
            self.workers = int(root["workers"])
            self.created = str(root["created"])
            self.config: dict[str, Any] = get_attributes(file["config"])
            self.environment = {name: str(value) for name, value in get_attributes(file["environment"]).items()}

    def table(self, name: str, start: int = 0) -> np.ndarray:
        """The rows of a table from row ``start`` on: shape (n,), dtype ``table(name).dtype``.

        Raises:
            KeyError: there is no such table.
            UsageError: the file is damaged.
        """
        table(name)
        with self._open() as file:
            return self._rows(file, name, start)

    def events(self) -> list[tuple[float, int, str, str]]:
        """All events in order, as (seconds, rank, kind, text)."""
        with self._open() as file:
            return self._events(file)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and its parameters are there."""
        with self._open() as file:
            return self._finished(file)

    def parameters(self) -> dict[str, np.ndarray] | None:
        """The final parameters and buffers by their names in the state_dict, in its order; None where not finished.

        bfloat16 and 8-bit floats come as float32; ``torch_dtypes`` has their own types.

        Raises:
            UsageError: the file is damaged.
        """
        with self._open() as file:
            # One opening for both: another run may take this one's place in between.
            return read_group(file["parameters"]) if self._finished(file) else None

    def torch_dtypes(self) -> dict[str, str]:
        """The name of the torch type of every parameter and buffer, finished or not."""
        with self._open() as file:
            group = file["parameters"]
            return {unescape(name): str(get_attributes(group[name]).get("torch_dtype")) for name in group}

    def _rows(self, file: h5py.File, name: str, start: int = 0) -> np.ndarray:
        expected, dataset = table(name).dtype, file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype != expected or dataset.ndim != 1:
            raise UsageError(f"{self.path}: damaged, or not one of ours: table {name} has other columns")
        rows: np.ndarray = np.asarray(dataset[start:])
        # A reader may see the new length of a table before the rows themselves, which are zeros then, and so are rows
        # that lie beyond the end of a file that was cut short. No row that was written is all zeros.
        written = rows.view(np.uint8).reshape(len(rows), expected.itemsize).any(axis=1)
        return rows if written.all() else rows[: int(written.argmin())]

    def _events(self, file: h5py.File) -> list[tuple[float, int, str, str]]:
        rows = self._rows(file, EVENTS.name)
        return [(float(r["time"]), int(r["rank"]), _text(r["kind"]), _text(r["text"])) for r in rows]

    def _finished(self, file: h5py.File) -> bool:
        return any(kind == "finished" for _, _, kind, _ in self._events(file))

    @contextlib.contextmanager
    def _open(self) -> Iterator[h5py.File]:
        with reading(self.path), open_for_reading(self.path) as file:
            yield file


def _text(value: bytes) -> str:
    return value.decode("utf-8", "ignore")
