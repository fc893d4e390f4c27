"""The data of a run: what every loader of this package returns, at once or after a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Opened(ABC):
    """Data that have been found and opened, but whose values have not all been looked at."""

    @abstractmethod
    def check(self, part: int, parts: int) -> int:
        """Check a part of the values, so that several ranks share the work; part 0 of 1 is all of them.

        Returns:
            The largest label found; -1 where there is none.

        Raises:
            UsageError: a value is wrong.
        """

    @abstractmethod
    def data(self, largest: int) -> TaskData:
        """The data, once every part has been checked; ``largest`` is the largest label that any check has found."""


class Ready(Opened):
    """Data that are in memory and checked."""

    def __init__(self, data: TaskData) -> None:
        self._data = data

    def check(self, part: int, parts: int) -> int:
        return -1

    def data(self, largest: int) -> TaskData:
        return self._data
