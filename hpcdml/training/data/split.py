"""The split into training and test samples where the data name no test part."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError

SPLIT_SEED = 20201101
"""Not the run's seed: runs that differ in their seed alone are judged by the same test samples."""

Indices = npt.NDArray[np.int64]


def split_indices(length: int, fraction: float, labels: npt.NDArray[Any] | None = None) -> tuple[Indices, Indices]:
    """Indices of the training and of the test samples, each in rising order.

    Args:
        length: number of samples.
        fraction: share of the test samples; at least one sample is left on either side.
        labels: the class of each sample, (length,), to give every class its share of the test samples (and to keep at
            least one of each for training); None for a plain random split.

    Raises:
        UsageError: fewer than two samples.
    """
    wanted = test_size(length, fraction)
    order = np.random.default_rng(SPLIT_SEED).permutation(length)
    test = order[:wanted] if labels is None else _stratified(order, labels[order], wanted)
    held_out = np.zeros(length, dtype=bool)
    held_out[test] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def test_size(length: int, fraction: float) -> int:
    """Number of test samples: the share ``fraction``, but at least one sample is left on either side.

    Raises:
        UsageError: fewer than two samples.
    """
    if length < 2:
        raise UsageError(
            f"--test-fraction {fraction:g}: {length} sample cannot be split into a training and a test part"
        )
    return min(max(round(length * fraction), 1), length - 1)


def _stratified(order: Indices, labels: npt.NDArray[Any], wanted: int) -> Indices:
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) > len(order) - wanted:
        # More classes than training samples: no split keeps one of each.
        return order[:wanted]
    quotas = counts * (wanted / len(order))
    takes = np.minimum(np.floor(quotas).astype(np.int64), counts - 1)
    while takes.sum() < wanted:
        short = np.where(takes < counts - 1, quotas - takes, -np.inf)
        takes[np.argmax(short)] += 1
    # The first so many of each class in the shuffled order.
    by_class = np.argsort(classes, kind="stable")
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[by_class] = np.arange(len(order)) - np.repeat(starts, counts)
    chosen: Indices = order[ranks < takes[classes]]
    return chosen
