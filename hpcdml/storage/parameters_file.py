"""Files of a model's parameters alone: whole or not there at all, and sealed. ``hpcdml export`` makes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.storage.checkpoint import check_format, check_sealed, read_parameters, write_parameters
from hpcdml.storage.hdf5 import numeric, reading, set_attribute
from hpcdml.storage.seal import BLOCK_BYTES
from hpcdml.storage.tree import TensorArray
from hpcdml.storage.whole_file import Place, write_whole

FORMAT = "hpcdml-parameters"
FORMAT_VERSION = 2
_OWN = ("format", "format_version", "description")
_DESCRIPTION = "Parameters and buffers of a model by their names in its state_dict, whose order they have."


def write_state(
    path: str | os.PathLike[str],
    state: Mapping[str, TensorArray | np.ndarray],
    attributes: Mapping[str, object],
) -> None:
    """Write arrays and attributes to a file that appears under its name only when it is whole and on the disk.

    A file of that name is replaced. The GIL and h5py's lock are free while arrays are written.

    Args:
        path: the file; its folder is made where it is missing.
        state: arrays of numbers or truth values, of any shape, in the order that is to be kept.
        attributes: bool, number, text, None, and lists and dicts (with text as keys) of them.

    Raises:
        TypeError: an array holds something else than numbers.
        ValueError: an attribute has a reserved name.
        UsageError: the folder cannot be made or written.
        MachineError: the disk is full or fails.
    """
    for name, entry in state.items():
        dtype = np.asarray(entry.values if isinstance(entry, TensorArray) else entry).dtype
        if not numeric(dtype):
            raise TypeError(f"parameters: {name} must hold numbers, not {dtype}")
    for name in _OWN:
        if name in attributes:
            raise ValueError(f"attribute {name}: the name is reserved")
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, "description": _DESCRIPTION}

    def build(file: h5py.File, place: Place) -> None:
        for name, value in {**own, **attributes}.items():
            set_attribute(file, name, value)
        write_parameters(file, state, place)

    write_whole(Path(path), build, {"format": FORMAT})


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``write_state`` wrote: the arrays, in their order, and the attributes (tuples come back as lists).

    Raises:
        UsageError: there is no such file, it is damaged in any bit, or it is none of ours.
    """
    state, attributes = read_typed_state(path)
    return {name: entry.values for name, entry in state.items()}, attributes


def read_typed_state(path: str | os.PathLike[str]) -> tuple[dict[str, TensorArray], dict[str, Any]]:
    """As ``read_state``, with the name of the torch type of every array."""
    source = Path(path)
    with reading(source):
        check_sealed(source)
        with h5py.File(source, "r", locking=False) as file:
            root = check_format(source, file, FORMAT, FORMAT_VERSION)
            return read_parameters(file), {name: value for name, value in root.items() if name not in _OWN}


def digest(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256, in hexadecimal, over the names, types, shapes and bytes of arrays in their order."""
    found = hashlib.sha256()
    for name, array in state.items():
        found.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        # Rows in slices, so that an array that does not lie in one piece is not copied whole.
        flat = array.reshape(1) if array.ndim == 0 else array
        rows = max(1, BLOCK_BYTES * len(flat) // max(1, flat.nbytes))
        for start in range(0, len(flat), rows):
            found.update(np.ascontiguousarray(flat[start : start + rows]).reshape(-1).view(np.uint8).data)
    return found.hexdigest()
