"""Data of a run: bundled sets, HDF5 files and the user's own functions, as sources of minibatches with a spec."""

from __future__ import annotations

import os

from hpcdml.config import DataOptions
from hpcdml.errors import UsageError
from hpcdml.training.data.bundled import NAMES, load_bundled
from hpcdml.training.data.files import load_file
from hpcdml.training.data.losses import accuracy_counts, default_loss
from hpcdml.training.data.sampler import ShardSampler
from hpcdml.training.data.source import DatasetSource, Source, TensorSource
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.data.task import TaskData
from hpcdml.training.data.user import load_user
from hpcdml.training.factories import is_factory

__all__ = [
    "DataSpec",
    "DatasetSource",
    "ShardSampler",
    "Source",
    "TaskData",
    "TensorSource",
    "accuracy_counts",
    "default_loss",
    "load_data",
]

FILE_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")


def load_data(options: DataOptions, worker: int | None, workers: int) -> TaskData:
    """Load what ``--dataset`` names: a bundled set, an HDF5 file, or ``package.module:function``.

    Args:
        worker: this worker, counted from 0; None on the server.
        workers: number of workers.

    Raises:
        UsageError: no such data set, or a defect of its contents.
    """
    value = options.dataset
    if value in NAMES:
        return load_bundled(value, options.test_fraction)
    if os.path.exists(value) or value.endswith(FILE_ENDINGS) or os.sep in value:
        return load_file(value, options.test_fraction)
    if is_factory(value):
        return load_user(value, options.test_fraction, worker, workers)
    raise UsageError(
        f"--dataset {value}: must be one of {', '.join(NAMES)}; or an HDF5 file with x and y; "
        "or package.module:function that returns (train, test)"
    )
