"""Checkpoints of the global parameters: one file for each, whole or not there at all, with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import (
    SLICE_BYTES,
    abandon,
    escape,
    get_attributes,
    numeric,
    read_group,
    reading,
    set_attribute,
    write_array,
    write_failure,
)

FORMAT = "hpcdml-parameters"
FORMAT_VERSION = 1
_OWN = ("format", "format_version", "checksum", "description")
_DESCRIPTION = "Parameters and buffers of a model by their names in its state_dict; 'checksum' is SHA-256 over them."


def write_state(
    path: str | os.PathLike[str], state: Mapping[str, np.ndarray], attributes: Mapping[str, object]
) -> None:
    """Write arrays and attributes to a file that appears under its name only when it is whole and on the disk.

    A file of that name is replaced. The GIL is free while arrays are written and hashed, and other threads get h5py's
    own lock between slices of 8 MiB.

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
    target = Path(path)
    arrays = {name: np.asarray(array) for name, array in state.items()}
    for name, array in arrays.items():
        if not numeric(array.dtype):
            raise TypeError(f"parameters: {name} must hold numbers, not {array.dtype}")
    for name in _OWN:
        if name in attributes:
            raise ValueError(f"attribute {name}: the name is reserved")
    temporary = target.with_name(f".{target.name}.tmp")
    file: h5py.File | None = None
    # Kept until the file is flushed: HDF5 writes small arrays when their dataset is let go, and an error then is lost.
    datasets: list[h5py.Dataset] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(temporary, "w", libver=("v110", "v110"), locking=False)
        group = file.create_group("parameters", track_order=True)
        for name, array in arrays.items():
            datasets.append(group.create_dataset(escape(name), shape=array.shape, dtype=array.dtype))
            write_array(datasets[-1], array)
        own = {"format": FORMAT, "format_version": FORMAT_VERSION, "description": _DESCRIPTION}
        for name, value in {**own, "checksum": checksum(arrays, attributes), **attributes}.items():
            set_attribute(file, name, value)
        file.flush()  # while it is still whole: a close that fails leaves nothing to mend
        file.close()
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException as error:
        if file is not None:
            abandon(file)
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, (OSError, RuntimeError)):
            raise write_failure(target, error) from error
        raise


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what ``write_state`` wrote: the arrays, in their order, and the attributes (tuples come back as lists).

    Raises:
        UsageError: there is no such file, it is damaged in any bit that matters, or it is none of ours.
    """
    source = Path(path)
    with reading(source):
        if not source.is_file():
            raise UsageError(f"{source}: there is no such file")
        return _read(source)


def _read(source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with h5py.File(source, "r", locking=False) as file:
        found = get_attributes(file)
        if found.get("format") != FORMAT:
            raise UsageError(f"{source}: is not a file of parameters by hpcdml")
        if found.get("format_version") != FORMAT_VERSION:
            raise UsageError(
                f"{source}: has format version {found.get('format_version')}; this hpcdml reads {FORMAT_VERSION}"
            )
        state = read_group(file["parameters"])
        attributes = {name: value for name, value in found.items() if name not in _OWN}
        if checksum(state, attributes) != found.get("checksum"):
            raise UsageError(f"{source}: damaged: its content does not match its checksum")
        return state, attributes


def checksum(state: Mapping[str, np.ndarray], attributes: Mapping[str, object]) -> str:
    """SHA-256, in hexadecimal, over names, dtypes, shapes and bytes in their order, and over the attributes."""
    digest = hashlib.sha256()
    for name, array in state.items():
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        # Rows in slices, so that an array that does not lie in one piece is not copied whole.
        flat = array.reshape(1) if array.ndim == 0 else array
        rows = max(1, SLICE_BYTES * len(flat) // max(1, flat.nbytes))
        for start in range(0, len(flat), rows):
            digest.update(np.ascontiguousarray(flat[start : start + rows]).ravel().view(np.uint8).data)
    digest.update(json.dumps(dict(attributes), sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"attribute: cannot store {type(value).__name__}")


def _sync(path: Path) -> None:
    """Have the operating system write a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
