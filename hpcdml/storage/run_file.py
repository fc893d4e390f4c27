"""The record of a run while it is made: ``run.h5``, which readers may follow at any time.

The whole structure is written first; then the file goes into HDF5's single-writer/multiple-reader (SWMR) mode. Found
by experiment (h5py 3.16, HDF5 2.0): a live file, and one whose writer was killed with SIGKILL, opens with
``swmr=True`` and shows every row that was flushed; without ``swmr=True`` HDF5 refuses both ("file is already open for
write"). A file whose writer is killed before SWMR mode opens in no way, hence it gets its name only afterwards.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import HpcdmlError, UsageError
from hpcdml.storage.hdf5 import abandon, escape, numeric, set_attribute, torch_dtype, write_array, write_failure
from hpcdml.storage.parameters_file import digest
from hpcdml.storage.row_checks import CHECK, stored_type, with_checks
from hpcdml.storage.seal import append_seal
from hpcdml.storage.tables import EVENTS, TABLES, table

FORMAT = "hpcdml-run"
FORMAT_VERSION = 4
FILE_NAME = "run.h5"
CHECKPOINT_FOLDER = "checkpoints"

_DESCRIPTION = (
    "Record of a training run by hpcdml. While the run lasts, and if it was killed, open with "
    "h5py.File(path, 'r', swmr=True). Times are seconds since the start of training; the attribute 'columns' of each "
    "table gives units and meanings, the column 'check' of a row is its checksum; /parameters is filled once the last "
    "event is 'finished'. docs/files.md tells more."
)
PARAMETERS_WRITTEN = "parameters"  # the event before "finished"; its text is their digest
_LEAST_SECONDS_BETWEEN_FLUSHES = 0.5


class RunWriter:
    """Writes ``run.h5``. ``create`` makes one; use it as a context manager, or call ``close``.

    ``append`` and ``event`` only touch memory and never wait for the disk; ``flush`` may be called from another thread.
    While the run lasts, and if it is killed, rows are guarded by a checksum in each, the final parameters by a digest
    in the events, and the rest by HDF5's checksums of its metadata; ``close`` seals all bytes (see ``seal``).
    """

    def __init__(self, file: h5py.File, path: Path, dtypes: Mapping[str, str]) -> None:
        """Take over an open file in SWMR mode; ``dtypes`` are the names of its parameters with their torch types."""
        self.path = path
        self._file = file
        self._tables = {t.name: file[t.name] for t in TABLES}
        self._parameters = {name: file["parameters"][escape(name)] for name in dtypes}
        self._buffers: dict[str, list[np.ndarray]] = {t.name: [] for t in TABLES}
        self._buffer_lock = threading.Lock()
        self._file_lock = threading.RLock()
        self._last_flush = -math.inf
        self._failure: HpcdmlError | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Mapping[str, object],
        environment: Mapping[str, str],
        workers: int,
        state: Mapping[str, tuple[Sequence[int], Any]],
        overwrite: bool,
        earlier: Mapping[str, np.ndarray] | None = None,
    ) -> RunWriter:
        """Make ``run.h5`` in a folder, and the folder, and open it for writing.

        Args:
            folder: the value of ``--output``.
            config: every option with its value (bool, number, text, None, list or dict).
            environment: versions, host, command line, ...
            workers: number of workers at the start.
            state: shape and type of every entry of the model's state_dict; the type is a numpy type or the name of
                a torch type ("float32", "bfloat16").
            overwrite: replace the run, and its checkpoints, that the folder may hold.
            earlier: rows by table with which the file begins: the run goes on in place of the one that the folder
                holds, and with its checkpoints. None: it is a new run.

        Raises:
            UsageError: the folder holds a run already, or cannot be made or written.
            MachineError: the disk is full or fails.
        """
        folder = Path(folder)
        path = folder / FILE_NAME
        held = UsageError(f"--output {folder}: holds a run already; choose another folder or add --overwrite")
        # A killed run of the same moment must not share the name.
        temporary = folder / f".{FILE_NAME}.{uuid.uuid4().hex[:8]}"
        types = {name: torch_dtype(dtype) for name, (_, dtype) in state.items()}
        file: h5py.File | None = None
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"--output {folder}: is a file; name a folder")
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and not overwrite and earlier is None:
                raise held
            file = h5py.File(temporary, "w-", libver=("v110", "v110"), locking=False)
            os.set_inheritable(file.id.get_vfd_handle(), False)
            _build(file, config, environment, workers)
            group = file.create_group("parameters", track_order=True)
            for name, (shape, _) in state.items():
                dataset = group.create_dataset(escape(name), shape=tuple(shape), dtype=types[name][0])
                set_attribute(dataset, "torch_dtype", types[name][1])
                set_attribute(dataset, "meaning", f"entry {name} of the model's state_dict at the end of the run")
            for name, rows in (earlier or {}).items():
                file[name].resize((len(rows),))
                file[name][:] = with_checks(rows, 0)
            file.swmr_mode = True
            if earlier is None:
                _publish(temporary, path, overwrite)
            else:
                os.replace(temporary, path)
            return cls(file, path, {name: t[1] for name, t in types.items()})
        except BaseException as error:
            if file is not None:
                abandon(file)
            with contextlib.suppress(OSError):
                temporary.unlink()
            if isinstance(error, FileExistsError) and path.is_file():
                raise held from error
            if isinstance(error, (OSError, RuntimeError)):
                raise write_failure(f"--output {folder}", error) from error
            raise

    def append(self, table_name: str, rows: np.ndarray) -> None:
        """Buffer a copy of rows, shape (n,) or (), of the table's dtype, until the next ``flush``.

        Raises:
            KeyError: there is no such table.
            TypeError: the rows are of another dtype.
            HpcdmlError: writing failed earlier.
        """
        expected = table(table_name).dtype
        if rows.dtype != expected:
            raise TypeError(f"rows of {table_name}: dtype must be {expected}, not {rows.dtype}")
        self._check()
        with self._buffer_lock:
            self._buffers[table_name].append(np.array(rows, ndmin=1).ravel())

    def event(self, seconds: float, rank: int, kind: str, text: str = "") -> None:
        """Buffer a row of ``events``; ``kind`` is cut to 16 bytes and ``text`` to 256 bytes of UTF-8."""
        kind_bytes, text_bytes = (t.encode("utf-8", "backslashreplace") for t in (kind, text))
        self.append(EVENTS.name, EVENTS.rows((seconds, rank, kind_bytes, text_bytes)))

    def flush(self, force: bool = False) -> None:
        """Write what is buffered, one block per table, and hand it to the operating system for readers to see.

        Without ``force`` it returns at once where the last flush is less than 0.5 s ago or another thread is writing.

        Raises:
            HpcdmlError: the file could not be written, now or earlier. It is closed then, as a killed run's is.
        """
        if not self._file_lock.acquire(blocking=force):
            return
        try:
            self._check()
            if force or time.monotonic() - self._last_flush >= _LEAST_SECONDS_BETWEEN_FLUSHES:
                self._guarded(self._write_buffers)
                self._last_flush = time.monotonic()
        finally:
            self._file_lock.release()

    def write_parameters(self, state: Mapping[str, np.ndarray], seconds: float = math.nan) -> None:
        """Write the final parameters and then the event "finished": afterwards the run counts as finished.

        Args:
            state: all entries that ``create`` was told of; bfloat16 and 8-bit floats come as float32.
            seconds: time of the event, since the start of training.

        Raises:
            ValueError: an entry is missing, unknown or of another shape.
            HpcdmlError: the file could not be written.
        """
        for name in state.keys() ^ self._parameters.keys():
            raise ValueError(f"parameters: {name} is {'not in the run file' if name in state else 'missing'}")
        for name, array in state.items():
            shape = self._parameters[name].shape
            if tuple(array.shape) != shape or not numeric(array.dtype):
                raise ValueError(f"parameters: {name} must have shape {shape}, not {array.shape} of {array.dtype}")

        def write() -> None:
            self._write_buffers()
            for name, array in state.items():
                write_array(self._parameters[name], np.asarray(array))
            stored = {n: np.asarray(state[n]).astype(d.dtype, copy=False) for n, d in self._parameters.items()}
            self.event(seconds, 0, PARAMETERS_WRITTEN, f"sha256 {digest(stored)}")
            # Flushing the datasets alone is not enough: until the superblock knows the file's new end, a reader gets
            # "invalid dataset size, likely file corruption" for arrays that were allocated in SWMR mode.
            self._file.flush()
            os.fsync(self._file.id.get_vfd_handle())
            self.event(seconds, 0, "finished")
            self._write_buffers()
            self._file.flush()
            os.fsync(self._file.id.get_vfd_handle())

        with self._file_lock:
            self._check()
            self._guarded(write)

    def close(self) -> None:
        """Write what is buffered, close and seal the file; does nothing where it is closed, or where writing failed.

        Raises:
            HpcdmlError: the last rows could not be written.
        """
        with self._file_lock:
            if self._file:
                self._guarded(self._write_buffers)
                self._guarded(self._file.flush)  # while it is still whole: a close that fails leaves nothing to mend
                # Not by its name, which another run may have by now.
                descriptor = os.dup(self._file.id.get_vfd_handle())
                try:
                    self._guarded(self._file.close)
                    self._guarded(lambda: append_seal(descriptor, {"format": FORMAT}))
                finally:
                    os.close(descriptor)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except HpcdmlError:
            if error is None:
                raise  # but never in place of the error that is already on its way

    def _check(self) -> None:
        # Looked at first: another thread that fails notes the failure before it closes the file.
        closed = not self._file
        if self._failure is not None:
            # A new object each time: a traceback would grow on the old one with every call.
            raise type(self._failure)(str(self._failure))
        if closed:
            raise ValueError(f"{self.path}: is closed")

    def _guarded(self, action: Any) -> None:
        """Do something with the file; if it fails, close the file for good and raise one line."""
        try:
            action()
        except (OSError, RuntimeError) as error:
            self._failure = write_failure(self.path, error)
            abandon(self._file)
            raise self._failure from error

    def _write_buffers(self) -> None:
        with self._buffer_lock:
            taken, self._buffers = self._buffers, {t.name: [] for t in TABLES}
        for each in TABLES:
            if taken[each.name]:
                rows = np.concatenate(taken[each.name])
                dataset = self._tables[each.name]
                count = len(dataset)
                stored = with_checks(rows, count)
                # One chunk after the other: when the writer is killed there is no hole before rows that are whole.
                while len(stored):
                    part = stored[: each.chunk - count % each.chunk]
                    stored = stored[len(part) :]
                    dataset.resize((count + len(part),))
                    dataset[count:] = part
                    dataset.flush()
                    count += len(part)


def _build(file: h5py.File, config: Mapping[str, object], environment: Mapping[str, str], workers: int) -> None:
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    root = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "workers": workers,
        "created": created,
        "description": _DESCRIPTION,
    }
    for name, value in root.items():
        set_attribute(file, name, value)
    for group_name, values in (("config", config), ("environment", environment)):
        group = file.create_group(group_name)
        for name, value in values.items():
            set_attribute(group, name, value)
    for each in TABLES:
        dataset = file.create_dataset(each.name, (0,), stored_type(each.dtype), chunks=(each.chunk,), maxshape=(None,))
        set_attribute(dataset, "meaning", each.meaning)
        lines = [f"{c.name} [{c.unit}]: {c.meaning}".encode() for c in each.columns]
        lines.append(
            f"{CHECK} [1]: checksum of the row and its number; docs/files.md tells how it is computed".encode()
        )
        dataset.attrs["columns"] = np.array(lines, dtype="S")


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the file its name; without ``overwrite`` only if nobody has taken it meanwhile (FileExistsError)."""
    if overwrite:
        checkpoints = path.parent / CHECKPOINT_FOLDER
        if checkpoints.is_dir():
            shutil.rmtree(checkpoints)
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        os.rename(temporary, path)  # a file system without hard links
    else:
        temporary.unlink()
