"""Data: loaders, splits, shards, losses, and the messages for bad inputs."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, Subset, TensorDataset

from hpcdml.config import DataOptions
from hpcdml.errors import UsageError
from hpcdml.storage.datasets import read_arrays
from hpcdml.training.data import (
    DatasetSource,
    DataSpec,
    ShardSampler,
    Source,
    TaskData,
    TensorSource,
    accuracy_counts,
    default_loss,
    load_data,
)
from hpcdml.training.data.bundled import NAMES
from hpcdml.training.data.sampler import shard_sizes
from hpcdml.training.data.source import as_source
from hpcdml.training.data.split import split_indices
from hpcdml.training.factories import call_factory, load_factory

names = (f"user_data_{i}" for i in itertools.count())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder, under a new name, which is returned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(text: str) -> str:
        name = next(names)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.fixture
def hdf5(tmp_path: Path) -> Callable[..., str]:
    def write(**arrays: Any) -> str:
        path = tmp_path / "data.h5"
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        return str(path)

    return write


def load(dataset: str, worker: int | None = 0, workers: int = 2, **options: Any) -> TaskData:
    return load_data(DataOptions(dataset=dataset, **options), worker, workers)


def everything(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    return source.batch(np.arange(len(source)))


def usage_error(match: str, call: Callable[[], object]) -> None:
    """The call fails with one line that matches."""
    with pytest.raises(UsageError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--")


# Bundled data


@pytest.mark.parametrize(
    ("name", "spec", "length"),
    [
        ("digits", DataSpec((1, 8, 8), 10, "classification", ()), 1797),
        ("iris", DataSpec((4,), 3, "classification", ()), 150),
        ("wine", DataSpec((13,), 3, "classification", ()), 178),
        ("breast_cancer", DataSpec((30,), 2, "classification", ()), 569),
        ("diabetes", DataSpec((10,), None, "regression", ()), 442),
        ("linnerud", DataSpec((3,), None, "regression", (3,)), 20),
    ],
)
def test_bundled_shapes(name: str, spec: DataSpec, length: int) -> None:
    data = load(name)
    assert data.spec == spec
    assert data.name == name
    assert not data.sharded
    assert len(data.train) + len(data.test) == length
    assert len(data.test) == round(0.2 * length)
    x, y = data.train.batch(np.array([3, 0, 3]))
    assert x.dtype == torch.float32 and x.shape == (3, *spec.input_shape)
    assert y.dtype == (torch.float32 if spec.task == "regression" else torch.int64)
    assert y.shape == (3, *spec.target_shape)
    assert torch.equal(x[0], x[2])


def test_digits_lie_between_0_and_1() -> None:
    x, y = everything(load("digits").train)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert set(y.tolist()) == set(range(10))


def test_standardised_by_the_training_part() -> None:
    data = load("linnerud")
    for values in everything(data.train):
        torch.testing.assert_close(values.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(3))
    assert everything(data.test)[0].mean(0).abs().max() > 0.01


def test_characters_predict_the_next_one() -> None:
    data = load("characters")
    assert data.spec.task == "tokens" and data.spec.classes is not None
    assert data.spec.input_shape == data.spec.target_shape == (64,)
    x, y = everything(data.train)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert torch.equal(x[1:, 0], y[:-1, -1])
    assert int(x.max()) < data.spec.classes and int(x.min()) >= 0
    assert len(data.test) == (len(data.train) + len(data.test)) // 10


def test_load_is_the_same_on_every_rank() -> None:
    one, other = load("iris", worker=None), load("iris", worker=1)
    assert torch.equal(everything(one.train)[0], everything(other.train)[0])


def test_unknown_name_lists_the_forms() -> None:
    usage_error(
        r"^--dataset digit: must be one of digits, iris.*characters; or an HDF5 .*module:function",
        lambda: load("digit"),
    )
    assert len(NAMES) == 7


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


# Sources


class Squares:
    """A map-style data set that is no tensor: numpy inputs of float64 and a Python int as target."""

    def __init__(self, length: int = 20) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index == 13:
            raise KeyError("row\n13")
        return np.full(3, index, dtype=np.float64), index % 4


class Bulk(Squares):
    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any]]:
        return [(torch.tensor([float(i)]), -i) for i in indices]


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(())


def test_dataset_source_collates() -> None:
    source = DatasetSource(Squares(), "m:f")
    x, y = source.batch(np.array([2, 5]))
    assert x.tolist() == [[2.0] * 3, [5.0] * 3] and x.dtype == torch.float32
    assert y.tolist() == [2, 1] and y.dtype == torch.int64
    assert DatasetSource(Bulk(), "m:f").batch(np.array([4]))[1].tolist() == [-4]


def test_dataset_source_tells_the_failing_sample() -> None:
    source = DatasetSource(Squares(), "m:f")
    usage_error(
        r"^--dataset m:f: a batch of samples raised KeyError: 'row\\n13'$", lambda: source.batch(np.array([13]))
    )


def test_tensor_data_sets_stay_tensors() -> None:
    x, y = torch.arange(12, dtype=torch.float64).view(6, 2), torch.arange(6, dtype=torch.int32)
    whole = TensorDataset(x, y)
    source = as_source(whole, "m:f")
    assert isinstance(source, TensorSource)
    assert source.x.dtype == torch.float32 and source.y.dtype == torch.int64
    part = as_source(Subset(Subset(whole, [5, 3, 1]), [0, 2]), "m:f")
    assert isinstance(part, TensorSource)
    assert part.y.tolist() == [5, 1]


def test_tensor_source_returns_new_tensors() -> None:
    source = TensorSource(torch.ones(4, 2), torch.zeros(4))
    x, _ = source.batch(np.arange(4))
    x.zero_()
    assert float(source.x.sum()) == 8
    with pytest.raises(ValueError, match="equal lengths, got 4 and 3"):
        TensorSource(torch.ones(4), torch.ones(3))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "gives no sample by its index .Endless.; must be a map-style"),
        ({1, 2}, "gives no sample by its index"),
        (torch.utils.data.Dataset(), "Dataset has no length"),
        ([], "holds no samples"),
        (TensorDataset(torch.ones(0, 2), torch.ones(0)), "holds no samples"),
        ([1, 2], r"must be pairs \(input, target\), not int$"),
        ([(1, 2, 3)], r"must be pairs \(input, target\), not tuple of 3$"),
        ([("a", 1)], "the input of a sample must be a tensor, an array or a number, not of type str"),
        ([(1.0, None)], "the target of a sample must be .* NoneType"),
        ([({"a": 1}, 1)], "the input of a sample .* dict"),
        (torch.ones(3, 2), "returned a tensor; must be a data set"),
        (TensorDataset(torch.ones(3)), "not tuple of 1$"),
    ],
)
def test_bad_data_sets(dataset: Any, message: str) -> None:
    usage_error("^--dataset m:f: .*" + message, lambda: as_source(dataset, "m:f"))


# HDF5 files


def test_hdf5_classification_is_split(hdf5: Callable[..., str]) -> None:
    path = hdf5(x=np.random.rand(20, 3), y=np.arange(20, dtype=np.int32)[:, None] % 4)
    data = load(path, test_fraction=0.4)
    assert data.spec == DataSpec((3,), 4, "classification", ())
    assert (len(data.train), len(data.test)) == (12, 8)
    assert torch.bincount(everything(data.test)[1]).tolist() == [2, 2, 2, 2]
    assert everything(data.train)[0].dtype == torch.float32


def test_hdf5_test_part_counts_for_the_classes(hdf5: Callable[..., str]) -> None:
    data = load(hdf5(x=np.ones((4, 2), ">f4"), y=[0, 1, 0, 1], x_test=np.ones((2, 2)), y_test=np.array([1, 6], "u1")))
    assert data.spec.classes == 7
    assert (len(data.train), len(data.test)) == (4, 2)


def test_hdf5_bytes_become_shares_of_255(hdf5: Callable[..., str]) -> None:
    images = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    data = load(hdf5(x=images, y=[0, 1, 2, 3, 4], x_test=images, y_test=[0] * 5))
    assert isinstance(data.train, TensorSource) and data.train.x.dtype == torch.uint8
    x, _ = data.train.batch(np.array([4, 1]))
    torch.testing.assert_close(x, torch.from_numpy(images[[4, 1]].astype(np.float32) / 255))
    split = load(hdf5(x=images, y=[0, 0, 0, 0, 0]))
    assert float(everything(split.train)[0].max()) <= 1


def test_hdf5_regression(hdf5: Callable[..., str]) -> None:
    data = load(hdf5(x=np.arange(10), y=np.random.rand(10, 2)))
    assert data.spec == DataSpec((1,), None, "regression", (2,))
    assert data.spec.outputs == 2


def test_hdf5_tokens(hdf5: Callable[..., str]) -> None:
    x = np.array([[0, 1, 9], [3, 4, 5]], dtype=np.uint8)
    data = load(hdf5(x=x, y=x % 4, x_test=x, y_test=x % 4))
    assert data.spec == DataSpec((3,), 10, "tokens", (3,))
    assert everything(data.train)[0].tolist() == x.tolist()
    assert everything(data.train)[0].dtype == torch.int64


ONES = np.ones((4, 2), dtype=np.float32)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS, "images": ONES}, "has no data set x, which is needed; it holds images, y"),
        ({}, "has no data set x, which is needed; it holds nothing"),
        ({"x": ONES, "labels": LABELS}, "has no data set y"),
        ({"x/a": ONES, "y": LABELS}, "x is a group; must|x is a group; it must"),
        ({"x": h5py.Empty("f4"), "y": LABELS}, "x holds no values"),
        ({"x": ONES, "y": LABELS[:3]}, "x has 4 rows and y has 3"),
        ({"x": ONES[:0], "y": LABELS[:0]}, r"x is empty, with shape \(0, 2\)"),
        ({"x": 1.0, "y": LABELS}, "x is a single number"),
        ({"x": ONES, "y": ["a", "b", "c", "d"]}, "y holds strings of type object"),
        ({"x": ONES, "y": np.array([b"a"] * 4)}, "y holds strings of type .S1"),
        ({"x": ONES.astype(complex), "y": LABELS}, "x holds values of type complex128"),
        ({"x": ONES, "y": np.array([0, 1, -3, -1])}, "y holds the label -3 in row 2; labels count from 0"),
        ({"x": ONES, "y": np.array([0, 1, 2, 2**63], "u8")}, "y holds the label 9223372036854775808 in row 3"),
        ({"x": ONES, "y": np.ones((4, 5), int)}, r"y holds integers of shape \(4, 5\)"),
        ({"x": np.array([[1.0], [np.nan], [np.inf], [2]]), "y": LABELS}, "x holds nan in row 1; must hold finite"),
        ({"x": np.array([1.0, 2, 1e300, 2]), "y": LABELS}, r"x holds 1e\+300 in row 2"),
        ({"x": ONES, "y": np.array([1.0, 2, 3, -np.inf])}, "y holds -inf in row 3"),
        ({"x": ONES, "y": LABELS, "x_test": ONES}, "has x_test but no y_test"),
        ({"x": ONES, "y": LABELS, "y_test": LABELS}, "has y_test but no x_test"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS[:2]}, "x_test has 4 rows and y_test has 2"),
        ({"x": ONES, "y": LABELS, "x_test": ONES[:, :1], "y_test": LABELS}, r"x have shape \(2,\) and .* \(1,\)"),
        ({"x": ONES, "y": LABELS, "x_test": ONES.astype("u1"), "y_test": LABELS}, "x_test uint8; must be of one type"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS * 0.5}, "y_test float64; must be of one type"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS - 1}, "y_test holds the label -1 in row 0"),
        ({"x": ONES * np.nan, "y": LABELS, "x_test": ONES, "y_test": LABELS}, "x holds nan in row 0"),
        ({"x": ONES[:1], "y": LABELS[:1]}, "1 sample cannot be split"),
    ],
)
def test_hdf5_defects(hdf5: Callable[..., str], arrays: dict[str, Any], message: str) -> None:
    path = hdf5(**arrays)
    usage_error(f"^--(dataset {path}|test-fraction 0.2): .*({message})", lambda: load(path))


def test_files_that_are_no_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    usage_error(f"^--dataset no.h5: there is no such file in {tmp_path}$", lambda: load("no.h5"))
    usage_error("^--dataset /no/such: there is no such file$", lambda: load("/no/such"))
    usage_error("is a folder", lambda: load(str(tmp_path)))
    (tmp_path / "text.h5").write_text("x,y\n1,2\n")
    usage_error("text.h5: is not an HDF5 file", lambda: load("text.h5"))
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["x"] = np.ones((1000, 10))
        file["y"] = np.ones(1000)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:3000])
    usage_error("cut.h5: cannot be read as HDF5: ", lambda: load("cut.h5"))
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file["y"] = np.ones(3)
        file.create_dataset("x", shape=(2**50, 16), chunks=(1024, 16), dtype="f4")
    usage_error("huge.h5: does not fit into memory", lambda: load("huge.h5"))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.SoftLink("/nowhere")
        file["y"] = np.ones(3)
    usage_error("link.h5: x is a link that leads nowhere", lambda: load("link.h5"))
    assert read_arrays(tmp_path / "whole.h5")["x"].shape == (1000, 10)


# The user's own data


COMMON = "import torch\nfrom torch.utils.data import TensorDataset, random_split\n"
PAIR = "TensorDataset(torch.rand(8, 2), torch.arange(8) % 3)"


def test_user_pair_and_single(module: Callable[[str], str]) -> None:
    pair = module(COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 2, 7]))")
    data = load(f"{pair}:f")
    assert data.spec == DataSpec((2,), 8, "classification", ())
    assert (len(data.train), len(data.test), data.sharded, data.name) == (8, 4, False, f"{pair}:f")
    single = module(COMMON + f"def f():\n    return {PAIR}")
    data = load(f"{single}:f", test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (6, 2)
    parts = module(COMMON + f"def f():\n    return random_split({PAIR}, [5, 3])")
    data = load(f"{parts}:f")
    assert (len(data.train), len(data.test)) == (5, 3)


def test_user_items_are_scanned_for_classes(module: Callable[[str], str]) -> None:
    text = "def f():\n    return [([float(i)] * 3, i % 5) for i in range(600)]"
    usage_error("the input of a sample must be .* not of type list", lambda: load(f"{module(text)}:f"))
    text = "import numpy as np\ndef f():\n    return [(np.ones((1, 8, 8)), i % 5) for i in range(600)]"
    data = load(f"{module(text)}:f")
    assert data.spec == DataSpec((1, 8, 8), 5, "classification", ())
    assert (len(data.train), len(data.test)) == (480, 120)
    assert isinstance(data.train, DatasetSource)


def test_user_tokens_and_regression(module: Callable[[str], str]) -> None:
    text = COMMON + (
        "def tokens():\n    x = torch.arange(40).view(5, 8)\n    return TensorDataset(x, x // 2)\n"
        "def real():\n    return TensorDataset(torch.rand(5, 2).double(), torch.rand(5, 3).double())\n"
    )
    name = module(text)
    assert load(f"{name}:tokens").spec == DataSpec((8,), 40, "tokens", (8,))
    data = load(f"{name}:real")
    assert data.spec == DataSpec((2,), None, "regression", (3,))
    assert [part.dtype for part in everything(data.train)] == [torch.float32] * 2


HUGE = """
class Huge:
    {classes}
    def __len__(self): return 300000
    def __getitem__(self, i): return 1.0 * i, i % 3
