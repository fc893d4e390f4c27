"""Files that are larger than the memory for data: the order of blocks, reading ahead, the check, the held-out part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import DataOptions
from hpcdml.errors import UsageError
from hpcdml.training.data import TaskData, TensorSource, open_data
from hpcdml.training.data.block_sampler import BlockSampler
from hpcdml.training.data.stream import FileSource
from samples import everything, load, usage_error, write_hdf5

MEMORY = 8  # MB: two windows of 3 MB


def draw(sampler: BlockSampler, count: int) -> list[int]:
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += sampler.next().tolist()
    return drawn[:count]


@st.composite
def samplers(draw_: st.DrawFn) -> dict[str, Any]:
    counts = draw_(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    workers = draw_(st.integers(1, min(5, sum(counts))))
    weights = draw_(st.one_of(st.just([]), st.lists(st.floats(0.1, 9), min_size=workers, max_size=workers)))
    return {
        "counts": np.array(counts),
        "window": draw_(st.integers(1, 8)),
        "workers": workers,
        "batch_size": draw_(st.integers(1, 40)),
        "seed": draw_(st.integers(0, 3)),
        "weights": weights,
    }


@given(samplers())
@settings(deadline=None, max_examples=150)
def test_a_pass_of_all_workers_has_every_sample_once(arguments: dict[str, Any]) -> None:
    everybody = [BlockSampler(worker=w, **arguments) for w in range(arguments["workers"])]
    streams = [draw(sampler, 3 * sampler.size) for sampler in everybody]
    for number in range(3):
        shards = [s[number * b.size : (number + 1) * b.size] for s, b in zip(streams, everybody, strict=True)]
        assert sorted(index for shard in shards for index in shard) == list(range(int(arguments["counts"].sum())))


@given(samplers(), st.integers(0, 40), st.data())
@settings(deadline=None, max_examples=150)
def test_a_restored_stream_goes_on(arguments: dict[str, Any], before: int, data: st.DataObject) -> None:
    worker = data.draw(st.integers(0, arguments["workers"] - 1))
    sampler = BlockSampler(worker=worker, **arguments)
    for _ in range(before):
        indices = sampler.next()
        assert indices.dtype == np.int64 and len(indices) == sampler.batch_size
    resumed = BlockSampler(worker=worker, **arguments)
    resumed.restore(sampler.state)
    for _ in range(8):
        assert sampler.state == resumed.state
        assert np.array_equal(sampler.next(), resumed.next())


@given(samplers())
@settings(deadline=None, max_examples=100)
def test_windows_hold_whole_blocks_and_follow_each_other(arguments: dict[str, Any]) -> None:
    sampler = BlockSampler(worker=0, **arguments)
    window, position = sampler.window, 0
    while window.key[0] == 0:
        assert window.start == position
        assert window.size <= sampler.window_size
        assert sorted(window.order.tolist()) == list(range(window.size))
        assert (np.diff(window.first) > 0).all()
        position, window = position + window.size, sampler.after(window)
    assert position == sampler.size and window.key == (1, 0)


def test_blocks_are_mixed_anew_in_every_pass() -> None:
    counts = np.full(64, 10)
    one = BlockSampler(counts, 8, 0, 1, 10, seed=1)
    passes = [draw(one, 640) for _ in range(2)]
    assert passes[0] != passes[1]
    # Eight windows of eight blocks each, in which neighbours in the file are not neighbours in the order.
    windows = [{index // 10 for index in passes[0][start : start + 80]} for start in range(0, 640, 80)]
    assert [len(blocks) for blocks in windows] == [8] * 8
    assert sum(b - a == 1 for a, b in zip(passes[0], passes[0][1:], strict=False)) < 40
    assert draw(BlockSampler(counts, 8, 0, 1, 10, seed=2), 640) != passes[0]
    assert draw(BlockSampler(counts, 8, 0, 1, 10, seed=1), 640) == passes[0]


def test_a_position_that_does_not_exist() -> None:
    sampler = BlockSampler(np.array([5, 5]), 1, 0, 2, 1, 0)
    usage_error("sample 9 of pass 1, is not in a shard of 5", lambda: sampler.restore((1, 9)))
    usage_error("2 samples cannot be shared by 3 workers", lambda: BlockSampler(np.array([2]), 1, 0, 3, 1, 0))
    with pytest.raises(ValueError, match="worker must be from 0 to 1, got 2"):
        BlockSampler(np.array([5]), 1, 2, 2, 1, 0)


# From the file


def large(folder: Path, rows: int = 6000, name: str = "large.h5", **options: Any) -> str:
    """A file of 12 MB: 6,000 samples of 500 numbers, all of which are the sample's own number, as its target is."""
    numbers = np.arange(rows, dtype=np.float32)
    with h5py.File(folder / name, "w") as file:
        file.create_dataset("x", data=np.repeat(numbers[:, None], 500, axis=1), **options)
        file["y"] = numbers
        file["x_test"] = np.repeat(-numbers[:300, None], 500, axis=1)
        file["y_test"] = -numbers[:300]
    return str(folder / name)


