"""Checks of the values in files, piece by piece; every defect is told by file, data set and row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError
from hpcdml.training.data.form import Kind

MOST_CLASSES = 1_000_000
"""Labels from here on are taken for identifiers or hashes: a model with so many outputs is a mistake."""

Array = npt.NDArray[Any]


def needs_check(kind: Kind, dtype: np.dtype[Any]) -> bool:
    """Whether values of this type can be wrong at all: integers that become real numbers cannot."""
    return kind == "labels" or dtype.kind == "f"


def check_rows(option: str, name: str, first: int, rows: Array, kind: Kind) -> int:
    """Check rows as they are stored, the first of which has the number ``first`` in its data set.

    Args:
        option: the start of the message, with the file.

    Returns:
        The largest label; -1 where the rows are no labels.

    Raises:
        UsageError: a label below 0 or of no class, or a number that is not finite as float32.
    """
    if kind == "labels":
        return _largest_label(option, name, first, rows)
    if rows.dtype.kind == "f":
        _check_finite(option, name, first, rows)
    return -1


def _largest_label(option: str, name: str, first: int, rows: Array) -> int:
    flat = rows.reshape(len(rows), -1)
    if flat.min() < 0:
        row = int(np.argmax((flat < 0).any(axis=1)))
        raise UsageError(
            f"{option}: {name} holds the label {flat[row].min()} in row {first + row}; labels count from 0"
        )
    largest = int(flat.max())
    if largest >= MOST_CLASSES:
        row = int(np.argmax((flat >= MOST_CLASSES).any(axis=1)))
        raise UsageError(
            f"{option}: {name} holds the label {flat[row].max()} in row {first + row}; "
            f"must be the number of a class, below {MOST_CLASSES}"
        )
    return largest


def _check_finite(option: str, name: str, first: int, rows: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        real = rows.astype(np.float32, copy=False).reshape(len(rows), -1)
        # The sum tells in one pass, without an array of truth values, that all are finite. If they are, it may still
        # overflow, which the second look settles.
        if np.isfinite(np.add.reduce(real, axis=None)):
            return
    finite = np.isfinite(real).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = rows[row].reshape(-1)[np.argmin(np.isfinite(real[row]))]
        raise UsageError(f"{option}: {name} holds {value} in row {first + row}; must hold finite numbers (as float32)")
