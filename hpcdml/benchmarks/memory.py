"""Rank 0's memory with few workers and with many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need
from hpcdml.benchmarks.runs import train_job
from hpcdml.config import option
from hpcdml.errors import UsageError


@dataclass(frozen=True)
class MemoryOptions:
    """Benchmark"""

    megabytes: float = option(400.0, "size of the model")
    workers: list[float] = option([2, 8], "numbers of workers, one row each")
    policy: str = option("losp", "as for train")
    samples: int = option(400, "samples of all workers together")
    json: bool = option(False, "print JSON instead of a table")


def check(options: MemoryOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    need(options, "megabytes", options.megabytes > 0, "above 0")
    if not options.workers or any(n < 1 or n != int(n) for n in options.workers):
        raise UsageError(f"--workers {options.workers}: must be whole numbers of at least 1")


def run(options: MemoryOptions, log: Log) -> list[dict[str, Any]]:
    """Train a model of a set size with each number of workers on this machine.

    Returns:
        One row a number of workers: rank 0's peak resident memory in MB, and the same over that of the first row.

    Raises:
        HpcdmlError: a run failed.
    """
    check(options)
    rows: list[dict[str, Any]] = []
    for workers in map(int, options.workers):
        summary = train_job(
            Site(),
            workers,
            {
                "policy": options.policy,
                "model": "hpcdml.benchmarks.payload:build",
                "model_args": {"megabytes": options.megabytes},
                "batch_size": 8,
                "threads": 1,
                "max_samples": options.samples,
                "eval_seconds": 1e6,
            },
        )
        peak = summary["server_peak_bytes"] / 1e6
        log.run({"workers": workers, "peak_MB": peak, "rounds": summary["rounds"]})
        log(f"{workers} workers: rank 0 took {peak:.0f} MB at most in {summary['rounds']} rounds")
        first = rows[0]["peak_MB"] if rows else peak
        rows.append({"workers": workers, "rounds": summary["rounds"], "peak_MB": peak, "ratio": peak / first})
    return rows
