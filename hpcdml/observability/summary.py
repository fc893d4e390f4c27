"""The figures of a run, computed from its tables: what ``report`` shows and ``report --json`` gives to programs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcdml.observability.lines import by_worker, taken
from hpcdml.observability.resources import Resources
from hpcdml.storage import RunReader

_PARTS = ("data", "compute", "idle")
_PER_WORKER = (
    "worker_ranks",
    "local_steps",
    "samples_per_worker",
    "samples_per_second_per_worker",
    "wall_seconds_per_worker",
    "data_fraction",
    "compute_fraction",
    "idle_fraction",
)


def summarise(run: RunReader) -> dict[str, Any]:
    """The figures of a run as plain numbers, texts, lists and None: nothing that JSON does not know.

    Lists have one entry per worker, in the order of ``worker_ranks``. Figures of a run that has not come so far are 0
    where they are counts or sums and None where they are not defined.

    Returns:
        policy: name of the synchronisation policy.
        workers: number of workers.
        samples: samples that all workers together have trained on.
        samples_per_second: samples / wall_seconds.
        rounds: versions of the global parameters that were made.
        wall_seconds: from the start of the first step of any worker to the end of the last step of any.
        local_steps: steps of each worker.
        idle_fraction: share of each worker's own wall time that it was blocked on communication, from 0 to 1.
        final_accuracy, final_loss: of the last evaluation, on the held-out data.
        time_to_target_seconds: when the first evaluated version with the target_accuracy was made; None if none was.
        target_accuracy: the option; best_accuracy, best_loss: over all evaluations; evaluations: their number.
        training_loss: the last known mean over the workers' steps.
        worker_ranks, samples_per_worker, samples_per_second_per_worker, wall_seconds_per_worker: of each worker.
        data_fraction, compute_fraction: as idle_fraction, for waiting for data and for computing.
        pushes, staleness_mean, staleness_max: over all pushes that were taken; staleness counts versions.
        refused_pushes: pushes whose updates were refused.
        local_steps_per_round, members_per_round, round_seconds_median: over the rounds; bytes_received: their sum.
        server_peak_bytes: largest resident memory of rank 0, known when training has ended.
        finished: whether the run came to its end; status: its last event; stop_reason: text of the last "stopping".
        dataset, model, created, host, path: from the head of the file.

    Raises:
        UsageError: the run file is damaged.
    """
    config = run.config
    steps, pushed, rounds = run.table("steps"), run.table("pushes"), run.table("rounds")
    pushes = taken(pushed)
    events = run.events()
    last = events[-1] if events else None
    used = Resources.find(events)
    stops = [text for _, _, kind, text in events if kind in ("stopping", "stopped")]
    summary: dict[str, Any] = {"policy": config.get("policy"), "workers": run.workers}
    summary |= _speed(run, steps)
    summary |= {
        "rounds": len(rounds),
        "local_steps_per_round": _mean(rounds["local_steps"]),
        "members_per_round": _mean(rounds["members"]),
        "round_seconds_median": _number(np.median(rounds["seconds"])) if len(rounds) else None,
        "bytes_received": int(rounds["bytes"].sum()),
        "pushes": len(pushes),
        "refused_pushes": len(pushed) - len(pushes),
        "staleness_mean": _mean(pushes["staleness"]),
        "staleness_max": int(pushes["staleness"].max()) if len(pushes) else None,
        "training_loss": _last_finite(rounds["loss"]) if len(rounds) else _last_finite(steps["loss"]),
    }
    summary |= _quality(run.table("evaluations"), config.get("target_accuracy"))
    summary |= {
        "server_peak_bytes": None if used is None else used.peak_bytes,
        "finished": any(kind == "finished" for _, _, kind, _ in events),
        "status": None if last is None else f"{last[2]}: {last[3]}" if last[3] else last[2],
        "stop_reason": stops[-1] if stops else None,
        "dataset": config.get("dataset"),
        "model": config.get("model"),
        "created": run.created,
        "host": run.environment.get("host"),
        "path": str(run.path),
    }
    return summary


def _speed(run: RunReader, steps: np.ndarray) -> dict[str, Any]:
    """What the workers did, by worker and together."""
    rows_of = by_worker(steps)
    ranks = sorted({*range(1, run.workers + 1), *rows_of})  # workers may have joined later
    starts, ends = [], []
    result: dict[str, list[Any]] = {name: [] for name in _PER_WORKER}
    for rank in ranks:
        rows = rows_of.get(rank, steps[:0])
        samples, wall = 0, 0.0
        parts: dict[str, float] = {}
        if len(rows):
            begin = float(rows["time"][0]) - sum(float(rows[f"{part}_seconds"][0]) for part in _PARTS)
            starts.append(begin)
            ends.append(float(rows["time"][-1]))
            samples, wall = int(rows["samples"][-1]), ends[-1] - begin
            parts = {part: float(rows[f"{part}_seconds"].sum(dtype=np.float64)) for part in _PARTS}
        result["worker_ranks"].append(rank)
        result["local_steps"].append(len(rows))
        result["samples_per_worker"].append(samples)
        result["wall_seconds_per_worker"].append(_number(wall) or 0.0)
        result["samples_per_second_per_worker"].append(_ratio(samples, wall) or 0.0)
        for part in _PARTS:
            result[f"{part}_fraction"].append(_ratio(parts.get(part, 0.0), wall))
    total = sum(result["samples_per_worker"])
    wall_seconds = max(ends) - min(starts) if starts else 0.0
    return {
        "samples": total,
        "samples_per_second": _ratio(total, wall_seconds) or 0.0,
        "wall_seconds": _number(wall_seconds) or 0.0,
        **result,
    }


def _quality(evaluations: np.ndarray, target: float | None) -> dict[str, Any]:
    """How good the model became on the held-out data, and when."""
    accuracy, loss = evaluations["accuracy"], evaluations["loss"]
    reached = np.flatnonzero(accuracy >= target) if target is not None else np.empty(0, int)
    return {
        "evaluations": len(evaluations),
        "final_accuracy": _number(accuracy[-1]) if len(evaluations) else None,
        "final_loss": _number(loss[-1]) if len(evaluations) else None,
        "best_accuracy": _number(accuracy[np.isfinite(accuracy)].max(initial=-math.inf)),
        "best_loss": _number(loss[np.isfinite(loss)].min(initial=math.inf)),
        "target_accuracy": target,
        "time_to_target_seconds": _number(evaluations["time"][reached[0]]) if len(reached) else None,
    }


def _number(value: Any) -> float | None:
    """A plain float; None where it is not finite, which JSON cannot say."""
    number = float(value)
    return number if math.isfinite(number) else None


def _ratio(part: float, whole: float) -> float | None:
    return _number(part / whole) if whole > 0 else None


def _mean(column: np.ndarray) -> float | None:
    return _number(column.mean()) if len(column) else None


def _last_finite(column: np.ndarray) -> float | None:
    finite = column[np.isfinite(column)]
    return float(finite[-1]) if len(finite) else None
