"""``hpcdml`` without the records of local steps, of which the time line is made: what ``bench tracing`` compares with.

Run as ``mpirun -n 2 python -m hpcdml.benchmarks.untraced train ...``.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from hpcdml.cli.main import main
from hpcdml.training import worker_loop
from hpcdml.training.records import COLUMNS, StepRecords


class _Nothing(StepRecords):
    """In place of ``StepRecords``: keeps nothing, so that nothing is sent or written either."""

    def add(self, loss: torch.Tensor, **values: float) -> None:
        pass

    def take(self) -> np.ndarray:
        return np.zeros((0, len(COLUMNS)))


if __name__ == "__main__":
    vars(worker_loop)["StepRecords"] = _Nothing
    sys.exit(main(sys.argv[1:]))
