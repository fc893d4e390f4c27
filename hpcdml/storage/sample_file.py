"""Files of samples that hpcdml makes itself: whole or not there at all, in the layout that is read fastest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import set_attribute
from hpcdml.storage.whole_file import Place, write_whole

FORMAT = "hpcdml-samples"


def write_samples(
    path: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object], overwrite: bool = False
) -> None:
    """Write arrays of samples as contiguous data sets, and attributes, to a file for ``--dataset``.

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
