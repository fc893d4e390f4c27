"""Bundled data, and sources of samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset

from hpcdml.training.data import DatasetSource, DataSpec, TensorSource
from hpcdml.training.data.bundled import NAMES
from hpcdml.training.data.source import as_source
from samples import everything, load, usage_error

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
