"""Files of samples that hpcdml makes itself, in the layout that is read fastest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import set_attribute, write_failure
from hpcdml.storage.whole_file import Place, write_whole

FORMAT = "hpcdml-samples"


def write_samples(
    path: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object], overwrite: bool = False
) -> None:
    """Write arrays of samples as contiguous data sets, and attributes, to a file for ``--dataset``.

    The file appears under its name only when it is whole.

    Raises:
        UsageError: the file exists, or its folder cannot be written.
        MachineError: the disk is full or fails.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise UsageError(f"{path}: exists; --overwrite replaces it")

    def build(file: h5py.File, place: Place) -> None:
        for name, value in {"format": FORMAT, **attributes}.items():
            set_attribute(file, name, value)
        for name, array in arrays.items():
            place(file, name, array)

    write_whole(target, build, {"format": FORMAT})


def write_parts(path: Path, rows: Mapping[str, int], parts: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write samples of which only a part is in memory at once.

    Args:
        rows: the number of rows of each data set.
        parts: rows of each data set, in turn; a part may lack some of them.

    Raises:
        UsageError, MachineError: the file could not be written.
    """
    done = dict.fromkeys(rows, 0)
    try:
        with h5py.File(path, "w", libver="latest") as file:
            for part in parts:
                for name, array in part.items():
                    if name not in file:
                        file.create_dataset(name, (rows[name], *array.shape[1:]), array.dtype)
                    file[name][done[name] : done[name] + len(array)] = array
                    done[name] += len(array)
    except OSError as error:
        raise write_failure(path, error) from error
