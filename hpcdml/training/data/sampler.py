"""The order of the samples: every pass is one permutation of all of them, of which each worker takes its slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError

Indices = npt.NDArray[np.int64]


class Sampler(Protocol):
    """An endless stream of full minibatches of one worker's samples, whose place is two numbers."""

    @property
    def size(self) -> int:
        """Samples of this worker in one pass."""

    @property
    def batch_size(self) -> int:
        """Samples of every minibatch."""

    @property
    def state(self) -> tuple[int, int]:
        """The pass, counted from 0, and how many of its samples this worker has drawn."""

    def next(self) -> Indices:
        """Indices of the next minibatch, int64 of shape (batch_size,), not to be changed."""

    def restore(self, state: tuple[int, int]) -> None:
        """Go on where a sampler of equal arguments stood.

        Raises:
            UsageError: the position does not exist here.
        """


class Shard:
    """One worker's part of every pass: ``_size`` samples, behind ``_start`` of the workers before it."""

    def __init__(
        self, length: int, worker: int, workers: int, batch_size: int, seed: int, weights: Sequence[float]
    ) -> None:
        """Check the arguments and divide the samples.

        Args:
            length: number of samples of all workers together.
            worker: this worker, counted from 0.
            batch_size: samples of a minibatch; a shard smaller than that is one minibatch.
            weights: relative size of each worker's shard; empty for equal shards.

        Raises:
            UsageError: fewer samples than workers, or weights that are not one positive number for each worker.
            ValueError: ``worker`` is not one of ``workers``, or ``batch_size`` or ``seed`` is out of range.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker must be from 0 to {workers - 1}, got {worker}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        sizes = shard_sizes(length, workers, weights)
        self._seed = seed
        self._start = sum(sizes[:worker])
        self._size = sizes[worker]
        self._batch = min(batch_size, self._size)
        self._position = 0

    @property
    def size(self) -> int:
        """Samples of this worker in one pass."""
        return self._size

    @property
    def batch_size(self) -> int:
        """Samples of every minibatch."""
        return self._batch


class ShardSampler(Shard):
    """An endless stream of full minibatches of one worker's shard.

    All workers permute the same indices by the same seed, so the shards of a pass cover every sample exactly once
    without a message between them; the next pass deals the samples anew.
    """

    def __init__(
        self,
        length: int,
        worker: int,
        workers: int,
        batch_size: int,
        seed: int,
        weights: Sequence[float] = (),
    ) -> None:
        """Set the stream to the start of pass 0; arguments and errors as for ``Shard``."""
        super().__init__(length, worker, workers, batch_size, seed, weights)
        self._length = length
        self._open(0)

    @property
    def state(self) -> tuple[int, int]:
        """The pass, counted from 0, and how many of its samples this worker has drawn."""
        return self._pass, self._position

    def next(self) -> Indices:
        """Indices of the next minibatch, int64 of shape (batch_size,): a view of the permutation, not to be changed."""
        start = self._position
        end = start + self._batch
        if end <= self._size:
            self._position = end
            return self._shard[start:end]
        rest = self._shard[start:]
        self._open(self._pass + 1)
        # One pass is enough: a minibatch is never larger than the shard.
        self._position = self._batch - len(rest)
        return np.concatenate((rest, self._shard[: self._position]))

    def restore(self, state: tuple[int, int]) -> None:
        """Go on where a sampler of equal arguments stood.

        Raises:
            UsageError: the position does not exist here, so data, workers or weights are not those of the state.
        """
        number, position = check_state(state, self._size)
        self._open(number)
        self._position = position

    def _open(self, number: int) -> None:
        order = np.random.default_rng([self._seed, number]).permutation(self._length)
        # A copy of the slice, so that the rest of the permutation is freed.
        self._shard: Indices = order[self._start : self._start + self._size].astype(np.int64)
        self._pass = number
        self._position = 0


def place_at(sampler: Sampler, number: int, share: float) -> tuple[int, int]:
    """The state in which a sampler has drawn about this share of pass ``number``, in whole minibatches."""
    return number, int(share * sampler.size) // sampler.batch_size * sampler.batch_size


def check_state(state: tuple[int, int], size: int) -> tuple[int, int]:
    """Pass and position of a saved state, for a worker with ``size`` samples in a pass.

    Raises:
        UsageError: the position does not exist, so data, workers or weights are not those of the state.
    """
    number, position = int(state[0]), int(state[1])
    if number < 0 or not 0 <= position <= size:
        raise UsageError(
            f"--dataset: the saved position, sample {position} of pass {number}, is not in a shard of {size} "
            "samples; resume with the data, the workers and the shard weights of the saved run"
        )
    return number, position


def shard_sizes(length: int, workers: int, weights: Sequence[float] = ()) -> list[int]:
    """Sizes of the workers' shards, which add up to ``length``: in proportion to ``weights``, and at least 1.

    Shares are rounded by largest remainder; equal weights give sizes that differ by at most one.

    Raises:
        UsageError: fewer samples than workers, or weights that are not one positive number for each worker.
    """
    if length < workers:
        raise UsageError(f"--dataset: {length} samples cannot be shared by {workers} workers; each needs at least one")
    if len(weights) == 0:
        weights = [1.0] * workers
    shown = "[" + ",".join(f"{w:g}" for w in weights) + "]"
    if len(weights) != workers:
        raise UsageError(f"--shard-weights {shown}: must be {workers} numbers, one for each worker")
    if not all(math.isfinite(w) and w > 0 for w in weights):
        raise UsageError(f"--shard-weights {shown}: must be numbers above 0")
    largest = max(weights)
    shares = [w / largest for w in weights]
    total = math.fsum(shares)
    quotas = [length * share / total for share in shares]
    sizes = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(workers), key=lambda i: sizes[i] - quotas[i])
    for i in by_remainder[: length - sum(sizes)]:
        sizes[i] += 1
    for i in range(workers):
        if sizes[i] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[i] = 1
    return sizes
