"""Data of an HDF5 file."""

from __future__ import annotations

from hpcdml.storage.datasets import read_arrays
from hpcdml.training.data.checks import check_arrays
from hpcdml.training.data.split import split_indices
from hpcdml.training.data.task import TaskData


def load_file(path: str, test_fraction: float) -> TaskData:
    """Load ``x`` and ``y``, and ``x_test`` and ``y_test`` where the file has them; else split by a fixed seed.

    Raises:
        UsageError: the file cannot be read, or its arrays have a defect.
    """
    train, test, spec = check_arrays(path, read_arrays(path))
    if test is None:
        labels = train.y.numpy() if spec.task == "classification" else None
        kept, held_out = split_indices(len(train), test_fraction, labels)
        train, test = train.subset(kept), train.subset(held_out)
    return TaskData(train, test, spec, path)
