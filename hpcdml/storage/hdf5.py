"""What all HDF5 files of the project share: attributes, names, large arrays, failures.

Text is stored with a fixed length as UTF-8, never with a variable one: variable text lies in HDF5's global heap, which
no checksum guards. No object type is ever written or read.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import HpcdmlError, MachineError, UsageError

# h5py releases the GIL while it writes or reads (measured with h5py 3.16: a counting thread keeps its pace during a
# write of 512 MiB), but it holds its own lock for the whole call: another thread's smallest h5py call waits until a
# large write is through (0.7 s for 256 MiB). Cut into slices of 8 MiB the longest wait was 0.04 s, at no cost.
SLICE_BYTES = 8 << 20

# The user can do something about these by naming another place.
_PLACE_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


def versions() -> dict[str, str]:
    """Versions of the ``h5py`` package and of the ``hdf5`` library in it."""
    return {"h5py": h5py.version.version, "hdf5": h5py.version.hdf5_version}


def numeric(dtype: np.dtype[Any]) -> bool:
    """Whether the type is a plain number or a truth value: the only kinds of array that are stored or read."""
    return dtype.kind in "biufc" and dtype.names is None


def set_attribute(owner: Any, name: str, value: object) -> None:
    """Store one value as an attribute of an HDF5 object.

    Truth values and numbers are stored as such, None as the text "none", lists, tuples and dicts as JSON. Text is
    stored as it is, except where it would be read back as one of those: then as JSON, in quotes.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        owner.attrs[name] = value
        return
    if value is None:
        text = "none"
    elif isinstance(value, (list, tuple, dict)):
        try:
            text = json.dumps(value, ensure_ascii=False)
        except TypeError as error:
            raise TypeError(f"attribute {name}: {error}") from error
    else:
        text = str(value)
        # HDF5 ends a text at its first NUL, and UTF-8 has no code for a lone surrogate; JSON has one for both.
        if text == "none" or text[:1] in ('"', "[", "{") or "\0" in text or not text.isprintable() and _lone(text):
            text = json.dumps(text)
    # A command line may hold bytes that are no UTF-8; they must not end a run.
    data = text.encode("utf-8", "backslashreplace") or b"\0"
    owner.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))


