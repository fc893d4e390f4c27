"""Time to a target accuracy and final accuracy for equal samples, each side at its own best learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcdml.benchmarks.launch import check_rates, names, open_site
from hpcdml.benchmarks.log import Log, Record
from hpcdml.benchmarks.runner import STEP_SECONDS, JobOptions, Runner
from hpcdml.benchmarks.runs import all_sides, time_to
from hpcdml.benchmarks.table import spread
from hpcdml.config import TrainConfig, option
from hpcdml.errors import UsageError

BASE = "losp"
PROBE_SECONDS = 4.0
"""Length of the run without communication that tells how long a step computes."""


@dataclass(frozen=True)
class ConvergenceOptions(JobOptions):
    """Benchmark"""

    sides: str = option(
        "losp,osp,bsp,local-sgd,diloco,ddp,ddp-fp16,ddp-powersgd,post-local-sgd",
        "policies, also with a narrow wire as in losp-fp16, and PyTorch's own ways",
    )
    rate: str = option("1gbit", "rate of each host's link, both ways, on emulated hosts; none: no such hosts")
    batch_size: int = option(32, "as for train")
    step_seconds: float | None = option(None, STEP_SECONDS)
    lrs: list[float] = option([0.05, 0.1, 0.2, 0.4], "learning rates of which each side gets its best one")
    optimizer: str = option("SGD", "as for train")
    optimizer_args: dict[str, Any] = option({}, "as for train")
    samples: int = option(40_000, "samples of all workers together in each run")
    target: float = option(0.95, "accuracy on the held-out data, from 0 to 1")
    max_seconds: float | None = option(None, "seconds after which a run stops before its samples; none: never")
    eval_seconds: float = option(0.1, "seconds between the versions that are evaluated")
    picture: str | None = option(None, "SVG or PNG file of accuracy against time; none: no picture")
    json: bool = option(False, "print JSON instead of a table")


def check(options: ConvergenceOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option, or a picture without matplotlib.
    """
    names(options.sides, "--sides", all_sides())
    check_rates(options.rate, "--rate")
    if not 0 < options.target <= 1:
        raise UsageError(f"--target {options.target:g}: must be above 0 and at most 1 (0.97, not 97)")
    if not options.lrs:
        raise UsageError("--lrs: needs at least one learning rate, as in 0.1,0.2")
    if options.samples < 1:
        raise UsageError(f"--samples {options.samples}: must be at least 1")
    for lr in options.lrs:
        TrainConfig.from_flat({**_train_options(options), "lr": lr})
    if options.picture is not None:
        from hpcdml.benchmarks.picture import check_picture

        check_picture(options.picture)


def run(options: ConvergenceOptions, log: Log) -> list[dict[str, Any]]:
    """Find each side's best learning rate with seed 0, then repeat with other seeds at that rate, sides in turn.

    Returns:
        One row a side, see ``summarise``.

    Raises:
        HpcdmlError: the emulated hosts could not be set up, or too many runs failed.
    """
    check(options)
    sides = names(options.sides, "--sides", all_sides())
    common = _train_options(options)
    runs: list[Record] = []
    with open_site(options.workers + 1, check_rates(options.rate, "--rate")) as site:

        def keep(record: Record) -> None:
            runs.append(record)
            log.run(*record)

        runner = Runner(site, options.workers, Log(log, keep))
        ratio = _ratio(runner, common)

        def train(side: str, lr: float, seed: int) -> None:
            about = {"phase": "repeat" if seed else "grid", "lr": lr, "seed": seed, "M/C": ratio}
            found = runner.run(side, {**common, "lr": lr, "seed": seed}, about)
            if found is not None:
                reached, final = time_to(options.target, found["curve"]), _final(found["curve"])
                told = "not reached" if reached is None else f"after {reached:.2f} s"
                where = f"seed {seed}, lr {lr:g}, {side}"
                log(f"{where}: {options.target:g} {told}, {final:.4f} after {found['wall_seconds']:.1f} s")

        for lr in options.lrs:
            for side in sides:
                train(side, lr, 0)
        found = {side: best_rate(runs, side, options.target) for side in sides}
        best = {side: lr for side, lr in found.items() if lr is not None}
        for side, lr in best.items():
            edge = len(options.lrs) > 1 and lr in (min(options.lrs), max(options.lrs))
            log(f"{side}: best at lr {lr:g}" + (", an end of the grid: a wider one might do it better" if edge else ""))
        for seed in range(1, options.repeats + 1):
            for side, lr in best.items():
                train(side, lr, seed)
    return summarise(runs, options.target)


