"""What the tests of storage write, and how they run a process that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.storage import RunWriter
from hpcdml.storage.tables import STEPS

ROOT = Path(__file__).resolve().parent.parent
STATE: dict[str, tuple[tuple[int, ...], Any]] = {
    "layer.0/strange%name.weight": ((30, 7), "float32"),
    "layer.0.bias": ((7,), np.dtype("float64")),
    "a.counter": ((), "int64"),
    "mask": ((3,), "bool"),
    "nothing": ((0, 4), "float16"),
    "half": ((5,), "bfloat16"),
}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "layer.0/strange%name.weight": rng.normal(size=(30, 7)).astype("f4"),
        "layer.0.bias": rng.normal(size=(7, 3))[:, 1],  # not in one piece
        "a.counter": np.array(12345678901),
        "mask": np.array([True, False, True]),
        "nothing": np.zeros((0, 4), "f2"),
        "half": np.arange(5, dtype="f4"),
    }


def create(folder: Path, overwrite: bool = False, config: dict[str, object] | None = None) -> RunWriter:
    return RunWriter.create(folder, config or {"policy": "losp"}, {"host": "here"}, 2, STATE, overwrite)


def step_rows(first: int, count: int, worker: int = 1) -> np.ndarray:
    rows = np.zeros(count, STEPS.dtype)
    rows["worker"] = worker
    rows["step"] = np.arange(first, first + count)
    rows["time"] = rows["step"] * 0.5
    return rows


def python(code: str, *arguments: object, **kwargs: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, **kwargs)


def finish(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """The output of a process that must end well and say nothing on its standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert (process.returncode, err) == (0, ""), out
    return out


def read_last(process: subprocess.Popen[str], at_least: int = 0) -> int:
    """The last number that a killed process said, or ``at_least``."""
    words = process.communicate()[0].split()
    return int(words[-1]) if words else at_least
