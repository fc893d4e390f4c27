"""Rows of one HDF5 data set, by ranges: past HDF5 wherever the bytes lie in the file as numpy has them.

HDF5 reads under a lock of the whole process, and copies what it reads once more. ``os.preadv`` does neither: from the
page cache it read blocks of 1 MB at 12.3 GB/s where h5py read 6.5 (contiguous) and 4.4 (chunked), without a filter.
Python's own lock is free in both. With filters h5py is the quicker one: gzip with shuffle at 328 MB/s on one core,
where ``zlib`` and numpy reached 217.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_CHUNKS = 1 << 22
"""Chunks from here on are left to HDF5: a place for each of them would take too much memory."""
_PIECE = 1 << 30  # bytes; a single call reads less than 2 GiB


class Rows:
    """Rows of a data set, read through h5py.

    Attributes:
        shape, dtype: of the data set, as it is stored.
        chunk_rows: rows that the file holds together, so that whole multiples of them are read best.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype
        self.chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        self._dataset = dataset

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is stored, without compression."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, out: Array) -> None:
        """Read the rows from ``start`` on into ``out``, (n, ...), C-contiguous and of the data set's own type.

        Raises:
            OSError, RuntimeError: the file cannot be read, or is damaged.
        """
        self._dataset.read_direct(out, np.s_[start : start + len(out)])


class ContiguousRows(Rows):
    """Rows of a data set that lies in the file in one piece."""

    def __init__(self, dataset: h5py.Dataset, descriptor: int, offset: int) -> None:
        super().__init__(dataset)
        self._descriptor = descriptor
        self._offset = offset

    def read(self, start: int, out: Array) -> None:
        read_fully(self._descriptor, out, self._offset + start * self.row_bytes)


class ChunkedRows(Rows):
    """Rows of a data set in chunks that lie in the file as they are, whose places are looked up once."""

    def __init__(self, dataset: h5py.Dataset, descriptor: int) -> None:
        super().__init__(dataset)
        self._descriptor = descriptor
        self._chunk = chunk = tuple(dataset.chunks)
        self._fill = dataset.fillvalue
        grid = [-(-size // step) for size, step in zip(self.shape, chunk, strict=True)]
        # Chunks beside each other in one row of chunks; where a chunk has whole rows, there is one.
        self._sides = [
            (slice(None),)
            + tuple(
                slice(i * step, min((i + 1) * step, size))
                for i, step, size in zip(at, chunk[1:], self.shape[1:], strict=True)
            )
            for at in itertools.product(*map(range, grid[1:]))
        ]
        self._whole_rows = chunk[1:] == self.shape[1:]
        strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        self._offsets = np.full(math.prod(grid), -1, np.int64)

        def note(chunk_: Any) -> None:
            number = sum(o // c * s for o, c, s in zip(chunk_.chunk_offset, chunk, strides, strict=True))
            self._offsets[number] = chunk_.byte_offset

        dataset.id.chunk_iter(note)

    def read(self, start: int, out: Array) -> None:
        stop, height = start + len(out), self._chunk[0]
        for row in range(start // height * height, stop, height):
            first, last = max(row, start), min(row + height, stop)
            target = out[first - start : last - start]
            for side, columns in enumerate(self._sides):
                number = row // height * len(self._sides) + side
                self._read_chunk(number, first - row, target[columns])

    def _read_chunk(self, number: int, first: int, target: Array) -> None:
        """Read the chunk's rows from ``first`` on into ``target``."""
        offset = int(self._offsets[number])
        if offset < 0:
            target[...] = self._fill
            return
        if self._whole_rows:
            read_fully(self._descriptor, target, offset + first * self.row_bytes)
            return
        block = np.empty(self._chunk, self.dtype)
        read_fully(self._descriptor, block, offset)
        part = block[first : first + len(target)]
        target[...] = part[tuple(slice(0, size) for size in target.shape)]


def open_rows(dataset: h5py.Dataset, descriptor: int) -> Rows:
    """The fastest way to the rows of a data set that has at least one dimension and is not empty.

    Args:
        descriptor: the same file, opened for reading; both must stay open as long as the result is used.
    """
    if _is_plain(dataset):
        offset = dataset.id.get_offset()
        if offset is not None:
            return ContiguousRows(dataset, descriptor, offset)
        if _has_plain_chunks(dataset):
            return ChunkedRows(dataset, descriptor)
    return Rows(dataset)


def read_fully(descriptor: int, out: Array, offset: int) -> None:
    """Fill a C-contiguous array from a place in a file.

    Raises:
        OSError: the disk fails, or the file ends before.
    """
    view = out.reshape(-1).view(np.uint8).data
    while view:
        count = os.preadv(descriptor, [view[:_PIECE]], offset)
        if not count:
            raise OSError(f"the file ends at byte {offset}, within the data")
        view, offset = view[count:], offset + count


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether numpy can take the data set's bytes from this very file, as they lie there."""
    return (
        dataset.dtype.kind in "biuf"
        and not dataset.is_virtual
        and not dataset.external
        and dataset.file.userblock_size == 0
        and h5py.h5t.py_create(dataset.dtype, logical=True).equal(dataset.id.get_type())
    )


def _has_plain_chunks(dataset: h5py.Dataset) -> bool:
    # Older versions of HDF5 cannot tell all places at once.
    if dataset.chunks is None or not hasattr(dataset.id, "chunk_iter"):
        return False
    number = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True))
    return number <= MOST_CHUNKS and dataset.id.get_create_plist().get_nfilters() == 0
