"""What the records of local steps, of which reports draw the time line, cost in samples/s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_job
from hpcdml.benchmarks.table import spread
from hpcdml.config import option

PROGRAMS = {"traced": "hpcdml", "untraced": "hpcdml.benchmarks.untraced"}


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
    repeats: int = option(9, "runs of each side, in turn")
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
    """Train with records of the steps and without, in turn.

    Returns:
        One row a size: milliseconds from step to step with records, samples/s both ways, and the share of samples/s
        that records cost within each turn, of which negative values tell the noise.

    Raises:
        HpcdmlError: a run failed.
    """
    check(options)
    site, rows = Site(), []
    for size in options.hidden:
        speed: dict[str, list[float]] = {side: [] for side in PROGRAMS}
        steps: list[float] = []
        for repeat in range(options.repeats):
            # Each side goes first in every other turn.
            for side in sorted(PROGRAMS, reverse=bool(repeat % 2)):
                found = train_job(site, options.workers, _options(options, int(size)), PROGRAMS[side])
                speed[side].append(found["samples_per_second_of_rounds"])
                if side == "traced":
                    steps += found["step_seconds"]
                log.run({"hidden": size, "repeat": repeat, "side": side, "samples_per_second": speed[side][-1]})
            log(f"{size:g} units, repeat {repeat}: {speed['traced'][-1]:.0f} of {speed['untraced'][-1]:.0f} samples/s")
        costs = [1 - on / off for on, off in zip(speed["traced"], speed["untraced"], strict=True)]
        rows.append(
            {
                "hidden": int(size),
                "step_ms": spread([1e3 * seconds for seconds in steps]),
                "traced": spread(speed["traced"]),
                "untraced": spread(speed["untraced"]),
                "cost": spread(costs),
            }
        )
    return rows


def _options(options: TracingOptions, hidden: int) -> dict[str, Any]:
    return {
        "policy": options.policy,
        "model": "mlp",
        "model_args": {"hidden": hidden},
        "threads": 1,
        "batch_size": options.batch_size,
        "max_seconds": options.seconds,
        "eval_seconds": 10 * options.seconds,
    }