def f(): return Huge(), Huge()
"""


def test_user_classes(module: Callable[[str], str]) -> None:
    huge = module(HUGE.format(classes="pass"))
    usage_error("300000 samples are too many .* set the attribute num_classes", lambda: load(f"{huge}:f"))
    assert load(module(HUGE.format(classes="num_classes = 11")) + ":f").spec.classes == 11
    assert load(module(HUGE.format(classes="classes = ['a', 'b', 'c', 'd']")) + ":f").spec.classes == 4
    wrong = module(HUGE.format(classes="num_classes = 2.5"))
    usage_error("num_classes is 2.5; must be a whole number", lambda: load(f"{wrong}:f"))
    few = module(COMMON + f"def f():\n    d = {PAIR}\n    d.num_classes = 2\n    return d")
    usage_error("holds the label 2; must be below its 2 classes", lambda: load(f"{few}:f"))
    negative = module(COMMON + "def f():\n    return TensorDataset(torch.rand(3, 2), torch.arange(3) - 1)")
    usage_error("holds the label -1; labels count from 0", lambda: load(f"{negative}:f"))


def test_user_shards(module: Callable[[str], str]) -> None:
    text = COMMON + (
        "def f(worker, workers):\n"
        "    n = 2 if worker is None else 10 + worker\n"
        "    d = TensorDataset(torch.full((n, 2), float(workers)), torch.arange(n) % 2)\n"
        "    d.num_classes = 5\n    return d, d\n"
        "def g(worker=0, workers=1):\n    return TensorDataset(torch.ones(4, 1), torch.arange(4))\n"
    )
    name = module(text)
    data = load(f"{name}:f", worker=3, workers=4)
    assert data.sharded and len(data.train) == 13 and data.spec.classes == 5
    assert float(everything(data.train)[0].max()) == 4
    assert len(load(f"{name}:f", worker=None, workers=4).train) == 2
    usage_error("shards of the workers do not tell the number of classes", lambda: load(f"{name}:g"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f():\n    raise ValueError('no\\nnet')", ":f: raised ValueError: no net$"),
        ("def f():\n    raise ValueError", ":f: raised ValueError$"),
        ("import sys\ndef f():\n    sys.exit(3)", ":f: raised SystemExit: 3$"),
        ("def f(path):\n    pass", ":f: raised TypeError: .*missing 1 required positional argument: 'path'"),
        ("def f():\n    return None", ":f: returned None"),
        ("def f():\n    return 1, 2, 3", ":f: returned 3 things"),
        ("def f():\n    return 5", ":f: gives no sample by its index .int."),
        (COMMON + "def f():\n    return torch.ones(2), torch.ones(2)", ":f: returned a tensor"),
        (
            COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 5), torch.arange(4))",
            r":f: inputs are torch.float32 of shape \(2,\) for training and torch.float32 of shape \(5,\) for the test",
        ),
        (COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 2), torch.rand(4))", ":f: targets are"),
        ("def g():\n    pass", r":f: module \w+ has no function f$"),
        ("f = 3", ":f: f is not a function but of type int$"),
        ("1 / 0", r":f: importing \w+ raised ZeroDivisionError: division by zero$"),
        ("import no_such_thing", r":f: importing \w+ raised ModuleNotFoundError: No module named 'no_such_thing'$"),
        ("def f(:", r":f: importing \w+ raised SyntaxError: "),
    ],
)
def test_user_failures(module: Callable[[str], str], text: str, message: str) -> None:
    name = module(text)
    usage_error(f"^--dataset {name}{message}", lambda: load(f"{name}:f"))


# Factories


def test_factory_of_an_installed_module_and_of_a_class() -> None:
    assert load_factory("--model", "json:dumps")([1]) == "[1]"
    assert load_factory("--model", "collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


def test_factory_errors() -> None:
    usage_error("^--model nope.sub:f: there is no module nope ", lambda: load_factory("--model", "nope.sub:f"))
    usage_error("there is no module json.nope ", lambda: load_factory("--model", "json.nope:f"))
    for spec in ("json", "json:", ":f", "a/b.py:f", "json:dumps:x", "json: dumps"):
        usage_error("must have the form package.module:function", partial(load_factory, "--model", spec))


def test_call_factory_keeps_the_cause_and_any_argument_name() -> None:
    with pytest.raises(UsageError, match="^--model json:loads: raised JSONDecodeError: Expecting value") as caught:
        call_factory("--model", "json:loads", load_factory("--model", "json:loads"), s="nope")
    assert isinstance(caught.value.__cause__, ValueError)
    assert call_factory("--model", "b:dict", dict, option=1, spec=2, function=3) == {
        "option": 1,
        "spec": 2,
        "function": 3,
    }


# Losses

CLASSES = DataSpec((4,), 3, "classification", ())
TOKENS = DataSpec((5,), 7, "tokens", (5,))
REAL = DataSpec((4,), None, "regression", ())


def test_auto_loss_follows_the_task() -> None:
    scores, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = torch.nn.functional.cross_entropy(scores, target)
    assert torch.equal(default_loss("auto", CLASSES)(scores, target), expected)
    # One token at a time is the same as all of them flat.
    flat = default_loss("auto", TOKENS)(scores.view(2, 3, 3), target.view(2, 3))
    torch.testing.assert_close(flat, expected)


def test_mse_never_broadcasts() -> None:
    mse = default_loss("auto", REAL)
    output, target = torch.arange(4.0).view(4, 1), torch.arange(4.0) + 2
    assert float(mse(output, target)) == 4.0
    with pytest.raises(ValueError, match=r"output must have the target's shape \(4,\), got \(4, 2\)"):
        mse(torch.ones(4, 2), target)
    with pytest.raises(ValueError, match="shape"):
        mse(torch.ones(2, 3), torch.ones(3, 2))


def test_loss_errors(module: Callable[[str], str]) -> None:
    usage_error("^--loss mse: needs real numbers", lambda: default_loss("mse", CLASSES))
    usage_error("^--loss cross_entropy: needs classes", lambda: default_loss("cross_entropy", REAL))
    usage_error("^--loss hinge: must be auto, cross_entropy, mse or", lambda: default_loss("hinge", CLASSES))
    name = module("def f(a, b):\n    return (a - b).abs()\ndef g(a, b):\n    return f(a, b).mean()\n")
    assert float(default_loss(f"{name}:g", REAL)(torch.ones(3), torch.zeros(3))) == 1
    loss = default_loss(f"{name}:f", REAL)
    usage_error(r"returned a tensor of shape \(3,\); must be", lambda: loss(torch.ones(3), torch.zeros(3)))
    usage_error(f"^--loss {name}:f: raised RuntimeError: The size", lambda: loss(torch.ones(3), torch.zeros(2)))


def test_accuracy_counts() -> None:
    scores = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert accuracy_counts(scores, torch.tensor([0, 1, 1, 2]), CLASSES) == (2, 4)
    assert accuracy_counts(scores.view(2, 2, 3), torch.tensor([[0, 1], [2, 0]]), TOKENS) == (4, 4)
    assert accuracy_counts(torch.ones(4, 1), torch.ones(4), REAL) == (0, 0)
    with pytest.raises(ValueError, match="scores for each class"):
        accuracy_counts(torch.ones(4), torch.zeros(4, dtype=torch.int64), CLASSES)
