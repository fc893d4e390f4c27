"""The order of samples that are read by blocks: nearly that of ``ShardSampler``, in large pieces.

What is random: every pass deals all blocks to the workers in a new order, and every order is as likely as any other. A
worker takes its blocks in windows, groups that follow each other in that order, and draws the samples of a window in
any order, each as likely. What is not: the samples of a block are drawn within one window (a block that is divided
between two workers: within one window of each). Where a worker's share of a pass is one window, it is drawn in any
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from hpcdml.training.data.sampler import Indices, Shard, check_state

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Window:
    """Samples of a worker that are in memory at once.

    Attributes:
        key: the pass and the number of the window in it.
        seed: of the order of its samples.
        start: number of samples of the worker in this pass before it.
        first, count: the runs of samples that it consists of, in rising order.
    """

    key: tuple[int, int]
    seed: tuple[int, ...]
    start: int
    first: Indices
    count: Indices

    @cached_property
    def size(self) -> int:
        """Number of samples."""
        return int(self.count.sum())

    @cached_property
    def order(self) -> Indices:
        """Places of the samples in the window, counted through its runs, in the order in which they are drawn."""
        return np.random.default_rng(self.seed).permutation(self.size)

    def samples(self, places: Indices) -> Indices:
        """Indices of the samples at these places."""
        ends = np.cumsum(self.count)
        run = np.searchsorted(ends, places, side="right")
        result: Indices = places - (ends[run] - self.count[run]) + self.first[run]
        return result


@dataclass(frozen=True)
class _Pass:
    """A worker's share of one pass: runs of samples, and the numbers of runs and of samples where windows begin."""

    first: Indices
    count: Indices
    runs: Indices
    starts: Indices


class BlockSampler(Shard):
    """A ``Sampler`` that draws from one window after the other; ``take`` tells them, for those who hold them in memory.

    Args:
        counts: samples in each block; the samples are counted through all blocks.
        window: blocks in a window, at most.
        worker, workers, batch_size, seed, weights: as for ``ShardSampler``; errors as well.
    """

    def __init__(
        self,
        counts: Indices,
        window: int,
        worker: int,
        workers: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__(int(counts.sum()), worker, workers, batch_size, seed, weights)
        self._counts = counts
        self._firsts: Indices = np.cumsum(counts) - counts
        self._blocks = window
        self._worker = worker
        self._passes: dict[int, _Pass] = {}
        self._windows: dict[tuple[int, int], Window] = {}
        self._number = 0

    @property
    def state(self) -> tuple[int, int]:
        """The pass, counted from 0, and how many of its samples this worker has drawn."""
        return self._number, self._position

    def restore(self, state: tuple[int, int]) -> None:
        """Go on where a sampler of equal arguments stood.

        Raises:
            UsageError: the position does not exist here.
        """
        self._number, self._position = check_state(state, self._size)

    def next(self) -> Indices:
        """Indices of the next minibatch, int64 of shape (batch_size,)."""
        return np.concatenate([window.samples(places) for window, places in self.take()])

    @property
    def window_size(self) -> int:
        """Samples in a window, at most."""
        return min(self._size, self._blocks * int(self._counts.max()))

    def take(self) -> list[tuple[Window, Indices]]:
        """The next minibatch: windows, and the places in each, which are not to be changed."""
        parts: list[tuple[Window, Indices]] = []
        missing = self._batch
        while missing:
            if self._position == self._size:
                self._number, self._position = self._number + 1, 0
            window = self.window
            begin = self._position - window.start
            places = window.order[begin : begin + missing]
            parts.append((window, places))
            self._position += len(places)
            missing -= len(places)
        return parts

    @property
    def window(self) -> Window:
        """The one from which the next sample comes."""
        if self._position == self._size:
            return self._window(self._number + 1, 0)
        starts = self._pass(self._number).starts
        return self._window(self._number, int(np.searchsorted(starts, self._position, side="right")) - 1)

    def after(self, window: Window) -> Window:
        """The one that follows."""
        number, place = window.key
        last = place + 2 == len(self._pass(number).runs)
        return self._window(number + 1, 0) if last else self._window(number, place + 1)

    def _window(self, number: int, place: int) -> Window:
        key = (number, place)
        if key not in self._windows:
            whole = self._pass(number)
            runs = slice(whole.runs[place], whole.runs[place + 1])
            # In the order of the file, as disks like it.
            order = np.argsort(whole.first[runs], kind="stable")
            _keep(
                self._windows,
                key,
                Window(
                    key,
                    (self._seed, number, self._worker, place),
                    int(whole.starts[place]),
                    whole.first[runs][order],
                    whole.count[runs][order],
                ),
            )
        return self._windows[key]

    def _pass(self, number: int) -> _Pass:
        if number not in self._passes:
            order = np.random.default_rng([self._seed, number]).permutation(len(self._counts))
            ends = np.cumsum(self._counts[order])
            stop = self._start + self._size
            low = int(np.searchsorted(ends, self._start, side="right"))
            high = int(np.searchsorted(ends, stop, side="left")) + 1
            first, count = self._firsts[order[low:high]], self._counts[order[low:high]]
            # The blocks at both ends may be divided between two workers.
            missing = self._start - int(ends[low] - count[0])
            first[0] += missing
            count[0] -= missing
            count[-1] -= int(ends[high - 1]) - stop
            windows = -(-len(first) // self._blocks)
            # Of nearly equal size, so that none at the end mixes only a few blocks.
            runs = np.arange(windows + 1) * len(first) // windows
            starts = np.concatenate(([0], np.cumsum(count)))[runs[:-1]]
            _keep(self._passes, number, _Pass(first, count, runs, starts))
        return self._passes[number]


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Keep the last two, the one in use and the one that is read ahead."""
    kept[key] = value
    if len(kept) > 2:
        del kept[next(iter(kept))]
