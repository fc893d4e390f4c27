"""A worker's records of its local steps, sent to the server in blocks beside the pushes."""

from __future__ import annotations

import operator

import numpy as np
import torch

from hpcdml.mpi.peer import RECORD_ROWS
from hpcdml.storage.tables import STEPS

COLUMNS = tuple(column.name for column in STEPS.columns if column.name != "worker")
"""What is sent of a step, in this order, as float64: all columns of the table of steps but the worker."""

CAPACITY = RECORD_ROWS - 1


_in_order = operator.itemgetter(*COLUMNS)


class StepRecords:
    """Collects one row a step until they are sent.

    The loss stays on its device until then, so that a step never waits for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._rows: list[tuple[float, ...]] = []
        on_host = device.type == "cpu"
        self._losses = None if on_host else torch.zeros(CAPACITY, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        """Rows that are not sent."""
        return len(self._rows)

    @property
    def full(self) -> bool:
        return len(self._rows) == CAPACITY

    def add(self, loss: torch.Tensor, **values: float) -> None:
        """Add a step's row; ``values`` are all of ``COLUMNS`` but the loss."""
        # A list and an item cost a third of writing into arrays, which are made once for many rows.
        if self._losses is None:
            values["loss"] = loss.item()
        else:
            values["loss"] = 0.0
            self._losses[len(self._rows)] = loss
        self._rows.append(_in_order(values))

    def take(self) -> np.ndarray:
        """Return the rows collected, float64 of shape (count, columns), and begin anew."""
        rows = np.array(self._rows, np.float64).reshape(-1, len(COLUMNS))
        if self._losses is not None:
            rows[:, COLUMNS.index("loss")] = self._losses[: len(rows)].cpu().numpy()
        self._rows.clear()
        return rows


def table_rows(worker: int, rows: np.ndarray) -> np.ndarray:
    """Rows as they were sent, as rows of the table of steps."""
    table = np.zeros(len(rows), STEPS.dtype)
    table["worker"] = worker
    for index, name in enumerate(COLUMNS):
        table[name] = rows[:, index]
    return table
