"""Runs that nobody trained: ``run.h5`` with steps, updates and rounds that follow from a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.config import TrainConfig
from hpcdml.observability.resources import EVENT, Resources
from hpcdml.storage import RunWriter
from hpcdml.storage.tables import EVALUATIONS, PUSHES, ROUNDS, STEPS

BATCH = 32


def write_run(
    folder: Path,
    compute: Sequence[float] = (0.01, 0.01),
    idle: Sequence[float] = (0.0, 0.0),
    data: float = 0.0,
    steps: int = 200,
    every: int = 2,
    round_seconds: float = 0.01,
    round_bytes: int = 1_000_000,
    cpu: float | None = None,
    accuracy: Sequence[float] = (0.5, 0.9),
    loss: Sequence[float] = (2.0, 0.1),
    staleness: int = 1,
    finish: bool = True,
    resumed: float | None = None,
    **config: Any,
) -> Path:
    """Write a run and return its folder.

    Args:
        compute, idle: of each worker the seconds in every step.
        data: seconds of every step of all workers.
        steps: of the fastest worker; the others take as many as they can in that time.
        every: local steps of the fastest worker in a round.
        round_seconds, round_bytes: of every round.
        cpu: cores that rank 0 keeps busy during rounds; None: not recorded.
        accuracy: of evaluations, evenly over the run.
        loss: training losses at points evenly over the run, joined by straight lines.
        staleness: of all updates.
        finish: whether the run came to its end.
        resumed: when it went on from a checkpoint; None: it did not.
    """
    lengths = [c + i + data for c, i in zip(compute, idle, strict=True)]
    whole = steps * min(lengths)
    closes = np.arange(1, steps // every + 1) * every * min(lengths)
    flat = TrainConfig.from_flat(config).flat()
    with RunWriter.create(folder, flat, {"host": "node7"}, len(compute), {}, True) as writer:
        writer.event(0.0, 0, "started", "synthetic")
        tables: dict[str, list[np.ndarray]] = {"steps": [], "pushes": []}
        for worker, (length, c, i) in enumerate(zip(lengths, compute, idle, strict=True), 1):
            own = _steps(worker, int(whole / length + 1e-9), length, (data, c, i), closes, whole, loss)
            tables["steps"].append(own)
            tables["pushes"].append(_pushes(own, staleness))
        for name, rows in tables.items():
            together = np.concatenate(rows)
            writer.append(name, together[np.argsort(together["time"], kind="stable")])
        writer.append("rounds", _rounds(closes, len(compute), every, round_seconds, round_bytes))
        _evaluate(writer, accuracy, whole)
        if resumed is not None:
            writer.event(resumed, 0, "resumed", "synthetic")
        if cpu is not None:
            used = Resources(cpu * round_seconds * len(closes) + 0.001 * max(len(accuracy) - 1, 0), 10**9)
            writer.event(whole, 0, EVENT, used.text())
        if finish:
            writer.write_parameters({}, whole)
    return folder


def _steps(
    worker: int,
    count: int,
    length: float,
    parts: tuple[float, float, float],
    closes: np.ndarray,
    whole: float,
    loss: Sequence[float],
) -> np.ndarray:
    rows = np.zeros(count, STEPS.dtype)
    rows["worker"], rows["step"] = worker, np.arange(1, count + 1)
    rows["time"] = rows["step"] * length
    rows["samples"] = BATCH * rows["step"]
    rows["data_seconds"], rows["compute_seconds"], rows["idle_seconds"] = parts
    rows["loss"] = np.interp(rows["time"], np.linspace(0, whole, len(loss)), loss)
    # A step is based on the last version that was there when its minibatch began.
    begin = rows["time"] - parts[0] - parts[1]
    rows["version"] = np.searchsorted(closes, begin + 1e-9)
    fresh = np.diff(rows["version"], prepend=0) > 0
    rows["since_push"] = rows["step"] - np.maximum.accumulate(np.where(fresh, rows["step"] - 1, 0))
    return rows


def _pushes(steps: np.ndarray, staleness: int) -> np.ndarray:
    last = np.flatnonzero(steps["since_push"][1:] == 1)
    rows = np.zeros(len(last), PUSHES.dtype)
    rows["worker"], rows["push"] = steps["worker"][:1], np.arange(1, len(last) + 1)
    rows["time"] = steps["time"][last]
    rows["local_steps"] = np.diff(steps["step"][last], prepend=0)
    rows["samples"] = BATCH * rows["local_steps"]
    rows["last_step"] = steps["step"][last]
    rows["round"] = steps["version"][last + 1] + 1
    rows["staleness"] = staleness
    rows["version"] = rows["round"] - 1 - staleness
    return rows


def _rounds(closes: np.ndarray, workers: int, every: int, seconds: float, size: int) -> np.ndarray:
    rows = np.zeros(len(closes), ROUNDS.dtype)
    rows["round"], rows["time"] = np.arange(1, len(closes) + 1), closes
    rows["members"], rows["local_steps"] = workers, workers * every
    rows["samples"] = BATCH * workers * every * rows["round"]
    rows["seconds"], rows["bytes"], rows["loss"] = seconds, size, 1.0
    return rows


def _evaluate(writer: RunWriter, accuracy: Sequence[float], whole: float) -> None:
    for number, value in enumerate(accuracy, 1):
        seconds = whole * number / len(accuracy)
        writer.append("evaluations", EVALUATIONS.rows((number, seconds, 1000 * number, value, 1 - value, 0.001)))
