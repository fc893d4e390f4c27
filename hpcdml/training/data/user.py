"""Data of the user's own function: called, looked at, and described as every other data set is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset, Subset

from hpcdml.errors import UsageError
from hpcdml.training.data.source import Source, TensorSource, as_source
from hpcdml.training.data.spec import DataSpec, Task
from hpcdml.training.data.split import split_indices
from hpcdml.training.data.task import TaskData
from hpcdml.training.factories import call_factory, load_factory

OPTION = "--dataset"
MOST_SCANNED = 200_000
"""Samples that are looked at, one by one, for the largest label."""
_SCAN_BATCH = 256


def load_user(value: str, test_fraction: float, worker: int | None, workers: int) -> TaskData:
    """Call ``package.module:function`` and describe the data sets that it returns.

    The function takes no arguments, or ``worker`` (from 0; None on the server) and ``workers``, and then returns this
    worker's own training samples. It returns (train, test), or one data set, which is split at random by a fixed seed.
    float64 becomes float32 and integer targets become int64. Classes are told by an attribute ``num_classes`` or
    ``classes`` of a data set, else by the largest label.

    Raises:
        UsageError: the function fails, or what it returns is no data set that can be described.
    """
    function = load_factory(OPTION, value)
    sharded = takes_shard(function)
    arguments = {"worker": worker, "workers": workers} if sharded else {}
    returned = call_factory(OPTION, value, function, **arguments)
    train_set, test_set = _pair(value, returned)
    train = as_source(train_set, value)
    if test_set is None:
        train, test = _split(value, train, train_set, test_fraction)
    else:
        test = as_source(test_set, value)
    spec = _spec(value, train, test, _declared_classes(value, train_set, test_set), sharded)
    return TaskData(train, test, spec, value, sharded)


def takes_shard(function: Callable[..., Any]) -> bool:
    """Whether the function has parameters named ``worker`` and ``workers``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "worker" in parameters and "workers" in parameters


def _pair(value: str, returned: Any) -> tuple[Any, Any]:
    """Train and test; the latter None where one data set was returned."""
    # random_split returns a list; another list of two may well be a data set of two samples.
    is_split = isinstance(returned, list) and len(returned) == 2 and all(isinstance(r, Dataset) for r in returned)
    if isinstance(returned, tuple) or is_split:
        if len(returned) != 2:
            raise UsageError(f"{OPTION} {value}: returned {len(returned)} things; must be (train, test) or one set")
        return returned[0], returned[1]
    if returned is None:
        raise UsageError(f"{OPTION} {value}: returned None; must be (train, test) or one set")
    return returned, None


def _split(value: str, source: Source, dataset: Any, test_fraction: float) -> tuple[Source, Source]:
    train, test = split_indices(len(source), test_fraction)
    if isinstance(source, TensorSource):
        return source.subset(train), source.subset(test)
    return as_source(Subset(dataset, train.tolist()), value), as_source(Subset(dataset, test.tolist()), value)


def _spec(value: str, train: Source, test: Source, declared: int | None, sharded: bool) -> DataSpec:
    x, y = (part[0] for part in train.batch(np.zeros(1, dtype=np.int64)))
    task = _task(x, y)
    for part, one, other in zip(("inputs", "targets"), (x, y), test.batch(np.zeros(1, dtype=np.int64)), strict=True):
        if one.shape != other[0].shape or one.is_floating_point() != other[0].is_floating_point():
            raise UsageError(
                f"{OPTION} {value}: {part} are {one.dtype} of shape {tuple(one.shape)} for training and "
                f"{other.dtype} of shape {tuple(other[0].shape)} for the test; must be equal"
            )
    classes = None if task == "regression" else _classes(value, task, train, test, declared, sharded)
    return DataSpec(tuple(x.shape), classes, task, tuple(y.shape))


def _task(x: Tensor, y: Tensor) -> Task:
    if y.is_floating_point():
        return "regression"
    if y.ndim == 1 and x.shape == y.shape and not x.is_floating_point():
        return "tokens"
    return "classification"


def _classes(value: str, task: Task, train: Source, test: Source, declared: int | None, sharded: bool) -> int:
    ask = "set the attribute num_classes of the training set"
    if declared is None and sharded:
        # Each worker sees labels of its own, and models of different sizes would be the end of it.
        raise UsageError(f"{OPTION} {value}: shards of the workers do not tell the number of classes; {ask}")
    largest = -1
    for source in (train, test):
        if not isinstance(source, TensorSource):
            if declared is not None:
                continue
            if len(source) > MOST_SCANNED:
                raise UsageError(f"{OPTION} {value}: {len(source)} samples are too many to look for classes; {ask}")
        low, high = _label_range(source, task)
        if low < 0:
            raise UsageError(f"{OPTION} {value}: holds the label {low}; labels count from 0")
        largest = max(largest, high)
    if declared is None:
        return largest + 1
    if largest >= declared:
        raise UsageError(f"{OPTION} {value}: holds the label {largest}; must be below its {declared} classes")
    return declared


def _label_range(source: Source, task: Task) -> tuple[int, int]:
    low, high = 0, -1
    for x, y in _all_batches(source):
        # Tokens of the inputs are of the same vocabulary.
        for labels in (x, y) if task == "tokens" else (y,):
            low, high = min(low, int(labels.min())), max(high, int(labels.max()))
    return low, high


def _all_batches(source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(source, TensorSource):
        yield source.x, source.y
        return
    rows: npt.NDArray[np.int64] = np.arange(len(source))
    for start in range(0, len(rows), _SCAN_BATCH):
        yield source.batch(rows[start : start + _SCAN_BATCH])


def _declared_classes(value: str, *datasets: Any) -> int | None:
    for dataset in datasets:
        while dataset is not None:
            found = getattr(dataset, "num_classes", None)
            if found is not None:
                if isinstance(found, bool) or not isinstance(found, (int, np.integer)) or found < 1:
                    raise UsageError(f"{OPTION} {value}: num_classes is {found!r}; must be a whole number, at least 1")
                return int(found)
            names: Any = getattr(dataset, "classes", None)
            if hasattr(names, "__len__") and len(names) > 0:
                return len(names)
            dataset = dataset.dataset if isinstance(dataset, Subset) else None
    return None
