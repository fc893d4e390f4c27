"""Several files as one set: the rows of all of them, one file after the other, in the types that training takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdml.storage.datasets import DataFile
from hpcdml.training.data.checks import check_rows, needs_check
from hpcdml.training.data.form import Form

Array = npt.NDArray[Any]

PIECE_BYTES = 4 << 20
"""What is read at once where all rows are read: little enough to stay in a processor's cache between two looks."""


class Column:
    """One of ``x``, ``y``, ``x_test`` and ``y_test`` in all files that have it; ``len()`` is the number of its rows.

    Attributes:
        files: these files.
        starts: number of the first row of each, and, at the end, that of all rows.
    """

    def __init__(self, files: Sequence[DataFile], form: Form, name: str) -> None:
        self.name = name
        self.files = [file for file in files if name in file.rows]
        self.starts = np.cumsum([0, *(len(file.rows[name]) for file in self.files)])
        self.kind = form.kind(name)
        self.shape = form.shape(name)
        self._held: Array | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def hold(self, dtype: npt.DTypeLike) -> None:
        """Keep all rows in memory, as ``dtype``."""
        held = np.empty((len(self), *self.shape), dtype)
        self.read(0, held)
        self._held = held

    def read(self, first: int, out: Array, check: bool = False) -> int:
        """Read rows from ``first`` on into ``out``, (n, *shape), C-contiguous, of any type that holds the values.

        Args:
            check: also check the values as they are stored.

        Returns:
            The largest label among those checked; else -1.

        Raises:
            UsageError: the file is damaged, or a value is wrong.
            MachineError: the disk fails.
        """
        if self._held is not None:
            out[...] = self._held[first : first + len(out)]
            return -1
        largest = -1
        for file, row, count in self._pieces(first, len(out)):
            target, out = out[:count], out[count:]
            rows = file.rows[self.name]
            stored = target.reshape(count, *rows.shape[1:])
            if stored.dtype != rows.dtype:
                stored = np.empty(stored.shape, rows.dtype)
            file.read(self.name, row, stored)
            if check:
                largest = max(largest, check_rows(file.option, self.name, row, stored, self.kind))
            if stored.dtype != target.dtype:
                with np.errstate(over="ignore"):
                    target[...] = stored.reshape(target.shape)
        return largest

    def check(self, part: int, parts: int) -> int:
        """Check part number ``part`` of ``parts`` of the rows, without keeping them; returns and raises as ``read``."""
        first, last = len(self) * part // parts, len(self) * (part + 1) // parts
        largest = -1
        buffer = np.empty(0, np.uint8)
        for file, row, count in self._pieces(first, last - first):
            rows = file.rows[self.name]
            if not needs_check(self.kind, rows.dtype):
                continue
            size = count * rows.row_bytes
            if len(buffer) < size:
                buffer = np.empty(size, np.uint8)
            stored = buffer[:size].view(rows.dtype).reshape(count, *rows.shape[1:])
            file.read(self.name, row, stored)
            largest = max(largest, check_rows(file.option, self.name, row, stored, self.kind))
        return largest

    def _pieces(self, first: int, count: int) -> Iterator[tuple[DataFile, int, int]]:
        """File, row in it and number of rows of small pieces, which are whole chunks where that is possible."""
        number = int(np.searchsorted(self.starts, first, side="right")) - 1
        row = first - int(self.starts[number])
        while count:
            file = self.files[number]
            rows = file.rows[self.name]
            step = max(1, PIECE_BYTES // max(1, rows.row_bytes) // rows.chunk_rows) * rows.chunk_rows
            taken = min(count, step - row % rows.chunk_rows, len(rows) - row)
            yield file, row, taken
            row, count = row + taken, count - taken
            if row == len(rows):
                number, row = number + 1, 0


class Part:
    """The training or the test part of a set of files.

    Attributes:
        x, y: its two columns, of equal length; a part that no file names is empty.
    """

    def __init__(self, files: Sequence[DataFile], form: Form, suffix: str = "") -> None:
        self.form = form
        self.x = Column(files, form, "x" + suffix)
        self.y = Column(files, form, "y" + suffix)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def columns(self) -> tuple[Column, Column]:
        return self.x, self.y

    def row_bytes(self, labels: str) -> int:
        """Bytes of a sample in memory, with labels of that type."""
        return sum(math.prod(c.shape) * self.form.held_type(c.name, labels).itemsize for c in self.columns)

    def empty(self, count: int, labels: str) -> tuple[Array, Array]:
        """Arrays for so many samples, not filled."""
        x, y = (np.empty((count, *c.shape), self.form.held_type(c.name, labels)) for c in self.columns)
        return x, y