def _lone(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def get_attributes(owner: Any) -> dict[str, Any]:
    """All attributes of an HDF5 object as plain Python values, the inverse of ``set_attribute``."""
    return {name: get_attribute(owner, name) for name in owner.attrs}


def get_attribute(owner: Any, name: str) -> Any:
    """One attribute, as ``set_attribute`` was given it."""
    return _plain(owner.attrs[name])


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic) and not isinstance(value, np.bytes_):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if numeric(value.dtype) else [_plain(item) for item in value.ravel()]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if text == "none":
        return None
    if text[:1] in ('"', "[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def escape(name: str) -> str:
    """A name of a state_dict as the name of an HDF5 link, where "/" would mean a group and "." the group itself.

    A leading "!" marks the project's own attributes, hence it is escaped as well.
    """
    name = name.replace("%", "%25").replace("/", "%2F").replace("\0", "%00")
    if name[:1] == "!":
        return "%21" + name[1:]
    return {"": "%", ".": "%2E"}.get(name, name)


def unescape(name: str) -> str:
    """The inverse of ``escape``."""
    if name == "%":
        return ""
    for code, character in (("%2F", "/"), ("%00", "\0"), ("%21", "!"), ("%2E", "."), ("%25", "%")):
        name = name.replace(code, character)
    return name


def own_item(group: h5py.Group, name: str) -> Any:
    """The group or the array of that name inside this very file, never one that another file holds.

    Raises:
        ValueError: it is a link to elsewhere, or an array of texts or arrays of any length.
    """
    link = group.get(name, getlink=True)
    item = group[name] if isinstance(link, h5py.HardLink) else None
    if isinstance(item, h5py.Group):
        return item
    # A file from elsewhere must not make us read other files of the machine.
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external is not None:
        raise ValueError(f"{name} is not an array")
    if item.dtype.hasobject:
        raise ValueError(f"{name} does not hold numbers")
    return item


def write_array(dataset: h5py.Dataset, array: np.ndarray) -> None:
    """Fill a dataset of the same shape, in slices (see ``SLICE_BYTES``)."""
    if array.ndim == 0:
        dataset[()] = array
        return
    rows = max(1, SLICE_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        dataset[start : start + rows] = array[start : start + rows]


def read_group(group: h5py.Group) -> dict[str, np.ndarray]:
    """All arrays of a group by name, in the order in which they were created.

    Raises:
        ValueError: there is something else than plain arrays of numbers inside this very file.
    """
    arrays = {}
    for name in group:
        dataset = own_item(group, name)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{name} is not an array")
        if not numeric(dataset.dtype):
            raise ValueError(f"{name} does not hold numbers")
        arrays[unescape(name)] = np.asarray(dataset[...])
    return arrays


def torch_dtype(dtype: Any) -> tuple[np.dtype[Any], str]:
    """The stored numpy type and the torch name of an entry's type.

    Args:
        dtype: a numpy type, or the name of a torch type. bfloat16 and the 8-bit floats, which numpy does not have, are
            stored as float32, which holds them exactly.
    """
    try:
        known = np.dtype(dtype)
    except TypeError:
        if str(dtype).startswith(("bfloat16", "float8")):
            return np.dtype("<f4"), str(dtype)
        raise
    if not numeric(known):
        raise TypeError(f"dtype {dtype}: only numbers and truth values are stored")
    return known, known.name


def reason(error: BaseException) -> tuple[int | None, str]:
    """The system's error number, where there is one, and one line that says why."""
    number = getattr(error, "errno", None)
    if number is None:
        # Only some of h5py's errors carry the number; HDF5 puts it into the text of the others.
        found = re.search(r"errno = (\d+)", str(error))
        number = int(found.group(1)) if found else None
    if number:
        return number, os.strerror(number)
    inner = re.search(r" \((.+)\)\W*$", str(error), re.DOTALL)  # HDF5's own words, in the brackets of h5py's
    text = (inner.group(1) if inner else str(error).strip("'\"")).strip().split(": eof")[0]
    return None, text.splitlines()[0] if text else type(error).__name__


def write_failure(what: str | Path, error: BaseException) -> HpcdmlError:
    """The one-line error for a file or folder that could not be written: the user's place, or the machine's failure."""
    number, why = reason(error)
    kind = UsageError if number in _PLACE_ERRORS else MachineError
    return kind(f"{what}: cannot be written: {why}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever HDF5 raises on a damaged or foreign file into a one-line ``UsageError``."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError) as error:
        number, why = reason(error)
        if number in (errno.EACCES, errno.EPERM, errno.EISDIR):
            raise UsageError(f"{path}: cannot be read: {why}") from error
        raise UsageError(f"{path}: damaged, or not one of ours: {why}") from error


def open_for_reading(path: Path) -> h5py.File:
    """Open a file that is complete, that is being written in SWMR mode, or whose writer in that mode was killed.

    Without locks: a reader needs none, and many cluster file systems have none.

    Raises:
        OSError: it is none of these, or damaged.
    """
    for pause in (0.02, 0.1):
        try:
            return _open_once(path)
        except FileNotFoundError:
            raise
        except OSError:
            # A writer that closes the file in between makes it look cut short (8 in 4,800 openings of short runs).
            time.sleep(pause)
    return _open_once(path)


def _open_once(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open" not in str(error):
            raise
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)
    _limit_attempts(access)
    return h5py.File(h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ, fapl=access))


def _limit_attempts(access: Any) -> None:
    """Have a reader give up on metadata whose checksum stays wrong after a quarter of a second.

    A SWMR reader tries again because the writer may be at work on it, and sleeps twice as long before each of its 100
    attempts, starting from 1 ns: a damaged file keeps it for ever (seen with HDF5 2.0). h5py does not offer the
    setting, but the library's function is found through its module. Without it only a damaged file that was never
    closed hangs.
    """
    with contextlib.suppress(OSError, AttributeError):
        function = ctypes.CDLL(h5py.h5p.__file__).H5Pset_metadata_read_attempts
        function.argtypes, function.restype = (ctypes.c_int64, ctypes.c_uint), ctypes.c_int
        function(access.id, 27)


def abandon(file: h5py.File) -> None:
    """Close a file that can no longer be written, leaving it as it lies on the disk.

    HDF5 cannot close a file whose dirty data it fails to write: ``close`` raises, pretends to succeed when called
    again, and the interpreter dies of a segmentation fault when the library shuts down (seen with HDF5 2.0 on a full
    disk, whether one closes or not). So the descriptor is turned to a copy in memory first, where writing succeeds.
    """
    if not file:
        return
    try:
        descriptor = file.id.get_vfd_handle()
        copy = os.memfd_create("hpcdml") if hasattr(os, "memfd_create") else _unnamed_file()
        try:
            _copy(descriptor, copy, _large_arrays(file))
        finally:
            os.dup2(copy, descriptor, inheritable=False)
            os.close(copy)
    except (OSError, RuntimeError):
        pass  # nothing better is left to do than to try and close it as it is
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        file.close()


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _large_arrays(file: h5py.File) -> list[tuple[int, int]]:
    """Where contiguous arrays lie (first byte, end). closing does not read them, so they need no copy."""
    found: list[tuple[int, int]] = []

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks is None and item.id.get_offset() is not None:
            found.append((item.id.get_offset(), item.id.get_offset() + item.id.get_storage_size()))

    with contextlib.suppress(OSError, RuntimeError, KeyError):
        file.visititems(note)
    return sorted(found)


def _copy(source: int, target: int, skip: list[tuple[int, int]]) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    for start, end in [*skip, (size, size)]:
        while at < min(start, size):
            block = os.pread(source, min(1 << 20, start - at), at)
            if not block:
                break
            os.pwrite(target, block, at)
            at += len(block)
        at = max(at, end)
