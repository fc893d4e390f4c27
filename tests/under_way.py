"""A run that trains beside a test: what its record has so far, and waiting until it has come to something."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import ROUNDS


def rounds(run: Path) -> np.ndarray:
    """Rows of the rounds so far; none while the file is being made."""
    with suppress(UsageError):
        return RunReader(run).table("rounds")
    return np.empty(0, ROUNDS.dtype)


def samples(run: Path) -> int:
    """Training samples of all workers in the rounds so far."""
    return int(rounds(run)["samples"].max(initial=0))


def wait_until(reached: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 100) -> bool:
    """Wait until something is so, the job has ended, or so many seconds are over; returns whether it is so."""
    deadline = time.monotonic() + seconds
    while not reached() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()
