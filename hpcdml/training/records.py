"""A worker's records of its local steps, sent to the server in blocks beside the pushes."""

from __future__ import annotations

import numpy as np
import torch

from hpcdml.mpi.peer import RECORD_ROWS
from hpcdml.storage.tables import STEPS

COLUMNS = tuple(column.name for column in STEPS.columns if column.name != "worker")
"""What is sent of a step, in this order, as float64: all columns of the table of steps but the worker."""

CAPACITY = RECORD_ROWS - 1


class StepRecords:
    """Collects one row a step until they are sent.

    The loss stays on its device until then, so that a step never waits for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._rows = np.zeros((CAPACITY, len(COLUMNS)))
        self._losses = torch.zeros(CAPACITY, dtype=torch.float64, device=device)
        self._loss_column = COLUMNS.index("loss")
        self.count = 0

    @property
    def full(self) -> bool:
        return self.count == CAPACITY

    def add(self, loss: torch.Tensor, **values: float) -> None:
        """Add a step's row; ``values`` are all of ``COLUMNS`` but the loss."""
        values["loss"] = 0.0
        self._rows[self.count] = [values[name] for name in COLUMNS]
        self._losses[self.count] = loss
        self.count += 1

    def take(self) -> np.ndarray:
        """Return the rows collected, float64 of shape (count, columns), and begin anew."""
        rows = self._rows[: self.count].copy()
        rows[:, self._loss_column] = self._losses[: self.count].cpu().numpy()
        self.count = 0
        return rows


def table_rows(worker: int, rows: np.ndarray) -> np.ndarray:
    """Rows as they were sent, as rows of the table of steps."""
    table = np.zeros(len(rows), STEPS.dtype)
    table["worker"] = worker
    for index, name in enumerate(COLUMNS):
        table[name] = rows[:, index]
    return table
