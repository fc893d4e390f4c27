"""The data of a run: what every loader of this package returns."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdml.training.data.source import Source
from hpcdml.training.data.spec import DataSpec


@dataclass(frozen=True)
class TaskData:
    """Training and test samples with their description.

    Attributes:
        train: training samples; of all workers together, unless ``sharded``.
        test: held-out samples.
        spec: shapes and task, equal on every rank.
        name: the value of ``--dataset``.
        sharded: the samples of ``train`` are this worker's alone, and it draws from all of them.
    """

    train: Source
    test: Source
    spec: DataSpec
    name: str
    sharded: bool = False
