"""One run of one side: hpcdml under a policy, or a peer. Both tell the same figures."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.peers import SIDES as PEERS
from hpcdml.benchmarks.peers import PeerOptions
from hpcdml.config import POLICIES
from hpcdml.observability.summary import summarise
from hpcdml.storage.run_reader import RunReader

_NARROW = {
    f"{policy}-{wire}": {"policy": policy, "wire_dtype": wire} for policy in POLICIES for wire in ("fp16", "bf16")
}


def run_side(site: Site, workers: int, side: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train once and return what it reached.

    Args:
        side: one of ``all_sides``, or ``alone``.
        options: of ``hpcdml train``, by name with underscores.

    Returns:
        samples, wall_seconds, samples_per_second: of all workers together.
        local_steps, samples_per_second_per_worker, step_seconds: with an entry a worker, the last one the median time
            from the end of one of its steps to that of the next.
        curve: ``(seconds, samples, accuracy, loss)`` of every version evaluated, the last one of the final parameters;
            accuracy is None in a regression. The seconds are those at which the version was made.

    Raises:
        UsageError: a wrong option.
        MachineError: the job could not be started, failed or hung; in one line.
    """
    if side in PEERS:
        return run_peer(site, workers, PeerOptions(side, dict(options)))
    return train_job(site, workers, {**options, **_NARROW.get(side, {"policy": side})})


def all_sides() -> tuple[str, ...]:
    """Everything that can be compared: the policies, also with narrow wires as in ``losp-bf16``, and the peers that
    communicate.
    """
    return (*POLICIES, *_NARROW, *(side for side in PEERS if side != "alone"))


def train_words(options: Mapping[str, Any], output: str) -> list[str]:
    """What ``hpcdml`` is called with to train with ``options``, by name with underscores."""
    words = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in options.items() if value != {}]
    return ["train", *words, f"--output={output}"]


def train_job(site: Site, workers: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run ``hpcdml train`` and return the summary of its run, with what ``run_side`` tells beyond it; raises likewise.

    Args:
        options: by name with underscores.
    """
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder:
        site.run(workers + 1, [sys.executable, "-m", "hpcdml", *train_words(options, f"{folder}/run")])
        run = RunReader(f"{folder}/run")
        steps, scores = run.table("steps"), run.table("evaluations")
        times = [steps["time"][steps["worker"] == worker] for worker in range(1, workers + 1)]
        return {
            **summarise(run),
            "round_intervals": np.diff(run.table("rounds")["time"]).tolist(),
            # What rank 0 spent on them beside serving: a peer's evaluations come after its training.
            "evaluation_seconds": float(scores["seconds"].sum()),
            "step_seconds": [float(np.median(np.diff(t))) if len(t) > 1 else 0.0 for t in times],
            "curve": [
                (float(row["time"]), int(row["samples"]), _finite(row["accuracy"]), _finite(row["loss"]))
                for row in scores
            ],
        }


def run_peer(site: Site, workers: int, options: PeerOptions) -> dict[str, Any]:
    """Run a peer and return what ``run_side`` tells, and payload_bytes, those of the model; raises likewise.

    Args:
        options: ``meeting`` and ``result`` are filled in here.
    """
    options.config()
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder, site.meeting() as meeting:
        result = Path(folder) / "result.json"
        job = dataclasses.replace(options, meeting=meeting, result=str(result))
        site.run(workers, [sys.executable, "-m", "hpcdml.benchmarks.peers", job.to_json()])
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def time_to(target: float, curve: Sequence[Any]) -> float | None:
    """Seconds of the first point of a curve with the target accuracy; None: none has it."""
    return next((point[0] for point in curve if point[2] is not None and point[2] >= target), None)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
