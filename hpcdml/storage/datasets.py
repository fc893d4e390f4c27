"""HDF5 files of samples: opened once, and read by ranges of rows. ``hpcdml.training.data`` checks what they hold."""

from __future__ import annotations

import errno
import os
from typing import Any

import h5py
import numpy.typing as npt

from hpcdml.errors import HpcdmlError, MachineError, UsageError
from hpcdml.storage.hdf5 import reason
from hpcdml.storage.rows import Rows, open_rows

NEEDED = ("x", "y")
OPTIONAL = ("x_test", "y_test")
_SHOWN = 10
# h5py has no error of its own: a damaged file, a missing filter and a type unknown to numpy raise any of these.
_ERRORS = (OSError, RuntimeError, TypeError, ValueError, KeyError, MemoryError)


class DataFile:
    """An open file with ``x`` and ``y``, and ``x_test`` and ``y_test`` where they are there.

    Attributes:
        path: as the user gave it.
        rows: the data sets by name.
    """

    def __init__(self, path: str) -> None:
        """Open the file. It stays open until the process ends, or until ``close``.

        Raises:
            UsageError: there is no such file, it is not HDF5 or unreadable, ``x`` or ``y`` is missing, or one of the
                four is a group, has no values, or is a single one.
        """
        self.path = path
        self.rows: dict[str, Rows] = {}
        _check_path(path, self.option)
        try:
            # All ranks read at once, and many cluster file systems refuse locks.
            self._file = h5py.File(path, "r", locking="best-effort")
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for name in NEEDED:
                if name not in self._file:
                    raise UsageError(
                        f"{self.option}: has no data set {name}, which is needed; it holds {_contents(self._file)}"
                    )
            for name in NEEDED + OPTIONAL:
                if name in self._file:
                    self.rows[name] = self._open(name)
        except _ERRORS as error:
            raise self._unreadable(error) from error

    @property
    def option(self) -> str:
        """The start of every message about this file."""
        return f"--dataset {self.path}"

    def read(self, name: str, start: int, out: npt.NDArray[Any]) -> None:
        """Read rows of a data set from ``start`` on into ``out``, (n, ...), C-contiguous and of the type stored.

        Any thread may call it; calls of several threads do not disturb each other.

        Raises:
            UsageError: the file is damaged.
            MachineError: the disk fails.
        """
        try:
            self.rows[name].read(start, out)
        except _ERRORS as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._file.close()
        os.close(self._descriptor)

    def _open(self, name: str) -> Rows:
        item = self._file.get(name)
        if item is None:
            raise UsageError(f"{self.option}: {name} is a link that leads nowhere; must be a data set")
        if not isinstance(item, h5py.Dataset):
            raise UsageError(f"{self.option}: {name} is a group; it must be a data set with one row for each sample")
        if item.shape is None:
            raise UsageError(f"{self.option}: {name} holds no values (an HDF5 null data space)")
        if item.shape == ():
            raise UsageError(f"{self.option}: {name} is a single number; must have one row for each sample")
        return open_rows(item, self._descriptor)

    def _unreadable(self, error: BaseException) -> HpcdmlError:
        number, why = reason(error)
        if number == errno.EMFILE:
            return UsageError(f"{self.option}: too many files for one process; raise ulimit -n, or join the files")
        if number == errno.EIO:
            return MachineError(f"{self.option}: cannot be read: {why}")
        return UsageError(f"{self.option}: cannot be read as HDF5: {' '.join(str(error).split())}")


def _check_path(path: str, option: str) -> None:
    if not os.path.exists(path):
        where = "" if os.path.isabs(path) else f" in {os.getcwd()}"
        raise UsageError(f"{option}: there is no such file{where}")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{option}: the file may not be read by this user")
    if not h5py.is_hdf5(path):
        raise UsageError(f"{option}: is not an HDF5 file; a file with the data sets x and y is needed")


def _contents(file: h5py.File) -> str:
    names = sorted(file)
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
