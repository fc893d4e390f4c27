"""What rank 0's processor spends on a byte that is aggregated, beside adding it in place; transport apart."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need_counts
from hpcdml.benchmarks.table import spread
from hpcdml.config import option
from hpcdml.errors import UsageError

TRAFFIC = 400.0
"""MB that are aggregated in a measurement, whatever the model."""


@dataclass(frozen=True)
class ServerOptions:
    """Benchmark"""

    megabytes: list[float] = option([4, 40, 400], "sizes of models, one row each")
    workers: int = option(2, "workers whose pushes come from memory")
    chunk_kib: int = option(512, "as for train")
    repeats: int = option(5, "measurements, serving and adding in turn")
    json: bool = option(False, "print JSON instead of a table")


def check(options: ServerOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    if not options.megabytes or not all(0.1 <= size <= 4000 for size in options.megabytes):
        raise UsageError(f"--megabytes {options.megabytes}: must be numbers from 0.1 to 4000")
    need_counts(options, "workers", "chunk_kib", "repeats")


def run(options: ServerOptions, log: Log) -> list[dict[str, Any]]:
    """Serve from memory (see ``serving``) and add the same bytes in place with torch, in turn.

    Returns:
        One row a size: nanoseconds of CPU time a byte of both, and their ratio.

    Raises:
        HpcdmlError: a job failed.
    """
    check(options)
    rows = []
    for size in options.megabytes:
        job = {
            "megabytes": size,
            "workers": options.workers,
            "chunk_bytes": options.chunk_kib * 1024,
            "rounds": max(3, round(TRAFFIC / size / options.workers)),
            "repeats": options.repeats,
        }
        out = Site().run(1, [sys.executable, "-m", "hpcdml.benchmarks.serving", json.dumps(job)])
        found = json.loads(out.splitlines()[-1])
        ratios = [each["loop"] / each["adding"] for each in found]
        for each in found:
            log.run({"megabytes": size, **each})
        log(f"{size:g} MB: {sorted(ratios)[len(ratios) // 2]:.2f} times the CPU time of adding")
        rows.append(
            {
                "megabytes": size,
                "serving_ns": spread([each["loop"] for each in found]),
                "adding_ns": spread([each["adding"] for each in found]),
                "ratio": spread(ratios),
            }
        )
    return rows
