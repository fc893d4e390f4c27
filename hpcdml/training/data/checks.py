"""Arrays of a file become tensors with a spec; every defect of the data is told by its name and row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpcdml.errors import UsageError
from hpcdml.training.data.source import TensorSource
from hpcdml.training.data.spec import DataSpec, Task

MOST_CLASSES = 1_000_000
"""Labels from here on are taken for identifiers or hashes: a model with so many outputs is a mistake."""

Array = npt.NDArray[Any]


def check_arrays(value: str, arrays: dict[str, Array]) -> tuple[TensorSource, TensorSource | None, DataSpec]:
    """Check and convert arrays to a training source, a test source where the arrays have one, and their spec.

    Real ``x`` and ``y`` become float32; uint8 ``x`` stays bytes, which a batch turns to float32 / 255; other integer
    ``x`` becomes float32. Real ``y`` is regression; integer ``y`` (N,) or (N, 1) is classification; integer ``y``
    (N, T) with integer ``x`` of that shape is tokens, both int64. Classes are the largest label of both parts plus 1.

    Args:
        value: the value of ``--dataset``, for the messages.
        arrays: ``x``, ``y`` and perhaps ``x_test`` and ``y_test``.

    Raises:
        UsageError: the first defect found, with the name of the array and, where there is one, the row.
    """
    option = f"--dataset {value}"
    for there, missing in (("x_test", "y_test"), ("y_test", "x_test")):
        if there in arrays and missing not in arrays:
            raise UsageError(f"{option}: has {there} but no {missing}; both or none must be there")
    for name, array in arrays.items():
        _check_kind(option, name, array)
    suffixes = ("", "_test") if "x_test" in arrays else ("",)
    for suffix in suffixes:
        rows, targets = len(arrays["x" + suffix]), len(arrays["y" + suffix])
        if rows != targets:
            raise UsageError(f"{option}: x{suffix} has {rows} rows and y{suffix} has {targets}; must be as many")
    for name in ("x", "y"):
        if name + "_test" in arrays:
            _check_alike(option, name, arrays[name], arrays[name + "_test"])

    task = _task(option, arrays["x"], arrays["y"])
    largest = max((_largest_label(option, n, a) for n, a in arrays.items() if _is_labels(n, task)), default=-1)
    parts = []
    for suffix in suffixes:
        x = _inputs(option, "x" + suffix, arrays["x" + suffix], task)
        y = _targets(option, "y" + suffix, arrays["y" + suffix], task)
        parts.append(TensorSource(x, y, scale=1 / 255 if x.dtype == torch.uint8 else None))
    train = parts[0]
    spec = DataSpec(
        tuple(train.x.shape[1:]), None if task == "regression" else largest + 1, task, tuple(train.y.shape[1:])
    )
    return train, parts[1] if len(parts) == 2 else None, spec


def _check_kind(option: str, name: str, array: Array) -> None:
    if array.dtype.kind not in "biuf":
        what = "strings" if array.dtype.kind in "SUO" else "values"
        raise UsageError(f"{option}: {name} holds {what} of type {array.dtype}; must hold integers or real numbers")
    if array.ndim == 0:
        raise UsageError(f"{option}: {name} is a single number; must have one row for each sample")
    if array.size == 0:
        raise UsageError(f"{option}: {name} is empty, with shape {array.shape}; must have at least one row")


def _check_alike(option: str, name: str, train: Array, test: Array) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise UsageError(
            f"{option}: rows of {name} have shape {train.shape[1:]} and rows of {name}_test {test.shape[1:]}; "
            "must be equal"
        )
    # Bytes are divided by 255 and other numbers are not: a mixture would be two scales.
    if _family(name, train) != _family(name, test):
        raise UsageError(f"{option}: {name} holds {train.dtype} and {name}_test {test.dtype}; must be of one type")


def _family(name: str, array: Array) -> str:
    if array.dtype.kind == "f":
        return "real"
    return "byte" if name == "x" and array.dtype == np.uint8 else "integer"


def _task(option: str, x: Array, y: Array) -> Task:
    if y.dtype.kind == "f":
        return "regression"
    if x.dtype.kind in "iu" and y.ndim == 2 and x.shape == y.shape:
        return "tokens"
    if y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1):
        return "classification"
    raise UsageError(
        f"{option}: y holds integers of shape {y.shape}; must be (N,) for classes, the shape of an integer x for "
        "tokens, or real numbers for regression"
    )


def _is_labels(name: str, task: Task) -> bool:
    return task == "tokens" or (task == "classification" and name.startswith("y"))


def _largest_label(option: str, name: str, array: Array) -> int:
    flat = array.reshape(len(array), -1)
    if flat.min() < 0:
        row = int(np.argmax((flat < 0).any(axis=1)))
        raise UsageError(f"{option}: {name} holds the label {flat[row].min()} in row {row}; labels count from 0")
    if flat.max() >= MOST_CLASSES:
        row = int(np.argmax((flat >= MOST_CLASSES).any(axis=1)))
        raise UsageError(
            f"{option}: {name} holds the label {flat[row].max()} in row {row}; "
            f"must be the number of a class, below {MOST_CLASSES}"
        )
    return int(flat.max())


def _inputs(option: str, name: str, array: Array, task: Task) -> Tensor:
    if array.ndim == 1:
        array = array[:, None]
    if task == "tokens":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    return _real(option, name, array)


def _targets(option: str, name: str, array: Array, task: Task) -> Tensor:
    if task == "regression":
        return _real(option, name, array)
    if task == "classification":
        array = array.reshape(len(array))
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _real(option: str, name: str, array: Array) -> Tensor:
    with np.errstate(over="ignore"):
        real = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(real.reshape(len(real), -1)).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        values = np.ravel(array[row])
        value = values[np.argmin(np.isfinite(real[row].ravel()))]
        raise UsageError(f"{option}: {name} holds {value} in row {row}; must hold finite numbers (as float32)")
    return torch.from_numpy(real)
