"""The form of samples in files: which task they are for, and the types that they are held in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.datasets import DataFile
from hpcdml.storage.rows import Rows
from hpcdml.training.data.spec import DataSpec, Task

Kind = Literal["bytes", "real", "labels"]
"""Inputs that become float32 / 255, float32, and classes or tokens, which become int64."""


@dataclass(frozen=True)
class Form:
    """What all files of a set have in common.

    Attributes:
        task: what the samples are for.
        x, y: kinds of inputs and targets.
        input_shape, target_shape: of one sample.
        has_test: whether a file names a test part.
    """

    task: Task
    x: Kind
    y: Kind
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    has_test: bool

    def kind(self, name: str) -> Kind:
        """The kind of ``x``, ``y``, ``x_test`` or ``y_test``."""
        return self.x if name.startswith("x") else self.y

    def held_type(self, name: str, labels: str = "i8") -> np.dtype[Any]:
        """The type in which values are held in memory, with that of labels."""
        return np.dtype({"bytes": "u1", "real": "f4", "labels": labels}[self.kind(name)])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one row in memory."""
        return self.input_shape if name.startswith("x") else self.target_shape

    def spec(self, largest: int) -> DataSpec:
        """The spec, with classes up to the largest label of all files."""
        return DataSpec(
            self.input_shape, None if self.task == "regression" else largest + 1, self.task, self.target_shape
        )


def find_form(files: Sequence[DataFile]) -> Form:
    """Check the shapes and types of all files, without reading a value.

    Real ``x`` and ``y`` become float32; uint8 ``x`` stays bytes, which a batch turns to float32 / 255; other integer
    ``x`` becomes float32. Real ``y`` is regression; integer ``y`` (N,) or (N, 1) is classification; integer ``y``
    (N, T) with integer ``x`` of that shape is tokens.

    Raises:
        UsageError: the first defect found, with the file and the name of the data set.
    """
    for file in files:
        _check_file(file)
    first = files[0]
    task = _task(first.option, first.rows["x"], first.rows["y"])
    for file in files:
        for name, rows in file.rows.items():
            _check_alike(file, name, rows, first)
    x, y = first.rows["x"], first.rows["y"]
    return Form(
        task=task,
        x="labels" if task == "tokens" else "bytes" if x.dtype == np.uint8 else "real",
        y="real" if task == "regression" else "labels",
        input_shape=x.shape[1:] or (1,),
        target_shape=() if task == "classification" else y.shape[1:],
        has_test=any("x_test" in file.rows for file in files),
    )


def _check_file(file: DataFile) -> None:
    option, rows = file.option, file.rows
    for there, missing in (("x_test", "y_test"), ("y_test", "x_test")):
        if there in rows and missing not in rows:
            raise UsageError(f"{option}: has {there} but no {missing}; both or none must be there")
    for name, array in rows.items():
        if array.dtype.kind not in "biuf":
            what = "strings" if array.dtype.kind in "SUO" else "values"
            raise UsageError(f"{option}: {name} holds {what} of type {array.dtype}; must hold integers or real numbers")
        if array.size == 0:
            raise UsageError(f"{option}: {name} is empty, with shape {array.shape}; must have at least one row")
    for suffix in ("", "_test") if "x_test" in rows else ("",):
        inputs, targets = len(rows["x" + suffix]), len(rows["y" + suffix])
        if inputs != targets:
            raise UsageError(f"{option}: x{suffix} has {inputs} rows and y{suffix} has {targets}; must be as many")


def _check_alike(file: DataFile, name: str, rows: Rows, first: DataFile) -> None:
    base = name.removesuffix("_test")
    other = first.rows[base]
    where = base if file is first else f"{base} in {first.path}"
    if rows.shape[1:] != other.shape[1:]:
        raise UsageError(
            f"{file.option}: rows of {where} have shape {other.shape[1:]} and rows of {name} {rows.shape[1:]}; "
            "must be equal"
        )
    # Bytes are divided by 255 and other numbers are not: a mixture would be two scales.
    if _family(base, rows) != _family(base, other):
        raise UsageError(f"{file.option}: {where} holds {other.dtype} and {name} {rows.dtype}; must be of one type")


def _family(name: str, rows: Rows) -> str:
    if rows.dtype.kind == "f":
        return "real"
    return "byte" if name == "x" and rows.dtype == np.uint8 else "integer"


def _task(option: str, x: Rows, y: Rows) -> Task:
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
