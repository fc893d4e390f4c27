"""Data of a run: bundled sets, HDF5 files and the user's own functions, as sources of minibatches with a spec."""

from __future__ import annotations

from hpcdml.config import DataOptions
from hpcdml.errors import UsageError
from hpcdml.training.data.bundled import NAMES, load_bundled
from hpcdml.training.data.files import OpenedFiles
from hpcdml.training.data.losses import accuracy_counts, default_loss
from hpcdml.training.data.paths import names_files
from hpcdml.training.data.sampler import Sampler, ShardSampler
from hpcdml.training.data.source import DatasetSource, Source, TensorSource
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.data.task import Opened, Ready, TaskData
from hpcdml.training.data.user import load_user
from hpcdml.training.factories import is_factory

__all__ = [
    "DataSpec",
    "DatasetSource",
    "Opened",
    "Sampler",
    "ShardSampler",
    "Source",
    "TaskData",
    "TensorSource",
    "accuracy_counts",
    "default_loss",
    "load_data",
    "open_data",
]


def load_data(options: DataOptions, worker: int | None, workers: int) -> TaskData:
    """Open, check and return the data; arguments and errors as ``open_data`` and ``Opened.check``."""
    opened = open_data(options, worker, workers)
    return opened.data(opened.check(0, 1))


def open_data(options: DataOptions, worker: int | None, workers: int) -> Opened:
    """Open what ``--dataset`` names: a bundled set, HDF5 files, or ``package.module:function``.

    Args:
        worker: this worker, counted from 0; None on the server.
        workers: number of workers.

    Raises:
        UsageError: no such data set, or a defect of its shapes or types; of its values, where it is in memory.
    """
    value = options.dataset
    if value in NAMES:
        return Ready(load_bundled(value, options.test_fraction))
    if names_files(value):
        return OpenedFiles(options)
    if is_factory(value):
        return Ready(load_user(value, options.test_fraction, worker, workers))
    raise UsageError(
        f"--dataset {value}: must be one of {', '.join(NAMES)}; or an HDF5 file with x and y, or several; "
        "or package.module:function that returns (train, test)"
    )
