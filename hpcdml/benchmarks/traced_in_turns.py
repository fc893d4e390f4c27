"""``hpcdml`` whose workers keep records of their local steps, of which the time line is made, in turns: on and off.

Run as ``mpirun -n 2 python -m hpcdml.benchmarks.traced_in_turns FOLDER train ...``. Each worker leaves in FOLDER a file
PID.json with the seconds of its stretches, with records and without in turn, and what sending them took. Stretches are
so short that whatever else the machine does is the same on both sides.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hpcdml.benchmarks.tracing import STRETCH
from hpcdml.cli.main import main
from hpcdml.training import worker_loop
from hpcdml.training.records import StepRecords
from hpcdml.training.worker_loop import WorkerLoop

ends: list[float] = []
sending: list[float] = []
_send_records = WorkerLoop._send_records


class _InTurns(StepRecords):
    """In place of ``StepRecords``: the steps of every other stretch are not kept, and so not sent or written either."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._steps = 0

    def add(self, loss: torch.Tensor, **values: float) -> None:
        if self._steps % STRETCH == 0:
            ends.append(time.perf_counter())
        if self._steps // STRETCH % 2 == 0:
            super().add(loss, **values)
        self._steps += 1


def _timed(self: WorkerLoop, now: float) -> None:
    """In place of ``_send_records``: tells how long sending took, as it comes too seldom to show in a stretch."""
    begin = time.perf_counter()
    _send_records(self, now)
    sending.append(time.perf_counter() - begin)


def _tell(folder: Path) -> None:
    found: dict[str, Any] = {"stretches": [end - begin for begin, end in zip(ends, ends[1:], strict=False)]}
    (folder / f"{os.getpid()}.json").write_text(json.dumps({**found, "sending": sum(sending)}))


if __name__ == "__main__":
    vars(worker_loop)["StepRecords"] = _InTurns
    WorkerLoop._send_records = _timed  # type: ignore[method-assign]
    status = main(sys.argv[2:])
    if ends:  # it is a worker
        _tell(Path(sys.argv[1]))
    sys.exit(status)
