"""What a run tells of itself that decides which part of it held the others up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcdml.config import PolicyOptions
from hpcdml.observability.curves import curves
from hpcdml.observability.lines import PARTS, WorkerLine, taken, worker_lines
from hpcdml.observability.resources import Resources
from hpcdml.protocol.policies import BUILDERS
from hpcdml.storage import RunReader


@dataclass(frozen=True)
class Measurements:
    """Figures of one run.

    Attributes:
        config: the run's options.
        policy: its name.
        overlaps: whether workers train while their update is under way.
        collective: whether a round takes an update of every worker.
        workers: their ranks.
        steps: local steps of the worker that took the fewest.
        rounds: versions made.
        compute, data, idle: share of the workers' time, from 0 to 1.
        step_seconds: of each worker the median time of a step without what blocked it.
        idle_per_step: of each worker the mean time in a step for which it was blocked.
        rates: of each worker its samples a second.
        idle_per_round: median seconds for which a worker was blocked beside each round.
        steps_per_push: median number of local steps in an update; 0 without updates.
        round_seconds: median time from the first header of a round to its last chunk; nan without rounds.
        round_every: median time from one round to the next; nan with fewer than two.
        round_bytes: median number of bytes received for a round.
        server_cpu: cores that rank 0 kept busy while rounds were under way, or workers blocked if that was longer;
            None: not known before the run's end.
        staleness: mean number of versions between an update's base and the update.
        best_accuracy, final_accuracy: on the held-out data; nan if there is none.
        least_loss, final_loss: least and last mean training loss of a twentieth of the run; inf if it was not finite.
    """

    policy: str
    overlaps: bool
    collective: bool
    workers: tuple[int, ...]
    steps: int
    rounds: int
    compute: float = 0.0
    data: float = 0.0
    idle: float = 0.0
    step_seconds: tuple[float, ...] = ()
    idle_per_step: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    idle_per_round: float = 0.0
    steps_per_push: float = 0.0
    round_seconds: float = math.nan
    round_every: float = math.nan
    round_bytes: float = 0.0
    server_cpu: float | None = None
    staleness: float = 0.0
    best_accuracy: float = math.nan
    final_accuracy: float = math.nan
    least_loss: float = math.nan
    final_loss: float = math.nan
    config: dict[str, Any] = field(default_factory=dict)


def measure(run: RunReader, lines: list[WorkerLine] | None = None) -> Measurements:
    """The figures of a run, finished or not.

    Raises:
        UsageError: the run file is damaged.
    """
    lines = worker_lines(run) if lines is None else lines
    rounds, pushes, evaluations = run.table("rounds"), taken(run.table("pushes")), run.table("evaluations")
    policy = str(run.config.get("policy"))
    kind = BUILDERS[policy](PolicyOptions()) if policy in BUILDERS else None
    spent = {part: sum(float(line.parts[part].sum()) for line in lines) for part in PARTS}
    whole = sum(spent.values()) or 1.0
    accuracy = evaluations["accuracy"][np.isfinite(evaluations["accuracy"])]
    losses = curves(lines, 20).loss
    losses = np.where(np.isfinite(losses), losses, np.inf)
    return Measurements(
        config=dict(run.config),
        policy=policy,
        overlaps=kind is not None and kind.overlaps,
        collective=kind is None or kind.collective,
        workers=tuple(line.worker for line in lines),
        steps=min((len(line.rows) for line in lines), default=0),
        rounds=len(rounds),
        compute=spent["compute"] / whole,
        data=spent["data"] / whole,
        idle=spent["idle"] / whole,
        step_seconds=tuple(_median(line.end - line.ready) for line in lines),
        idle_per_step=tuple(float(line.parts["idle"].mean()) if len(line.rows) else 0.0 for line in lines),
        rates=tuple(_rate(line) for line in lines),
        idle_per_round=_median(np.concatenate([line.parts["idle"][line.fresh] for line in lines] or [np.zeros(0)])),
        steps_per_push=_median(pushes["local_steps"]) if len(pushes) else 0.0,
        round_seconds=_median(rounds["seconds"]),
        round_every=_median(np.diff(rounds["time"])),
        round_bytes=_median(rounds["bytes"]) if len(rounds) else 0.0,
        server_cpu=_server_cpu(run, rounds, evaluations, spent["idle"] / max(len(lines), 1)),
        staleness=float(pushes["staleness"].mean()) if len(pushes) else 0.0,
        best_accuracy=float(accuracy.max()) if len(accuracy) else math.nan,
        final_accuracy=float(accuracy[-1]) if len(accuracy) else math.nan,
        least_loss=float(losses.min()) if len(losses) else math.nan,
        final_loss=float(losses[-1]) if len(losses) else math.nan,
    )


def _server_cpu(run: RunReader, rounds: np.ndarray, evaluations: np.ndarray, blocked: float) -> float | None:
    events = run.events()
    used = Resources.find(events)
    # Of a run that was resumed the figure is about its last part.
    since = max((seconds for seconds, _, kind, _ in events if kind == "resumed"), default=0.0)
    last = rounds["time"][-1:].sum()
    rounds, evaluations = rounds[rounds["time"] > since], evaluations[evaluations["time"] > since]
    if used is None or not len(rounds):
        return None
    blocked *= 1.0 - since / float(last)
    end = np.maximum.accumulate(rounds["time"])
    begin = np.maximum(rounds["time"] - rounds["seconds"], np.concatenate([[-np.inf], end[:-1]]))
    # A round counts from its first header, and until it is aggregated; short ones cost rank 0 most before and after.
    seconds = max(float(np.maximum(end - begin, 0.0).sum()), blocked)
    # Evaluations run in a thread of the same process. The last one comes after serving and is not in the figure.
    serving = used.cpu_seconds - float(evaluations["seconds"][:-1].sum())
    return max(serving, 0.0) / seconds if seconds > 0 else None


def _rate(line: WorkerLine) -> float:
    wall = float(line.end[-1] - line.begin[0]) if len(line.rows) else 0.0
    return float(line.rows["samples"][-1]) / wall if wall > 0 else 0.0


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan
