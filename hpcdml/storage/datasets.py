"""Reading of data sets from HDF5 files; what the arrays hold is checked by ``hpcdml.training.data``."""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError

NEEDED = ("x", "y")
OPTIONAL = ("x_test", "y_test")
_SHOWN = 10


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read ``x`` and ``y``, and ``x_test`` and ``y_test`` where they are there, whole and as they are stored.

    Returns:
        The arrays by name, of any shape and dtype; strings come as dtype object.

    Raises:
        UsageError: there is no such file, it is not HDF5 or unreadable, ``x`` or ``y`` is missing, or one of the four
            is a group or has no values.
    """
    option = f"--dataset {os.fspath(path)}"
    if not os.path.exists(path):
        where = "" if os.path.isabs(path) else f" in {os.getcwd()}"
        raise UsageError(f"{option}: there is no such file{where}")
    if os.path.isdir(path):
        raise UsageError(f"{option}: is a folder; an HDF5 file with x and y is needed")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{option}: the file may not be read by this user")
    if not h5py.is_hdf5(path):
        raise UsageError(f"{option}: is not an HDF5 file; a file with the data sets x and y is needed")
    try:
        # All ranks read at once, and many cluster file systems refuse locks.
        with h5py.File(path, "r", locking="best-effort") as file:
            for name in NEEDED:
                if name not in file:
                    raise UsageError(f"{option}: has no data set {name}, which is needed; it holds {_contents(file)}")
            return {name: _read(option, file, name) for name in NEEDED + OPTIONAL if name in file}
    except MemoryError as error:
        raise UsageError(f"{option}: does not fit into memory: {' '.join(str(error).split())}") from error
    # h5py has no error of its own: a damaged file, a missing filter and a type unknown to numpy raise any of these.
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{option}: cannot be read as HDF5: {' '.join(str(error).split())}") from error


def _read(option: str, file: h5py.File, name: str) -> npt.NDArray[Any]:
    item = file.get(name)
    if item is None:
        raise UsageError(f"{option}: {name} is a link that leads nowhere; must be a data set")
    if not isinstance(item, h5py.Dataset):
        raise UsageError(f"{option}: {name} is a group; it must be a data set with one row for each sample")
    if item.shape is None:
        raise UsageError(f"{option}: {name} holds no values (an HDF5 null data space)")
    return np.asarray(item[()])


def _contents(file: h5py.File) -> str:
    names = sorted(file)
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
