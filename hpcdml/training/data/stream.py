"""Samples of files that are larger than memory: one window of blocks is trained on while a thread reads the next."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcdml.errors import UsageError
from hpcdml.training.data.block_sampler import BlockSampler, Window
from hpcdml.training.data.blocks import Blocks
from hpcdml.training.data.fileset import Array, Part
from hpcdml.training.data.sampler import Sampler
from hpcdml.training.data.source import Feed, Source

Indices = npt.NDArray[np.int64]

LABELS = "i4"
"""Labels in a window: half of what a batch has, and far beyond the largest."""
WINDOW_SHARE = 3 / 8
"""Of the memory for data: there are two windows, and what is left is for what is being read and for orders."""
HELD_SHARE = 1 / 8
"""Targets of all samples up to this share of the memory are held in it, so that each block is one read."""


class FileSource(Source):
    """Samples of one part of a set of files, read as they are needed."""

    def __init__(self, part: Part, blocks: Blocks, memory: float, option_value: str) -> None:
        """Read nothing yet.

        Args:
            part: of the files.
            blocks: the rows that count as samples, in their order.
            memory: bytes for all that a training worker holds.
            option_value: the value of ``--dataset``, for the messages.
        """
        self._part = part
        self._blocks = blocks
        self._memory = memory
        self._value = option_value

    def __len__(self) -> int:
        return self._blocks.rows

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """As for every source; quick where the indices are in rising order without gaps.

        Raises:
            UsageError, MachineError: the file is damaged, or the disk fails.
        """
        rows = self._blocks.rows_at(indices)
        x, y = self._part.empty(len(rows), LABELS)
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        begin = 0
        for end in ends:
            self.read(int(rows[begin]), x[begin:end], y[begin:end])
            begin = end
        return self.convert(torch.from_numpy(x), torch.from_numpy(y))

    def sampler(
        self, worker: int, workers: int, batch_size: int, seed: int, weights: Sequence[float] = ()
    ) -> BlockSampler:
        """The order by blocks.

        Raises:
            UsageError: two windows of a block each do not fit into the memory; or as ``ShardSampler``.
        """
        # A sample takes its place in the window, and one in the window's order.
        largest = int(self._blocks.count.max()) * (self._part.row_bytes(LABELS) + 8)
        window = int(self._memory * WINDOW_SHARE) // largest
        if window < 1:
            needed = -(-largest / WINDOW_SHARE // 1e6)
            raise UsageError(
                f"--data-memory-mb {self._memory / 1e6:g}: too little for --dataset {self._value}, whose pieces take "
                f"{largest / 1e6:.3g} MB each (a chunk of the file, or 1 MiB of it); must be at least {needed:.0f}"
            )
        return BlockSampler(self._blocks.count, window, worker, workers, batch_size, seed, weights)

    def feed(self, sampler: Sampler) -> Feed:
        """As for every source; a thread reads ahead from now on."""
        if not isinstance(sampler, BlockSampler):
            return super().feed(sampler)
        return WindowFeed(self, sampler)

    def empty(self, count: int) -> tuple[Array, Array]:
        """Inputs and targets of so many samples, not filled, as ``read`` fills them."""
        return self._part.empty(count, LABELS)

    def read(self, row: int, x: Array, y: Array) -> None:
        """Read the rows of the files from ``row`` on."""
        self._part.x.read(row, x)
        self._part.y.read(row, y)

    def read_window(self, window: Window, x: Array, y: Array) -> None:
        """Read a window's samples, run after run."""
        begin = 0
        rows = self._blocks.rows_at(window.first)
        for row, count in zip(rows.tolist(), window.count.tolist(), strict=True):
            self.read(row, x[begin : begin + count], y[begin : begin + count])
            begin += count

    def convert(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets as a model takes them."""
        return _converted(x), _converted(y)


class WindowFeed:
    """Minibatches from the window in memory. The next window is read meanwhile, into the buffers of the one before."""

    def __init__(self, source: FileSource, sampler: BlockSampler) -> None:
        self._source = source
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, "data")
        size = sampler.window_size
        self._current, self._spare = _Buffer(source, size), _Buffer(source, size)
        self._reading: Future[None] | None = None
        self._read_ahead(sampler.window)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next minibatch.

        Raises:
            UsageError, MachineError: a file is damaged, or the disk fails.
        """
        parts = [self._get(window).select(places) for window, places in self._sampler.take()]
        x, y = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
        return self._source.convert(x, y)

    def _get(self, window: Window) -> _Buffer:
        if self._current.key != window.key:
            # Another one than was expected after a restore; the thread reads it after that.
            if self._reading is None or self._spare.key != window.key:
                self._read_ahead(window)
            reading, self._reading = self._reading, None
            if reading is not None:
                reading.result()
            self._current, self._spare = self._spare, self._current
            self._read_ahead(self._sampler.after(window))
        return self._current

    def _read_ahead(self, window: Window) -> None:
        buffer = self._spare
        buffer.key = window.key
        self._reading = self._thread.submit(lambda: buffer.fill(window))


class _Buffer:
    """Memory for one window, kept for the next: new pages would cost more than reading into them.

    Attributes:
        key: of the window that is in it, or is being read.
    """

    def __init__(self, source: FileSource, size: int) -> None:
        self.key: tuple[int, int] | None = None
        self._source = source
        self._arrays = x, y = source.empty(size)
        self._x, self._y = torch.from_numpy(x), torch.from_numpy(y)

    def fill(self, window: Window) -> None:
        """Read the window."""
        self._source.read_window(window, *self._arrays)
        _ = window.order  # takes long enough for large windows to be done here

    def select(self, places: Indices) -> tuple[Tensor, Tensor]:
        """A copy of the samples at these places."""
        rows = torch.from_numpy(places)
        return self._x.index_select(0, rows), self._y.index_select(0, rows)


def _converted(values: Tensor) -> Tensor:
    if values.dtype is torch.uint8:
        return values.to(torch.float32).mul_(1 / 255)
    return values.to(torch.int64) if values.dtype is torch.int32 else values
