"""Samples by index: one small interface over tensors in memory and over any map-style torch data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset, TensorDataset, default_collate

from hpcdml.errors import UsageError
from hpcdml.training.data.sampler import Sampler, ShardSampler
from hpcdml.training.factories import one_line

Indices = npt.NDArray[np.int64]
Feed = Callable[[], tuple[Tensor, Tensor]]
"""Returns the inputs and targets of the next minibatch, new CPU tensors of the caller's."""


class Source(ABC):
    """Samples that are drawn by their index."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the samples at ``indices``, stacked in that order; new CPU tensors of the caller's.

        Args:
            indices: int64, of shape (B,), each from 0 to ``len(self) - 1``.
        """

    def sampler(self, worker: int, workers: int, batch_size: int, seed: int, weights: Sequence[float] = ()) -> Sampler:
        """The order in which one of several workers draws these samples; arguments and errors as ``ShardSampler``."""
        return ShardSampler(len(self), worker, workers, batch_size, seed, weights)

    def feed(self, sampler: Sampler) -> Feed:
        """A function that draws minibatches in the order of the sampler, which this source has made.

        It goes on from wherever the sampler stands, also after its ``restore``.
        """
        return lambda: self.batch(sampler.next())


class TensorSource(Source):
    """Samples in two tensors in memory.

    Attributes:
        x: inputs, (N, ...).
        y: targets, (N, ...).
        scale: None, or what the inputs are multiplied by as they are turned to float32. Bytes stay bytes in memory that
            way, a quarter of the size, which every rank of a node holds.
    """

    def __init__(self, x: Tensor, y: Tensor, scale: float | None = None) -> None:
        """Keep the tensors, on the CPU and contiguous, without a copy where they are so.

        Raises:
            ValueError: the lengths differ.
        """
        if len(x) != len(y):
            raise ValueError(f"x and y must have equal lengths, got {len(x)} and {len(y)}")
        self.x = x.detach().cpu().contiguous()
        self.y = y.detach().cpu().contiguous()
        self.scale = scale

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        # index_select takes half the time of x[rows], and this runs for every minibatch.
        rows = torch.from_numpy(indices)
        x = self.x.index_select(0, rows)
        if self.scale is not None:
            x = x.to(torch.float32).mul_(self.scale)
        return x, self.y.index_select(0, rows)

    def subset(self, indices: Indices) -> TensorSource:
        """A source of its own with the samples at ``indices``."""
        rows = torch.from_numpy(indices)
        return TensorSource(self.x.index_select(0, rows), self.y.index_select(0, rows), self.scale)


class DatasetSource(Source):
    """Samples of a map-style torch data set, collated as a DataLoader would; types as in ``as_model_types``."""

    def __init__(self, dataset: Any, option_value: str) -> None:
        """Check the data set and its first item.

        Args:
            dataset: has ``__len__`` and ``__getitem__`` (``__getitems__`` is taken where it is there).
            option_value: the value of ``--dataset``, for the messages.

        Raises:
            UsageError: no length, no samples, or the items are not pairs of tensors or numbers.
        """
        self._dataset = dataset
        self._value = option_value
        self._length = _length(dataset, option_value)
        many = getattr(dataset, "__getitems__", None)
        self._many = many if callable(many) else None
        self._check_first()

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """As for every source.

        Raises:
            UsageError: the data set raised, or its items do not form a batch.
        """
        rows = indices.tolist()
        try:
            items = self._many(rows) if self._many is not None else [self._dataset[row] for row in rows]
            x, y = default_collate(items)
        except Exception as error:
            raise UsageError(f"--dataset {self._value}: a batch of samples raised {one_line(error)}") from error
        return as_model_types(x, y)

    def _check_first(self) -> None:
        option = f"--dataset {self._value}"
        try:
            item = self._dataset[0]
        except Exception as error:
            raise UsageError(f"{option}: the first sample raised {one_line(error)}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            got = type(item).__name__
            got += f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
            raise UsageError(f"{option}: samples must be pairs (input, target), not {got}")
        for part, value in zip(("input", "target"), item, strict=True):
            if not isinstance(value, (Tensor, np.ndarray, np.generic, int, float)):
                raise UsageError(
                    f"{option}: the {part} of a sample must be a tensor, an array or a number, "
                    f"not of type {type(value).__name__}"
                )
        self.batch(np.zeros(1, dtype=np.int64))


def as_source(dataset: Any, option_value: str) -> Source:
    """The source for a torch data set: tensors in memory where it is no more than those, else the data set itself.

    Raises:
        UsageError: as ``DatasetSource`` raises it.
    """
    if isinstance(dataset, Tensor):
        raise UsageError(f"--dataset {option_value}: returned a tensor; must be a data set, as TensorDataset(x, y) is")
    tensors = _tensors(dataset)
    if tensors is None:
        return DatasetSource(dataset, option_value)
    if len(tensors[0]) == 0:
        raise UsageError(f"--dataset {option_value}: holds no samples")
    return TensorSource(*as_model_types(*tensors))


def as_model_types(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets in the types that models and losses take: float64 as float32, integer targets as int64."""
    if x.dtype == torch.float64:
        x = x.to(torch.float32)
    if y.dtype == torch.float64:
        y = y.to(torch.float32)
    elif y.dtype != torch.int64 and not y.is_floating_point():
        y = y.to(torch.int64)
    return x, y


def _tensors(dataset: Any) -> tuple[Tensor, Tensor] | None:
    # Exact types: a subclass may do anything in its __getitem__.
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[0], dataset.tensors[1]
    if type(dataset) is Subset:
        whole = _tensors(dataset.dataset)
        if whole is not None:
            rows = torch.as_tensor(dataset.indices, dtype=torch.int64)
            return whole[0].cpu().index_select(0, rows), whole[1].cpu().index_select(0, rows)
    return None


def _length(dataset: Any, option_value: str) -> int:
    option = f"--dataset {option_value}"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{option}: gives no sample by its index ({type(dataset).__name__}); must be a map-style data set, "
            "with __len__ and __getitem__"
        )
    try:
        length = len(dataset)
    except Exception as error:
        raise UsageError(f"{option}: {type(dataset).__name__} has no length; define __len__") from error
    if length == 0:
        raise UsageError(f"{option}: holds no samples")
    return length
