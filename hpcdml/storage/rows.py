"""Rows of one HDF5 data set, by ranges: past HDF5 wherever the bytes lie in the file as numpy has them.

HDF5 reads under a lock of the whole process, h5py under Python's as well: a thread that reads beside the training would
stop it. ``os.preadv`` and ``zlib`` hold neither, so that contiguous data sets, and chunked ones without a filter or
with those of h5py's ``compression="gzip"`` and ``shuffle=True``, are read by them; all others go through h5py.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MOST_CHUNKS = 1 << 22
"""Chunks from here on are left to HDF5: a place for each of them would take too much memory."""
_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
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
    """Rows of a data set in chunks, whose places are looked up once."""

    def __init__(self, dataset: h5py.Dataset, descriptor: int, filters: tuple[int, ...]) -> None:
        super().__init__(dataset)
        self._descriptor = descriptor
        self._filters = filters
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
        self._sizes = np.zeros(len(self._offsets), np.int64)
        self._masks = np.zeros(len(self._offsets), np.uint32)

        def note(chunk_: Any) -> None:
            number = sum(o // c * s for o, c, s in zip(chunk_.chunk_offset, chunk, strides, strict=True))
            self._offsets[number] = chunk_.byte_offset
            self._sizes[number] = chunk_.size
            self._masks[number] = chunk_.filter_mask

        dataset.id.chunk_iter(note)

    def read(self, start: int, out: Array) -> None:
        try:
            self._read(start, out)
        except (zlib.error, ValueError):
            # HDF5 knows cases that this does not; if the chunk is damaged, HDF5 says so.
            super().read(start, out)

    def _read(self, start: int, out: Array) -> None:
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
        if self._whole_rows and not self._filters:
            read_fully(self._descriptor, target, offset + first * self.row_bytes)
            return
        starts = [first] + [0] * (target.ndim - 1)
        raw = np.empty(int(self._sizes[number]), np.uint8)
        read_fully(self._descriptor, raw, offset)
        block = self._decoded(raw, int(self._masks[number])).view(self.dtype).reshape(self._chunk)
        target[...] = block[tuple(slice(at, at + n) for at, n in zip(starts, target.shape, strict=True))]

    def _decoded(self, raw: Array, mask: int) -> Array:
        """Undo the filters but those that the chunk was written without, which the mask names."""
        size = math.prod(self._chunk) * self.dtype.itemsize
        for place, code in reversed(list(enumerate(self._filters))):
            if mask >> place & 1:
                continue
            if code == _DEFLATE:
                raw = np.frombuffer(zlib.decompress(raw.data, bufsize=size), np.uint8)
            elif self.dtype.itemsize > 1:
                raw = np.ascontiguousarray(raw.reshape(self.dtype.itemsize, -1).T).reshape(-1)
        return raw


def open_rows(dataset: h5py.Dataset, descriptor: int) -> Rows:
    """The fastest way to the rows of a data set that has at least one dimension and is not empty.

    Args:
        descriptor: the same file, opened for reading; both must stay open as long as the result is used.
    """
    if _is_plain(dataset):
        offset = dataset.id.get_offset()
        if offset is not None:
            return ContiguousRows(dataset, descriptor, offset)
        filters = _filters(dataset)
        if filters is not None:
            return ChunkedRows(dataset, descriptor, filters)
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


def _filters(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """Codes of the filters in the order of writing; None where the chunks are not to be read without HDF5."""
    # Older versions of HDF5 cannot tell all places at once.
    if dataset.chunks is None or not hasattr(dataset.id, "chunk_iter"):
        return None
    if math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunks, strict=True)) > MOST_CHUNKS:
        return None
    create = dataset.id.get_create_plist()
    codes = tuple(create.get_filter(i)[0] for i in range(create.get_nfilters()))
    return codes if set(codes) <= {_DEFLATE, _SHUFFLE} else None
