"""Splits into training and test samples, and the order in which workers draw them from memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.training.data import ShardSampler
from hpcdml.training.data.sampler import shard_sizes
from hpcdml.training.data.split import split_indices
from samples import usage_error

# Splits


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_split_is_a_partition_and_keeps_every_class(labels: list[int], fraction: float) -> None:
    array = np.array(labels)
    train, test = split_indices(len(labels), fraction, array)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) == min(max(round(len(labels) * fraction), 1), len(labels) - 1)
    if len(train) >= len(set(labels)):
        assert set(array[train]) == set(labels)


def test_split_is_stratified_and_fixed() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    _, test = split_indices(160, 0.1, labels)
    assert np.bincount(labels[test]).tolist() == [10, 5, 1]
    assert np.array_equal(test, split_indices(160, 0.1, labels)[1])
    assert not np.array_equal(labels[test], np.sort(labels)[:16])


def test_one_sample_cannot_be_split() -> None:
    usage_error("--test-fraction 0.2: 1 sample cannot be split", lambda: split_indices(1, 0.2))


# Shards


def draw(sampler: ShardSampler, count: int) -> list[int]:
    """So many indices of the stream, batch by batch."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += sampler.next().tolist()
    return drawn[:count]


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_shards_of_a_pass_cover_every_sample_once(data: st.DataObject) -> None:
    workers = data.draw(st.integers(1, 6))
    length = data.draw(st.integers(workers, 60))
    batch = data.draw(st.integers(1, 70))
    weights = data.draw(st.one_of(st.just([]), st.lists(st.floats(1e-3, 1e3), min_size=workers, max_size=workers)))
    samplers = [ShardSampler(length, w, workers, batch, seed=7, weights=weights) for w in range(workers)]
    streams = [draw(sampler, 3 * sampler.size) for sampler in samplers]
    orders = []
    for number in range(3):
        shards = [stream[number * s.size : (number + 1) * s.size] for stream, s in zip(streams, samplers, strict=True)]
        order = [index for shard in shards for index in shard]
        assert sorted(order) == list(range(length))
        orders.append(order)
    if length > 20:
        assert orders[0] != orders[1] != orders[2]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 30), st.integers(1, 3))
@settings(deadline=None)
def test_batches_are_full_and_a_restored_stream_goes_on(length: int, batch: int, before: int, workers: int) -> None:
    length = max(length, workers)
    sampler = ShardSampler(length, workers - 1, workers, batch, seed=3)
    assert sampler.batch_size == min(batch, sampler.size)
    for _ in range(before):
        indices = sampler.next()
        assert indices.dtype == np.int64 and len(indices) == sampler.batch_size
    resumed = ShardSampler(length, workers - 1, workers, batch, seed=3)
    resumed.restore(sampler.state)
    for _ in range(10):
        assert np.array_equal(sampler.next(), resumed.next())
        assert sampler.state == resumed.state


def test_seeds_differ_and_repeat() -> None:
    streams = [draw(ShardSampler(100, 0, 2, 10, seed), 50) for seed in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


def test_a_batch_larger_than_the_shard_is_the_shard() -> None:
    sampler = ShardSampler(10, 1, 3, 100, seed=0)
    first, second = sampler.next(), sampler.next()
    assert len(first) == len(second) == sampler.size == 3
    assert sampler.state == (1, 3)


@given(st.integers(1, 12), st.integers(0, 200), st.data())
@settings(deadline=None)
def test_shard_sizes(workers: int, extra: int, data: st.DataObject) -> None:
    length = workers + extra
    equal = shard_sizes(length, workers)
    assert sum(equal) == length and max(equal) - min(equal) <= 1
    weights = data.draw(st.lists(st.floats(1e-300, 1e300), min_size=workers, max_size=workers))
    sizes = shard_sizes(length, workers, weights)
    assert sum(sizes) == length and min(sizes) >= 1


def test_shard_sizes_are_proportional() -> None:
    assert shard_sizes(100, 2, [3, 1]) == [75, 25]
    assert shard_sizes(10, 3, [1e6, 1, 1]) == [8, 1, 1]


def test_sampler_errors() -> None:
    usage_error(
        "2 samples cannot be shared by 3 workers; each needs at least one", lambda: ShardSampler(2, 0, 3, 1, seed=0)
    )
    usage_error(r"--shard-weights \[3,1\]: must be 3 numbers", lambda: ShardSampler(9, 0, 3, 1, 0, weights=[3, 1]))
    usage_error(r"--shard-weights \[1,0\]: must be numbers above 0", lambda: ShardSampler(9, 0, 2, 1, 0, [1, 0]))
    usage_error("--shard-weights .*above 0", lambda: ShardSampler(9, 0, 2, 1, 0, [1, math.nan]))
    usage_error("sample 9 of pass 1, is not in a shard of 5", lambda: ShardSampler(10, 0, 2, 1, 0).restore((1, 9)))
    with pytest.raises(ValueError, match="worker must be from 0 to 1, got 2"):
        ShardSampler(10, 2, 2, 1, 0)
