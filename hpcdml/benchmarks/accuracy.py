"""Accuracy for equal samples: every policy beside sequential training with the same data, model and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

from hpcdml.benchmarks.launch import Site, names
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_job
from hpcdml.benchmarks.sequential import train_sequentially
from hpcdml.config import POLICIES, TrainConfig, option
from hpcdml.errors import UsageError


@dataclass(frozen=True)
class AccuracyOptions:
    """Benchmark"""

    policies: str = option(",".join(POLICIES), "policies to run")
    workers: list[float] = option([2], "numbers of workers, as in 1,2")
    seeds: int = option(5, "runs of each side, with seeds 0, 1, ...")
    dataset: str = option("digits", "as for train")
    model: str = option("mlp", "as for train")
    model_args: dict[str, Any] = option({}, "as for train")
    batch_size: int = option(32, "as for train")
    lr: float = option(0.4, "learning rate of every side")
    epochs: float = option(60.0, "passes over the data, of all workers together")
    json: bool = option(False, "print JSON instead of a table")


def check(options: AccuracyOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    names(options.policies, "--policies", POLICIES)
    need_counts(options, "seeds", "batch_size")
    need(options, "epochs", options.epochs > 0, "above 0")
    if not options.workers or not all(count >= 1 for count in options.workers):
        raise UsageError(f"--workers {options.workers}: must be numbers from 1")


def run(options: AccuracyOptions, log: Log) -> list[dict[str, Any]]:
    """Run all sides in turn, seed by seed.

    Returns:
        One row a side: mean and worst accuracy, and the difference of the mean from the sequential one in points.

    Raises:
        HpcdmlError: a run failed.
    """
    check(options)
    common = {
        "dataset": options.dataset,
        "model": options.model,
        "model_args": options.model_args,
        "batch_size": options.batch_size,
        "lr": options.lr,
    }
    site, policies = Site(), names(options.policies, "--policies", POLICIES)
    sides = [(policy, int(workers)) for workers in options.workers for policy in policies]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {side: [] for side in sides}
    sequential = []
    for seed in range(options.seeds):
        for policy, workers in sides:
            job = {**common, "policy": policy, "epochs": options.epochs, "seed": seed}
            summary = train_job(site, workers, job)
            found[policy, workers].append(summary)
            run_ = {"side": policy, "workers": workers, "seed": seed, "samples": summary["samples"]}
            log.run({**run_, "accuracy": summary["final_accuracy"]}, summary["curve"])
            log(f"seed {seed}, {policy}, {workers} workers: {summary['final_accuracy']:.4f}")
        # At least as many samples as any of the others had.
        most = max(found[side][-1]["samples"] for side in sides)
        result = train_sequentially(TrainConfig.from_flat({**common, "seed": seed}), most)
        sequential.append(result)
        run_ = {"side": "sequential", "workers": 0, "seed": seed, "samples": result.samples}
        log.run({**run_, "accuracy": result.accuracy})
        log(f"seed {seed}, sequential: {result.accuracy:.4f}")
    yardstick = mean(result.accuracy for result in sequential)
    rows = [_row("sequential", 0, [s.accuracy for s in sequential], [s.samples for s in sequential], yardstick)]
    for (policy, workers), runs in found.items():
        accuracies = [r["final_accuracy"] for r in runs]
        rows.append(_row(policy, workers, accuracies, [r["samples"] for r in runs], yardstick))
    return rows


def _row(side: str, workers: int, accuracies: list[float], samples: list[int], yardstick: float) -> dict[str, Any]:
    return {
        "side": side,
        "workers": workers,
        "runs": len(accuracies),
        "accuracy_mean": mean(accuracies),
        "accuracy_worst": min(accuracies),
        "points_over_sequential": 100.0 * (mean(accuracies) - yardstick),
        "samples_mean": round(mean(samples)),
    }
