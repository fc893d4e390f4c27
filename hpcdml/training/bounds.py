"""How many samples a run takes; without MPI, so that a peer of a benchmark can ask as well."""

from __future__ import annotations

import math

from hpcdml.config import StopOptions

DEFAULT_EPOCHS = 10.0


def sample_bound(stop: StopOptions, epoch_samples: int | None) -> tuple[int | None, float | None]:
    """Samples of all workers together after which to stop, and the epochs: 10 where nothing says when to stop.

    Where the samples of an epoch are not known, epochs are no bound.
    """
    epochs = stop.epochs
    if epoch_samples is None:
        return stop.max_samples, epochs
    if all(bound is None for bound in (epochs, stop.max_samples, stop.max_seconds, stop.target_accuracy)):
        epochs = DEFAULT_EPOCHS
    bounds = [stop.max_samples, None if epochs is None else math.ceil(epochs * epoch_samples)]
    return min((b for b in bounds if b is not None), default=None), epochs


def stop_bounds(stop: StopOptions, epoch_samples: int | None) -> list[float | None]:
    """All that ends a run: samples, seconds, accuracy; None: without such a bound."""
    return [sample_bound(stop, epoch_samples)[0], stop.max_seconds, stop.target_accuracy]
