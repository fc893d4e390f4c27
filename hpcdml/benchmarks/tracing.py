"""What the records of local steps, of which reports draw the time line, cost in samples/s."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_words
from hpcdml.benchmarks.table import spread
from hpcdml.config import option
from hpcdml.errors import MachineError

STRETCH = 50
"""Local steps of a turn."""


@dataclass(frozen=True)
class TracingOptions:
    """Benchmark"""

    policy: str = option("losp", "as for train")
    workers: int = option(1, "number of workers; each rank should have a core of its own")
    hidden: list[float] = option(
        [256, 1000], "units of the hidden layer, which decide how long a step takes; one row each"
    )
    batch_size: int = option(32, "as for train")
    seconds: float = option(6.0, "length of each run")
    repeats: int = option(5, "runs, of which each takes many turns")
    json: bool = option(False, "print JSON instead of a table")


def check(options: TracingOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    need_counts(options, "workers", "batch_size", "repeats")
    need(options, "seconds", options.seconds > 0, "above 0")
    need(options, "hidden", all(size >= 1 for size in options.hidden), "at least 1")


def run(options: TracingOptions, log: Log) -> list[dict[str, Any]]:
    """Train with records of the steps and without, in turns of a few steps within each run.

    Returns:
        One row a size: milliseconds of a step with records; ``keeping``, the share of the time that records cost, the
        median over all turns of each run; ``sending``, the share in which they are sent; ``cost``, both together.

    Raises:
        HpcdmlError: a run failed.
    """
    check(options)
    site, rows = Site(), []
    for size in options.hidden:
        steps, keeping, sending = [], [], []
        for repeat in range(options.repeats):
            for found in _workers(site, options, int(size)):
                kept, not_kept = found["stretches"][0::2], found["stretches"][1::2]
                turns = list(zip(kept, not_kept, strict=False))[1:]  # the first one warms up
                if not turns:
                    raise MachineError(f"{size:g} units: fewer than {4 * STRETCH} steps in {options.seconds:g} s")
                steps.append(1e3 * median(on for on, _ in turns) / STRETCH)
                keeping.append(median(1 - off / on for on, off in turns))
                sending.append(2 * found["sending"] / sum(found["stretches"]))  # half of the steps are kept
                log.run({"hidden": size, "repeat": repeat, "keeping": keeping[-1], "sending": sending[-1]})
                log(f"{size:g} units, repeat {repeat}: {keeping[-1]:.2%} for keeping, {sending[-1]:.2%} for sending")
        rows.append(
            {
                "hidden": int(size),
                "step_ms": spread(steps),
                "keeping": spread(keeping),
                "sending": spread(sending),
                "cost": spread([k + s for k, s in zip(keeping, sending, strict=True)]),
            }
        )
    return rows


def _workers(site: Site, options: TracingOptions, hidden: int) -> list[dict[str, Any]]:
    """Train once; what each worker tells."""
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder:
        job = {
            "policy": options.policy,
            "model": "mlp",
            "model_args": {"hidden": hidden},
            "threads": 1,
            "batch_size": options.batch_size,
            "max_seconds": options.seconds,
            "eval_seconds": 10 * options.seconds,
        }
        program = [sys.executable, "-m", "hpcdml.benchmarks.traced_in_turns", folder]
        site.run(options.workers + 1, [*program, *train_words(job, f"{folder}/run")])
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
