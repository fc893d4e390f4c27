"""How much of the communication-free speed each side keeps, over links of a set rate, with and without a straggler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from hpcdml.benchmarks.launch import check_rates, names, open_site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.runner import STEP_SECONDS, JobOptions, Runner
from hpcdml.benchmarks.runs import all_sides
from hpcdml.benchmarks.table import middle, spread
from hpcdml.config import TrainConfig, option
from hpcdml.errors import UsageError


@dataclass(frozen=True)
class OverlapOptions(JobOptions):
    """Benchmark"""

    sides: str = option(
        "losp,osp,bsp,local-sgd",
        "policies, also with a narrow wire as in losp-fp16, and peers: ddp, ddp-fp16, ddp-powersgd, post-local-sgd",
    )
    rates: str = option(
        "1gbit", "rates of each host's link, both ways, on emulated hosts, as in 1gbit,100mbit; none: no such hosts"
    )
    batch_sizes: list[float] = option([32], "batch sizes; they set the time of a step that the CPU computes")
    step_seconds: list[float] = option([], STEP_SECONDS)
    seconds: float = option(8.0, "length of each run")
    lr: float = option(0.05, "as for train")
    json: bool = option(False, "print JSON instead of a table")


Pair = tuple[dict[str, Any], dict[str, Any]]


def check(options: OverlapOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    names(options.sides, "--sides", all_sides())
    check_rates(options.rates, "--rates")
    for batch in options.batch_sizes:
        if batch < 1 or batch != int(batch):
            raise UsageError(f"--batch-sizes {batch:g}: must be whole numbers of at least 1")
    if not 0.5 <= options.seconds <= 600:
        raise UsageError(f"--seconds {options.seconds:g}: must be from 0.5 to 600")
    for seconds in _steps(options):
        TrainConfig.from_flat({**options.train_options(), "lr": options.lr, **seconds})


def run(options: OverlapOptions, log: Log) -> list[dict[str, Any]]:
    """Measure the same ranks without communication and under every side, in turn.

    Returns:
        One row for each batch size, rate and side, see ``_row``. Shares and ratios are those of runs of the same
        repeat.

    Raises:
        HpcdmlError: the emulated hosts could not be set up, or too many runs failed.
    """
    check(options)
    sides, rates = names(options.sides, "--sides", all_sides()), check_rates(options.rates, "--rates")
    common = options.train_options()
    common |= {"lr": options.lr, "max_seconds": options.seconds, "eval_seconds": options.seconds}
    pairs: dict[tuple[int, int, str, str], dict[int, Pair]] = {}
    transfer = {}
    with open_site(options.workers + 1, rates) as site:
        runner = Runner(site, options.workers, log)
        for number, work in enumerate(_steps(options)):
            for repeat in range(options.repeats):
                about = {**work, "repeat": repeat}
                where = ", ".join(f"{name} {value:g}" for name, value in about.items())
                # It does not depend on the rate, so that one serves all.
                free = runner.run("alone", {**common, **work}, about)
                if free is None:
                    continue
                for rate in rates:
                    site.rate = rate
                    transfer[rate] = site.transfer_seconds(options.workers * free["payload_bytes"])
                    for side in sides:
                        kept = runner.run(side, {**common, **work}, about)
                        if kept is None:
                            continue
                        pairs.setdefault((number, work["batch_size"], rate, side), {})[repeat] = (free, kept)
                        speed, limit = kept["samples_per_second"], free["samples_per_second"]
                        log(f"{where}, {rate}, {side}: {speed / limit:.3f} of {limit:.0f} samples/s")
    return [
        _row(*key[1:], found, pairs.get((*key[:3], "bsp"), {}), transfer[key[2]], options.straggler > 1)
        for key, found in pairs.items()
    ]


def _steps(options: OverlapOptions) -> list[dict[str, Any]]:
    """What is to be measured: options of ``hpcdml train`` that set how long a step computes."""
    found: list[dict[str, Any]] = [{"batch_size": int(batch)} for batch in options.batch_sizes]
    if options.step_seconds:
        found = [{**batch, "step_seconds": seconds} for batch in found for seconds in options.step_seconds]
    return found


def _row(
    batch: int,
    rate: str,
    side: str,
    pairs: Mapping[int, Pair],
    bsp: Mapping[int, Pair],
    transfer: float,
    straggler: bool,
) -> dict[str, Any]:
    """One row.

    Returns:
        M/C: seconds that a round's bytes of all workers need on the server's link in one direction, over those of a
            communication-free step (of the fast worker).
        free_ms, step_ms: a step of the fast worker without communication and with this side.
        free: samples/s of all workers together without communication.
        share: samples/s over free; fast_share: the same of the fast worker alone.
        over_bsp: samples/s over those of bsp; bound: free samples/s over those of a bsp that takes one step of the
            slowest worker and one transfer for a round: 1 + M/C where all workers are alike.
        idle: share of the fast worker's time in which communication kept it from computing, as it measured itself.
        round_ms: a round at the server, from the header of its first push to its last chunk.
    """
    step = median(free["step_seconds"][0] for free, _ in pairs.values())
    row = {
        "side": side,
        "batch": batch,
        "rate": rate,
        "runs": len(pairs),
        "M/C": transfer / step,
        "free_ms": 1e3 * step,
        "step_ms": 1e3 * median(kept["step_seconds"][0] for _, kept in pairs.values()),
        "free": median(free["samples_per_second"] for free, _ in pairs.values()),
        "share": spread([kept["samples_per_second"] / free["samples_per_second"] for free, kept in pairs.values()]),
    }
    if straggler:
        row["fast_share"] = spread([_first(kept) / _first(free) for free, kept in pairs.values()])
    both = [repeat for repeat in pairs if repeat in bsp]
    row["over_bsp"] = spread([pairs[r][1]["samples_per_second"] / bsp[r][1]["samples_per_second"] for r in both])
    row["bound"] = median(_bound(free, transfer) for free, _ in pairs.values())
    row["idle"] = middle([kept["idle_fraction"][0] for _, kept in pairs.values() if kept.get("idle_fraction")])
    rounds = [kept["round_seconds_median"] for _, kept in pairs.values() if kept.get("round_seconds_median")]
    row["round_ms"] = 1e3 * median(rounds) if rounds else None
    return row


def _first(run: dict[str, Any]) -> float:
    return float(run["samples_per_second_per_worker"][0])


def _bound(free: dict[str, Any], transfer: float) -> float:
    batch = free["samples"] / sum(free["local_steps"])
    of_bsp = batch * len(free["local_steps"]) / (max(free["step_seconds"]) + transfer)
    return float(free["samples_per_second"] / of_bsp)