def best_rate(runs: Sequence[Record], side: str, target: float) -> float | None:
    """The learning rate of the grid with the least time to the target, else with the highest final accuracy.

    None: all runs of the side failed.
    """
    grid = [(values["lr"], curve) for values, curve in _of(runs, side, "grid")]
    if not grid:
        return None
    return float(min(grid, key=lambda g: (_time(target, g[1]), -_final(g[1])))[0])


def summarise(runs: Sequence[Record], target: float) -> list[dict[str, Any]]:
    """One row for each side with repeats.

    Returns:
        lr: its best learning rate of the grid.
        runs, reached: repeats, and how many of them reached the target.
        seconds_to_target: over the repeats; a run that did not reach it counts as infinite.
        over_losp: its median over that of losp (or of the first side, where there is no losp).
        accuracy: of the final parameters; samples/s: of all workers together.
        M/C: seconds that a round's bytes of all workers need on the server's link in one direction, over those of a
            communication-free step.
    """
    rows = []
    for side in dict.fromkeys(values["side"] for values, _ in _of(runs, None, "repeat")):
        found = _of(runs, side, "repeat")
        times = [_time(target, curve) for _, curve in found]
        rows.append(
            {
                "side": side,
                "lr": found[0][0]["lr"],
                "M/C": found[0][0]["M/C"],
                "runs": len(found),
                "reached": sum(map(math.isfinite, times)),
                "seconds_to_target": spread(times),
                "over_losp": None,
                "accuracy": spread([_final(curve) for _, curve in found]),
                "samples/s": spread([values["samples_per_second"] for values, _ in found]),
            }
        )
    base = next((row for row in rows if row["side"] == BASE), rows[0] if rows else None)
    for row in rows:
        mine, others = row["seconds_to_target"]["median"], base["seconds_to_target"]["median"] if base else None
        row["over_losp"] = mine / others if mine and others else None
    return rows


def draw(options: Mapping[str, Any], runs: Sequence[Record], path: str) -> None:
    """Draw the repeats of a measurement: accuracy against seconds.

    Args:
        options: of the measurement, by name.

    Raises:
        UsageError: there is no matplotlib, or the file cannot be written.
    """
    from hpcdml.benchmarks.picture import draw_curves

    target = float(options["target"])
    sides = {}
    for row in summarise(runs, target):
        found = [curve for _, curve in _of(runs, row["side"], "repeat")]
        # The lower one of the middle two, where their number is even.
        order = sorted(found, key=lambda curve: (_time(target, curve), -_final(curve)))
        sides[row["side"]] = (found, order[(len(order) - 1) // 2])
    draw_curves(sides, target, path)


def _train_options(options: ConvergenceOptions) -> dict[str, Any]:
    found = options.train_options()
    for name in ("batch_size", "optimizer", "optimizer_args", "eval_seconds"):
        found[name] = getattr(options, name)
    found["max_samples"] = options.samples
    for name in ("max_seconds", "step_seconds"):
        if getattr(options, name) is not None:
            found[name] = getattr(options, name)
    return found


def _ratio(runner: Runner, common: Mapping[str, Any]) -> float | None:
    """M/C, by a run without communication."""
    free = runner.run("alone", {**common, "max_seconds": PROBE_SECONDS}, {"phase": "probe"})
    if free is None:
        return None
    step = median(free["step_seconds"])
    ratio = runner.site.transfer_seconds(runner.workers * free["payload_bytes"]) / step
    runner.log(f"a step computes for {1e3 * step:.2f} ms, M/C is {ratio:.2f}")
    return float(ratio)


def _of(runs: Sequence[Record], side: str | None, phase: str) -> list[Record]:
    return [run for run in runs if run[0]["phase"] == phase and side in (None, run[0]["side"])]


def _time(target: float, curve: Sequence[Any]) -> float:
    found = time_to(target, curve)
    return math.inf if found is None else found


def _final(curve: Sequence[Any]) -> float:
    """The accuracy of the final parameters; that of a regression counts as 0."""
    return float(curve[-1][2]) if curve and curve[-1][2] is not None else 0.0
