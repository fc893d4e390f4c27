"""Data sets that need no download: scikit-learn's small ones, and characters of Python's own documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpcdml.errors import UsageError
from hpcdml.training.data.source import TensorSource
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.data.split import split_indices
from hpcdml.training.data.task import TaskData

CLASSIFICATION = ("iris", "wine", "breast_cancer")
REGRESSION = ("diabetes", "linnerud")
NAMES = ("digits", *CLASSIFICATION, *REGRESSION, "characters")
WINDOW = 64

Array = npt.NDArray[Any]


def load_bundled(name: str, test_fraction: float) -> TaskData:
    """Load one of ``NAMES``.

    - ``digits``: float32 (1, 8, 8) from 0 to 1, 10 classes;
    - ``iris``, ``wine``, ``breast_cancer``: float32 (D,), standardised by the training part, classes;
    - ``diabetes``, ``linnerud``: inputs and targets float32, standardised by the training part;
    - ``characters``: int64 windows of 64 characters, the target shifted by one; the last 10 % are the test part.

    Raises:
        UsageError: scikit-learn or the text is not installed.
    """
    if name == "characters":
        return _characters()
    x, y = _arrays(name)
    if name in REGRESSION:
        train, test = split_indices(len(x), test_fraction)
        y = _standardised(y.astype(np.float64), train)
        spec = DataSpec(x.shape[1:], None, "regression", y.shape[1:])
    else:
        train, test = split_indices(len(x), test_fraction, labels=y)
        y = y.astype(np.int64)
        shape = (1, 8, 8) if name == "digits" else x.shape[1:]
        spec = DataSpec(shape, int(y.max()) + 1, "classification", ())
    x = (x / 16).astype(np.float32) if name == "digits" else _standardised(x, train)
    whole = TensorSource(torch.from_numpy(x.reshape(len(x), *spec.input_shape)), torch.from_numpy(y))
    return TaskData(whole.subset(train), whole.subset(test), spec, name)


def _arrays(name: str) -> tuple[Array, Array]:
    if name == "digits" and (file := _file_of_digits()):
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1].astype(np.int64)
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UsageError(f"--dataset {name}: needs scikit-learn; install it with pip install scikit-learn") from error
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(x), np.asarray(y)


def _file_of_digits() -> Path | None:
    """The file that scikit-learn reads: to import it takes a second of every rank's start, and the file 30 ms."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        if (file := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            return file
    return None


def _standardised(values: Array, train: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    mean = values[train].mean(axis=0)
    deviation = values[train].std(axis=0)
    # A constant column becomes zero, not NaN.
    result: npt.NDArray[np.float32] = ((values - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    return result


def _characters() -> TaskData:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageError(
            "--dataset characters: this Python has no module pydoc_data.topics; install its standard library whole"
        ) from error
    text = "".join(topics[key] for key in sorted(topics))
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    vocabulary, tokens = np.unique(points, return_inverse=True)
    stream = torch.from_numpy(tokens.astype(np.int64))
    windows = (len(stream) - 1) // WINDOW
    x = stream[: windows * WINDOW].view(windows, WINDOW)
    y = stream[1 : windows * WINDOW + 1].view(windows, WINDOW)
    held_out = windows // 10
    spec = DataSpec((WINDOW,), len(vocabulary), "tokens", (WINDOW,))
    return TaskData(
        TensorSource(x[:-held_out], y[:-held_out]), TensorSource(x[-held_out:], y[-held_out:]), spec, "characters"
    )
