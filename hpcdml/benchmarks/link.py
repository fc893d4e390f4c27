"""How full a round keeps the server's link, beside what MPI itself gets through it both ways at once."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcdml.benchmarks.launch import Site, check_rates, open_site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_job
from hpcdml.benchmarks.table import spread
from hpcdml.config import option

SIZES = (1 << 17, 1 << 19, 1 << 20)
FLIGHTS = (4, 16)
EXCHANGE_SECONDS = 1.0


@dataclass(frozen=True)
class LinkOptions:
    """Benchmark"""

    rates: str = option("1gbit", "rates of each host's link, both ways, on emulated hosts; none: this machine as it is")
    megabytes: float = option(16.0, "size of the model")
    workers: int = option(2, "workers")
    chunk_kib: int = option(512, "as for train")
    step_seconds: float = option(0.005, "as for train: a step must be much shorter than a round")
    seconds: float = option(6.0, "length of each run")
    repeats: int = option(5, "rounds of measurements: MPI alone and training, in turn")
    json: bool = option(False, "print JSON instead of a table")


def check(options: LinkOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    check_rates(options.rates, "--rates")
    for name in ("megabytes", "step_seconds", "seconds"):
        need(options, name, getattr(options, name) > 0, "above 0")
    need_counts(options, "workers", "chunk_kib", "repeats")


def run(options: LinkOptions, log: Log) -> list[dict[str, Any]]:
    """Exchange large messages with MPI alone, and train a model whose step costs nothing, in turn.

    Returns:
        One row a rate: MB/s that rank 0 gets in each direction (``raw`` by MPI alone with the best size of messages and
        number in flight of each repeat; ``round`` by rounds, of which each moves the model once a worker and way),
        and their ratio.

    Raises:
        HpcdmlError: the emulated hosts could not be set up, or a job failed.
    """
    check(options)
    rates = check_rates(options.rates, "--rates")
    rows = []
    with open_site(options.workers + 1, rates, "link") as site:
        for rate in rates:
            site.rate = rate
            raw, served = [], []
            for repeat in range(options.repeats):
                raw.append(_raw(site, options))
                served.append(_round(site, options))
                log.run({"rate": rate, "repeat": repeat, "raw": raw[-1], "round": served[-1]})
                log(f"{rate}, repeat {repeat}: {served[-1] / 1e6:.1f} of {raw[-1] / 1e6:.1f} MB/s in each direction")
            rows.append(
                {
                    "rate": rate,
                    "raw": spread([each / 1e6 for each in raw]),
                    "round": spread([each / 1e6 for each in served]),
                    "ratio": spread([s / r for s, r in zip(served, raw, strict=True)]),
                }
            )
    return rows


def _raw(site: Site, options: LinkOptions) -> float:
    """Bytes per second in the slower direction, at the best of the sizes and numbers in flight."""
    asked = {"sizes": SIZES, "flights": FLIGHTS, "seconds": EXCHANGE_SECONDS}
    out = site.run(options.workers + 1, [sys.executable, "-m", "hpcdml.mpi.exchange", json.dumps(asked)])
    found = json.loads(out.splitlines()[-1])
    return max(min(each["up"], each["down"]) for each in found)


def _round(site: Site, options: LinkOptions) -> float:
    """Bytes per second in each direction of the rounds of a run, by the median time from one to the next."""
    summary = train_job(
        site,
        options.workers,
        {
            "policy": "losp",
            "model": "hpcdml.benchmarks.payload:build",
            "model_args": {"megabytes": options.megabytes},
            "threads": 1,
            "batch_size": 8,
            "step_seconds": options.step_seconds,
            "max_seconds": options.seconds,
            "eval_seconds": 10 * options.seconds,
            "chunk_kib": options.chunk_kib,
        },
    )
    payload = summary["bytes_received"] / summary["pushes"]
    return float(payload * options.workers / median(summary["round_intervals"]))
