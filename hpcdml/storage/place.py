"""Whether the files of a run can lie in a folder: a small HDF5 file is written there, read back and removed."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

_BYTES = 8 << 20


@dataclass(frozen=True)
class Place:
    """What was found.

    Attributes:
        folder: where the file was written: the folder itself, or the nearest one above it that exists.
        seconds: for 8 MiB, until they were on the disk.
        free: bytes left for this user.
        locks: whether the file system has locks.
    """

    folder: str
    seconds: float
    free: int
    locks: bool


def try_place(folder: str) -> Place:
    """Write there as a run would, and leave nothing behind.

    Raises:
        OSError: it cannot be written; RuntimeError and the like if HDF5 fails.
    """
    target = Path(folder).absolute()
    base = next(above for above in (target, *target.parents) if above.exists())
    if not base.is_dir():
        raise NotADirectoryError(f"{base.name} is a file, not a folder")
    found = os.statvfs(base)
    path = base / f".hpcdml-doctor-{os.getpid()}.h5"
    values = np.arange(_BYTES // 4, dtype=np.int32)
    try:
        # The file is made by the system first: its errors have a name, those of HDF5 a long story.
        with open(path, "xb"):
            pass
        begin = time.perf_counter()
        with h5py.File(path, "w", locking=False) as file:
            file["values"] = values
            file.flush()
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            seconds = time.perf_counter() - begin
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
        with h5py.File(path, "r", locking=False) as file:
            if not np.array_equal(file["values"][()], values):
                raise OSError("what was read back is not what was written")
    finally:
        with suppress(OSError):
            path.unlink()
    return Place(str(base), seconds, found.f_bavail * found.f_frsize, locks)
