"""What the step records of all workers add up to, for the progress bar."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from hpcdml.training.records import COLUMNS


@dataclass
class Tally:
    """What the progress bar shows, from the step records that have come in.

    Attributes:
        loss: sum of the losses of ``steps`` local steps since the last round.
        done: by worker, its local steps and its samples since the start.
        idle: seconds in which workers were blocked, of ``busy`` seconds in all, since the start.
    """

    loss: float = 0.0
    steps: int = 0
    idle: float = 0.0
    busy: float = 0.0
    last_loss: float = math.nan
    done: dict[int, tuple[int, int]] = field(default_factory=dict)
    _columns: dict[str, int] = field(default_factory=lambda: {name: i for i, name in enumerate(COLUMNS)})

    def add(self, worker: int, rows: np.ndarray) -> None:
        """Count a block of step records of a worker, float64 of shape (rows, columns)."""
        if len(rows):
            self.done[worker] = int(rows[-1, self._columns["step"]]), int(rows[-1, self._columns["samples"]])
        sums = rows.sum(axis=0)
        idle, data, compute = (sums[self._columns[n]] for n in ("idle_seconds", "data_seconds", "compute_seconds"))
        self.loss += sums[self._columns["loss"]]
        self.steps += len(rows)
        self.idle += idle
        self.busy += idle + data + compute

    def mean_loss(self) -> float:
        """Mean loss since the last call; nan if there was no step."""
        mean = self.loss / self.steps if self.steps else math.nan
        self.loss, self.steps = 0.0, 0
        if not math.isnan(mean):
            self.last_loss = mean
        return mean
