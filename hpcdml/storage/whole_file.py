"""HDF5 files that are on the disk whole, or not at all: checkpoints and files of parameters.

HDF5 only lays the file out: it writes all metadata and allots every array its place. The arrays are then written to
these places directly from the memory that they lie in, block by block, while another thread takes the checksums of the
seal. So no array is copied, h5py's lock is free during the long part of the writing, and a disk that is full or fails
shows as a plain error of the system, at a time when HDF5 holds nothing that it could not write. Arrays are contiguous
and uncompressed: see docs/files.md for the measurements.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.storage.faults import point
from hpcdml.storage.hdf5 import abandon, numeric, reason, write_failure
from hpcdml.storage.seal import BLOCK_BYTES, Seal, sync, write_fully

# Puts an array into a group under a link's name and returns its dataset, to which attributes may be added.
Place = Callable[[h5py.Group, str, np.ndarray], h5py.Dataset]

# The disk begins to work long before the last block is there: with 1 GB on ext4 writing and fsync took 1.1 s, where
# writing all of it first took 2.0 to 2.5 s, and it never holds more than a little of the machine's memory.
_FLUSH_BYTES = 64 << 20
_MOST_WAITING = 4  # blocks whose checksum is not taken yet; a joined block lies in memory of its own until then


def temporary_name(target: Path) -> Path:
    """Where a file lies until it is whole."""
    return target.with_name(f".{target.name}.tmp")


def write_whole(target: Path, build: Callable[[h5py.File, Place], None], about: dict[str, Any]) -> None:
    """Write a sealed HDF5 file that appears under its name only when it is whole and on the disk.

    A file of that name is replaced, the folder is made where it is missing. The GIL and h5py's lock are free while
    arrays are written.

    Args:
        target: the file.
        build: makes groups and attributes, and gives every array to the function that is its second argument. The
            arrays must not change until the file is written.
        about: facts for the seal, which can be read without HDF5.

    Raises:
        UsageError: the folder cannot be made or written.
        MachineError: the disk is full or fails. Nothing is left of the file then, and no other file was touched.
    """
    temporary = temporary_name(target)
    file: h5py.File | None = None
    descriptor: int | None = None
    try:
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(target.parent.parent)
        point("create")
        file = h5py.File(temporary, "w", libver=("v110", "v110"), locking=False)
        places: list[tuple[int, np.ndarray]] = []
        build(file, lambda group, name, array: _allot(places, group, name, array))
        point("layout")
        file.flush()  # while it is still whole: a close that fails leaves nothing to mend
        file.close()
        descriptor = os.open(temporary, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        seal = Seal(size, _write_blocks(descriptor, size, places), about)
        point("seal")
        write_fully(descriptor, memoryview(seal.encode()), size)
        point("sync")
        os.fsync(descriptor)
        point("rename")
        os.replace(temporary, target)
        point("sync folder")
        sync(target.parent)
    except BaseException as error:
        if file is not None:
            abandon(file)
        with contextlib.suppress(OSError):
            temporary.unlink()
        # h5py raises ValueError as well where HDF5 could not write.
        if isinstance(error, (OSError, RuntimeError)) or (isinstance(error, ValueError) and reason(error)[0]):
            raise write_failure(target, error) from error
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _allot(places: list[tuple[int, np.ndarray]], group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    """Make the dataset of an array, with its place in the file but without its values."""
    array = np.asarray(array)
    if not numeric(array.dtype):
        raise TypeError(f"{group.name}/{name}: must hold numbers, not {array.dtype}")
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(array.shape) if array.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, create))
    if array.nbytes:
        offset = dataset.id.get_offset()
        if offset is None or dataset.id.get_storage_size() != array.nbytes:
            raise TypeError(f"{group.name}/{name}: HDF5 stores {array.dtype} in another way than numpy")
        places.append((offset, array))
    return dataset


def _write_blocks(descriptor: int, size: int, places: list[tuple[int, np.ndarray]]) -> tuple[int, ...]:
    """Write the arrays to their places, in the order of the file, and return the CRC-32 of each of its blocks."""
    checksums: list[int] = []
    waiting: deque[Future[int]] = deque()
    flushed, flush = 0, Future[None]()
    flush.set_result(None)
    with ThreadPoolExecutor(1, "checksum") as pool, ThreadPoolExecutor(1, "flush") as flusher:
        for offset, block in _blocks(_pieces(descriptor, size, places)):
            point("block")
            waiting.append(pool.submit(zlib.crc32, block))
            write_fully(descriptor, block, offset)
            while len(waiting) > _MOST_WAITING:
                checksums.append(waiting.popleft().result())
            if offset - flushed >= _FLUSH_BYTES and flush.done():
                flush.result()  # the system tells of a disk's failure once only
                flushed, flush = offset, flusher.submit(os.fdatasync, descriptor)
        flush.result()
        checksums += [future.result() for future in waiting]
    return tuple(checksums)


def _blocks(pieces: Iterator[memoryview]) -> Iterator[tuple[int, memoryview]]:
    """The file's bytes in blocks with their offsets; only blocks that consist of several pieces are copied."""
    offset, length = 0, 0
    parts: list[memoryview] = []
    for piece in pieces:
        while piece:
            part = piece[: BLOCK_BYTES - length]
            piece = piece[len(part) :]
            parts.append(part)
            length += len(part)
            if length == BLOCK_BYTES:
                yield offset, _joined(parts)
                offset, length, parts = offset + length, 0, []
    if parts:
        yield offset, _joined(parts)


def _joined(parts: list[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _pieces(descriptor: int, size: int, places: list[tuple[int, np.ndarray]]) -> Iterator[memoryview]:
    """All bytes of the file in order: the arrays from memory, and what HDF5 wrote between them from the file."""
    at = 0
    for offset, array in sorted(places, key=lambda place: place[0]):
        yield from _between(descriptor, at, offset)
        yield from _bytes(array)
        at = offset + array.nbytes
    yield from _between(descriptor, at, size)


def _between(descriptor: int, start: int, end: int) -> Iterator[memoryview]:
    while start < end:
        data = os.pread(descriptor, min(BLOCK_BYTES, end - start), start)
        if not data:
            raise OSError(f"the file ends at byte {start} instead of {end}")
        yield memoryview(data)
        start += len(data)


def _bytes(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order; one that does not lie in one piece is copied in slices."""
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8).data
        return
    rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data
