"""What tests of data share: files of samples, the loader, and the check of a message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcdml.config import DataOptions
from hpcdml.errors import UsageError
from hpcdml.training.data import Source, TaskData, load_data

names = (f"user_data_{i}" for i in itertools.count())


def write_hdf5(path: Path, **arrays: Any) -> str:
    """A file with these arrays, by h5py's defaults."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


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
