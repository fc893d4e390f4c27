"""Reading of ``run.h5``: of a run that is going on, of one that was killed, of one that has finished."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import get_attributes, open_for_reading, own_item, read_group, reading, unescape
from hpcdml.storage.parameters_file import digest
from hpcdml.storage.row_checks import checked, stored_type
from hpcdml.storage.run_file import FILE_NAME, FORMAT, FORMAT_VERSION, PARAMETERS_WRITTEN
from hpcdml.storage.seal import verify
from hpcdml.storage.tables import EVENTS, table


class RunReader:
    """Reads one run. Every access opens the file anew, so it sees what the writer has flushed by then.

    Every byte of a file that was closed is verified before anything else; of one that is being written, or whose
    writer was killed, every row and the final parameters are.

    Attributes:
        path: the run file.
        config: every option with its value.
        environment: versions, host, command line, ...
        workers: number of workers at the start of the run.
        created: ISO time at which the file was made.
        sealed: whether the file was closed and all its bytes are as they were written.
        unreadable: by table, how many rows at its end could not be read when it was last read: they were being
            written, at that moment or when the writer was killed, or are damaged.
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
        self.sealed = False
        self.unreadable: dict[str, int] = {}
        self._verified: tuple[int, ...] = ()
        with reading(self.path):
            self._verify()
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
        for _ in range(3):
            with contextlib.suppress(_Torn), self._open() as file:
                return self._rows(file, name, start)
            time.sleep(0.02)  # rows that were being written while they were read are whole the next time
        with self._open() as file:
            return self._rows(file, name, start)

    def events(self) -> list[tuple[float, int, str, str]]:
        """All events in order, as (seconds, rank, kind, text)."""
        return _events(self.table(EVENTS.name))

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and its parameters are there."""
        return _finished(self.events())

    def parameters(self) -> dict[str, np.ndarray] | None:
        """The final parameters and buffers by their names in the state_dict, in its order; None where not finished.

        bfloat16 and 8-bit floats come as float32; ``torch_dtypes`` has their own types.

        Raises:
            UsageError: the file is damaged.
        """
        with self._open() as file:
            # One opening for both: another run may take this one's place in between.
            events = _events(self._rows(file, EVENTS.name))
            if not _finished(events):
                return None
            found = read_group(file["parameters"])
        expected = [text for _, _, kind, text in events if kind == PARAMETERS_WRITTEN]
        if not self.sealed and expected[-1:] != [f"sha256 {digest(found)}"]:
            raise UsageError(f"{self.path}: damaged: the parameters do not match their checksum")
        return found

    def torch_dtypes(self) -> dict[str, str]:
        """The name of the torch type of every parameter and buffer, finished or not."""
        with self._open() as file:
            group = file["parameters"]
            return {unescape(name): str(get_attributes(group[name]).get("torch_dtype")) for name in group}

    def _rows(self, file: h5py.File, name: str, start: int = 0) -> np.ndarray:
        expected, dataset = stored_type(table(name).dtype), own_item(file, name)
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype != expected or dataset.ndim != 1:
            raise UsageError(f"{self.path}: damaged, or not one of ours: table {name} has other columns")
        try:
            rows, self.unreadable[name] = checked(np.asarray(dataset[start:]), start)
        except ValueError as error:
            raise _Torn(f"{self.path}: damaged: table {name}: {error}") from error
        return rows

    @contextlib.contextmanager
    def _open(self) -> Iterator[h5py.File]:
        with reading(self.path):
            self._verify()
            with open_for_reading(self.path) as file:
                yield file

    def _verify(self) -> None:
        """Verify a sealed file before HDF5 sees any of it, once for as long as it stays the same."""
        state = os.stat(self.path)
        identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if identity != self._verified:
            self.sealed = verify(self.path) is not None
            self._verified = identity


class _Torn(UsageError):
    """Rows that do not match their checksums lie before rows that do."""


def _events(rows: np.ndarray) -> list[tuple[float, int, str, str]]:
    return [(float(r["time"]), int(r["rank"]), _text(r["kind"]), _text(r["text"])) for r in rows]


def _finished(events: list[tuple[float, int, str, str]]) -> bool:
    return any(kind == "finished" for _, _, kind, _ in events)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "ignore")