def stream(path: str, **options: Any) -> TaskData:
    data = load(path, data_memory_mb=options.pop("memory", MEMORY), **options)
    assert isinstance(data.train, FileSource) and isinstance(data.test, FileSource)
    return data


CHUNKED: list[dict[str, Any]] = [{}, {"chunks": (70, 500)}, {"chunks": (300, 100), "compression": "gzip"}]


@pytest.mark.parametrize("options", CHUNKED)
def test_a_large_file_is_read_as_a_small_one(tmp_path: Path, options: dict[str, Any]) -> None:
    path = large(tmp_path, **options)
    small, streamed = load(path), stream(path)
    assert isinstance(small.train, TensorSource)
    assert streamed.spec == small.spec
    assert (len(streamed.train), len(streamed.test)) == (6000, 300)
    some = np.array([5999, 0, 1, 2, 3000, 17, 17])
    for one, other in ((small.train, streamed.train), (small.test, streamed.test)):
        for indices in (some % 300, np.arange(300)):
            for values, expected in zip(other.batch(indices), one.batch(indices), strict=True):
                assert values.dtype == expected.dtype and torch.equal(values, expected)


@pytest.mark.parametrize("options", CHUNKED)
def test_the_feed_gives_the_samples_of_the_sampler(tmp_path: Path, options: dict[str, Any]) -> None:
    data = stream(large(tmp_path, **options))
    plain, sampler = (data.train.sampler(0, 2, 64, seed=3) for _ in range(2))
    feed = data.train.feed(sampler)
    for _ in range(120):  # more than two passes
        x, y = feed()
        assert y.tolist() == plain.next().tolist()
        assert torch.equal(x, y[:, None].expand(64, 500))
        assert sampler.state == plain.state
    # Back and forth, into the same window and into others.
    for state in ((0, 5), (0, 7), (4, 3000), (4, 0), (2, 1500), sampler.state):
        sampler.restore(state)
        plain.restore(state)
        for _ in range(3):
            assert feed()[1].tolist() == plain.next().tolist()


def test_a_feed_of_a_sampler_that_was_restored_before(tmp_path: Path) -> None:
    data = stream(large(tmp_path))
    whole, rest = (data.train.sampler(1, 2, 50, seed=3) for _ in range(2))
    feed = data.train.feed(whole)
    for _ in range(70):
        feed()
    rest.restore(whole.state)
    resumed = data.train.feed(rest)
    for _ in range(10):
        assert torch.equal(resumed()[1], feed()[1])


def test_windows_are_as_large_as_the_memory_allows(tmp_path: Path) -> None:
    path = large(tmp_path)
    sizes = {}
    for memory in (MEMORY, 12):
        sampler = stream(path, memory=memory).train.sampler(0, 1, 32, seed=0)
        sizes[memory] = sampler.window_size
        assert sampler.window_size * (500 * 4 + 4 + 8) <= memory * 1e6 * 3 / 8
    assert sizes[12] > sizes[MEMORY] > 1000
    data = stream(path, memory=1)
    usage_error(
        r"^--data-memory-mb 1: too little for --dataset .*large.h5, whose pieces take 1.05 MB each .* at least 3$",
        lambda: data.train.sampler(0, 1, 32, seed=0),
    )
    assert stream(path, memory=3).train.sampler(0, 1, 32, seed=0).window_size < 600


def test_bytes_and_labels_of_a_large_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4000, 3, 32, 32), dtype=np.uint8)
    path = write_hdf5(tmp_path / "bytes.h5", x=x, y=(np.arange(4000) % 7).astype(np.uint8)[:, None])
    data = stream(path)
    assert data.spec.classes == 7 and data.spec.input_shape == (3, 32, 32)
    sampler, plain = (data.train.sampler(0, 1, 100, seed=0) for _ in range(2))
    inputs, targets = data.train.feed(sampler)()
    expected = data.train.batch(plain.next())
    assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
    assert torch.equal(inputs, expected[0]) and torch.equal(targets, expected[1])
    assert 0.9 < float(inputs.max()) <= 1


