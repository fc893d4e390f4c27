"""One slow worker: what it does to the fast ones under each policy."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcdml.benchmarks.launch import Site, names
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_job
from hpcdml.benchmarks.table import spread
from hpcdml.config import POLICIES, option


@dataclass(frozen=True)
class StragglerOptions:
    """Benchmark"""

    policies: str = option("losp,bsp", "policies to run")
    factor: float = option(5.0, "how many times longer the steps of the slow worker take")
    repeats: int = option(5, "runs of each side, in turn")
    seconds: float = option(6.0, "length of each run")
    dataset: str = option("digits", "as for train")
    model: str = option("mlp", "as for train")
    model_args: dict[str, Any] = option({"hidden": 512}, "as for train")
    batch_size: int = option(128, "as for train")
    json: bool = option(False, "print JSON instead of a table")


def check(options: StragglerOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    names(options.policies, "--policies", POLICIES)
    need_counts(options, "repeats", "batch_size", "factor")
    need(options, "seconds", options.seconds > 0, "above 0")


def run(options: StragglerOptions, log: Log) -> list[dict[str, Any]]:
    """Measure worker 1 alone and beside a slow worker 2, in turn.

    Returns:
        One row a policy: samples/s of worker 1 alone, beside the slow one, their ratio; samples/s of the slow one.

    Raises:
        HpcdmlError: a run failed.
    """
    check(options)
    common = {
        "dataset": options.dataset,
        "model": options.model,
        "model_args": options.model_args,
        "batch_size": options.batch_size,
        "max_seconds": options.seconds,
        "eval_seconds": options.seconds,
    }
    site, policies = Site(), names(options.policies, "--policies", POLICIES)
    alone: dict[str, list[float]] = {policy: [] for policy in policies}
    beside: dict[str, list[float]] = {policy: [] for policy in policies}
    slow: dict[str, list[float]] = {policy: [] for policy in policies}
    for repeat in range(options.repeats):
        for policy in policies:
            one = train_job(site, 1, {**common, "policy": policy})
            two = train_job(site, 2, {**common, "policy": policy, "slowdown": {2: options.factor}})
            alone[policy].append(one["samples_per_second_per_worker"][0])
            beside[policy].append(two["samples_per_second_per_worker"][0])
            slow[policy].append(two["samples_per_second_per_worker"][1])
            rates = {"fast_alone": alone[policy][-1], "fast_beside_slow": beside[policy][-1], "slow": slow[policy][-1]}
            log.run({"policy": policy, "repeat": repeat, **rates}, two["curve"])
            log(f"repeat {repeat}, {policy}: fast worker {beside[policy][-1]:.0f} of {alone[policy][-1]:.0f} samples/s")
    return [
        {
            "policy": policy,
            "fast_alone": spread(alone[policy]),
            "fast_beside_slow": spread(beside[policy]),
            "ratio": median(b / a for a, b in zip(alone[policy], beside[policy], strict=True)),
            "slow": spread(slow[policy]),
        }
        for policy in policies
    ]