def test_tokens_of_a_large_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 90, (40000, 64), dtype=np.uint16)
    data = stream(write_hdf5(tmp_path / "tokens.h5", x=x, y=x), memory=14)
    assert (data.spec.task, data.spec.classes) == ("tokens", int(x.max()) + 1)
    inputs, targets = data.train.feed(data.train.sampler(0, 1, 10, seed=0))()
    assert inputs.dtype == targets.dtype == torch.int64 and torch.equal(inputs, targets)


def test_several_large_files(tmp_path: Path) -> None:
    first = large(tmp_path, name="a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.repeat(np.arange(6000, 9000, dtype=">f8")[:, None], 500, axis=1)
        file["y"] = np.arange(6000.0, 9000.0)
    data = stream(f"{first},{tmp_path / 'b.h5'}")
    feed = data.train.feed(data.train.sampler(0, 1, 90, seed=0))
    seen = []
    for _ in range(100):
        x, y = feed()
        assert torch.equal(x, y[:, None].expand(90, 500))
        seen += y.tolist()
    assert sorted(seen) == list(range(9000))
    assert everything(data.train)[1].tolist() == list(range(9000))


def test_whole_blocks_are_held_out(tmp_path: Path) -> None:
    numbers = np.arange(6000, dtype=np.float32)
    path = write_hdf5(tmp_path / "data.h5", x=np.repeat(numbers[:, None], 500, axis=1), y=numbers)
    data = stream(path, test_fraction=0.3)
    train, test = (everything(part)[1].tolist() for part in (data.train, data.test))
    assert len(test) == 1800
    assert sorted(train + test) == numbers.tolist()
    assert sum(b - a != 1 for a, b in zip(test, test[1:], strict=False)) <= 12  # 524 rows in a block of 1 MiB
    other = stream(path, test_fraction=0.3, memory=10)
    assert everything(other.test)[1].tolist() == test, "the memory must not change what is held out"
    feed, seen = data.train.feed(data.train.sampler(0, 1, 100, seed=0)), []
    for _ in range(42):
        seen += feed()[1].tolist()
    assert sorted(seen) == train


def test_each_rank_checks_its_part(tmp_path: Path) -> None:
    x, y = np.zeros((6000, 500), np.float32), np.arange(6000) % 10
    y[5000] = 31
    path = write_hdf5(tmp_path / "data.h5", x=x, y=y)
    opened = [open_data(DataOptions(dataset=path, data_memory_mb=MEMORY), w, 2) for w in (None, 0, 1)]
    assert [one.check(part, 3) for part, one in enumerate(opened)] == [9, 9, 31]
    assert opened[0].data(31).spec.classes == 32
    x[4100, 77] = np.inf
    path = write_hdf5(tmp_path / "inf.h5", x=x, y=y)
    opened = [open_data(DataOptions(dataset=path, data_memory_mb=MEMORY), w, 2) for w in (None, 0, 1)]
    assert [one.check(part, 3) for part, one in enumerate(opened[:2])] == [9, 9]
    usage_error("inf.h5: x holds inf in row 4100; must hold finite", lambda: opened[2].check(2, 3))


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("x", 5999, np.nan, "x holds nan in row 5999"),
        ("x", 0, 1e300, r"x holds 1e\+300 in row 0"),
        ("y", 3000, np.inf, "y holds inf in row 3000"),
        ("y_test", 7, np.nan, "y_test holds nan in row 7"),
    ],
)
def test_defects_of_large_files(tmp_path: Path, name: str, row: int, value: float, message: str) -> None:
    arrays = {"x": np.zeros((6000, 300)), "y": np.zeros(6000), "x_test": np.zeros((9, 300)), "y_test": np.zeros(9)}
    arrays[name][row] = value
    path = write_hdf5(tmp_path / "data.h5", **arrays)
    usage_error(f"^--dataset {path}: {message}; must hold finite numbers", lambda: stream(path))


def test_finite_values_whose_sum_is_not(tmp_path: Path) -> None:
    x = np.full((6000, 500), 3e38, np.float32)
    assert len(stream(write_hdf5(tmp_path / "data.h5", x=x, y=np.zeros(6000))).train) == 4800


def test_what_the_thread_meets_is_raised(tmp_path: Path) -> None:
    path = large(tmp_path)
    data = stream(path)
    sampler = data.train.sampler(0, 1, 100, seed=0)
    feed = data.train.feed(sampler)
    feed()
    with open(path, "r+b") as file:
        file.truncate(100_000)
    with pytest.raises(UsageError, match="large.h5: cannot be read as HDF5: the file ends at byte"):
        for _ in range(100):
            feed()
