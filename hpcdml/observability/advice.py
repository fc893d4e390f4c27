"""What bounds a run, and the one option that would help most: judged by the run's own measurements."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpcdml.observability.measurements import Measurements
from hpcdml.observability.units import bytes_text, percent, seconds_text

Bound = Literal["compute", "link", "server", "straggler", "data", "staleness", "exchange", "unknown"]

NAMES: dict[Bound, str] = {
    "compute": "the workers' computing",
    "link": "the server's link",
    "server": "the server's processor",
    "straggler": "a straggler",
    "data": "data loading",
    "staleness": "staleness",
    "exchange": "the workers' copying at each round",
    "unknown": "not known",
}

# Where a share begins to matter: more than a tenth of the workers' time can be won back, or of the accuracy.
BLOCKED = 0.1
LOADING = 0.1
LOST_ACCURACY = 0.05
RISEN_LOSS = 1.5
SLOWER = 1.5
"""A worker whose steps last so many times as long as the other workers' is a straggler."""
BUSY = 0.7
"""Cores that rank 0 keeps busy while a round is under way or waited for, from which on its link is not the bound."""
FAR_AHEAD = 32
"""Local steps in an update from which on a faster round would be worth more than further steps."""
LEAST_STEPS = 10
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Advice:
    """The verdict on a run.

    Attributes:
        bound: what bounds it.
        why: the measurements that say so, without a full stop.
        option: what would help most, as on the command line; empty if nothing is known.
        because: what it does, without a full stop.
    """

    bound: Bound
    why: str
    option: str
    because: str

    @property
    def name(self) -> str:
        return NAMES[self.bound]


def advise(m: Measurements) -> Advice:
    """The verdict on a run's measurements."""
    if m.steps < LEAST_STEPS or m.rounds < LEAST_ROUNDS:
        return _too_little(m)
    rules: tuple[Callable[[Measurements], Advice | None], ...] = (_staleness, _loading, _blocked, _far_ahead, _uneven)
    return next((found for rule in rules if (found := rule(m)) is not None), None) or _compute(m)


def _too_little(m: Measurements) -> Advice:
    why = f"{m.steps:,} local steps of the slowest worker and {m.rounds:,} rounds are too few to judge"
    epochs = 4 * float(m.config.get("epochs") or 10)
    return Advice("unknown", why, f"--epochs {epochs:g}", "a longer run says more")


def _staleness(m: Measurements) -> Advice | None:
    """The model got worse again while updates were old."""
    old = m.steps_per_push >= 8 if m.overlaps and m.collective else m.staleness >= 2
    lost = m.best_accuracy - m.final_accuracy
    if not old or m.policy not in ("asp", "ssp", "osp", "losp"):
        return None
    if lost >= LOST_ACCURACY:
        what = f"accuracy fell from {m.best_accuracy:.3f} to {m.final_accuracy:.3f}"
    elif m.final_loss > RISEN_LOSS * m.least_loss and m.final_loss > m.least_loss + 0.1:
        ends = f"to {m.final_loss:.3g}" if math.isfinite(m.final_loss) else "beyond all bounds"
        what = f"the training loss rose from {m.least_loss:.3g} {ends}"
    else:
        return None
    if m.overlaps and m.collective:
        why = f"{what}, and an update holds {m.steps_per_push:,.0f} local steps on parameters that lack the others'"
        if m.policy == "osp":
            return Advice("staleness", why, "--policy losp", "keeps the local progress that a round cannot know yet")
        most = max(int(m.config.get("local_steps") or 1), int(m.steps_per_push) // 4)
        return Advice(
            "staleness", why, f"--max-local-steps {most}", "bounds how far workers drift apart (a lower --lr does too)"
        )
    why = f"{what}, and updates are {m.staleness:.1f} versions old on average"
    if m.policy == "ssp":
        least = int(m.config.get("staleness") or 4) // 2
        return Advice("staleness", why, f"--staleness {least}", "holds workers closer together")
    return Advice("staleness", why, "--policy losp", "adds the updates of all workers up in one round")


def _loading(m: Measurements) -> Advice | None:
    if m.data < LOADING or m.data < m.idle:
        return None
    why = f"the workers waited for data {percent(m.data)} of the time, and were blocked {percent(m.idle)}"
    dataset = str(m.config.get("dataset"))
    if ":" in dataset:
        because = f"arrays of one HDF5 file are read in blocks, where {dataset} makes each sample by itself"
        return Advice("data", why, "--dataset FILE.h5", because)
    more = 2 * int(m.config.get("batch_size") or 32)
    return Advice("data", why, f"--batch-size {more}", "asks for data half as often, each time for a larger block")


def _blocked(m: Measurements) -> Advice | None:
    """Workers stood still for a good part of the time."""
    if m.idle < BLOCKED:
        return None
    blocked = f"the workers were blocked {percent(m.idle)} of the time"
    bound, evidence = _what_rounds_wait_for(m)
    why = f"{blocked}; {evidence}"
    if not m.overlaps:
        return Advice(bound, why, "--policy losp", "trains on while a round is under way, whatever it waits for")
    most = m.config.get("max_local_steps")
    if m.policy == "ssp":
        if bound == "straggler":
            return Advice(bound, why, "--policy losp", "lets fast workers take more local steps in a round")
        return _faster_rounds(m, bound, why)
    if most is not None and m.steps_per_push >= most:
        if bound == "straggler":
            because = "lets the fast workers go on for longer while they wait for the slow one"
            return Advice(bound, why, f"--max-local-steps {2 * int(most)}", because)
        return _faster_rounds(m, bound, why)
    each = f"{seconds_text(m.idle_per_round)} at each round of {_steps(m.steps_per_push)}"
    more = max(2 * round(m.steps_per_push), 2 * int(m.config.get("local_steps") or 1))
    return Advice(
        "exchange",
        f"{blocked}, {each}: they form the update and take the parameters in",
        f"--local-steps {more}",
        "makes rounds half as many",
    )


def _far_ahead(m: Measurements) -> Advice | None:
    """Nobody stood still, but rounds are so long that workers learn little of one another."""
    if not (m.overlaps and m.collective) or m.steps_per_push < FAR_AHEAD:
        return None
    bound, evidence = _what_rounds_wait_for(m)
    why = f"the workers were blocked only {percent(m.idle)} of the time, but take {m.steps_per_push:,.0f} local steps a"
    why += f" round; {evidence}"
    if bound == "straggler":
        return Advice(bound, why, *_shards(m))
    return _faster_rounds(m, bound, why)


def _uneven(m: Measurements) -> Advice | None:
    """Nobody waits for a slow worker, but its share of the data is seen more rarely."""
    slowest, factor = _slowest(m)
    if factor < SLOWER:
        return None
    why = f"a step of worker {m.workers[slowest]} lasts {factor:.1f} times as long as the others'; nobody waits for it"
    return Advice("straggler", why, *_shards(m))


def _compute(m: Measurements) -> Advice:
    why = f"the workers computed {percent(m.compute)} of the time and were blocked {percent(m.idle)}"
    if str(m.config.get("device", "")).startswith("cuda") and m.config.get("amp") == "off":
        return Advice("compute", why, "--amp bf16", "makes a step cheaper on most GPUs")
    ranks = 1 + 2 * max(len(m.workers), 1)
    return Advice("compute", why, f"mpirun -n {ranks}", "twice as many workers, if there are cores or GPUs for them")


def _what_rounds_wait_for(m: Measurements) -> tuple[Bound, str]:
    slowest, factor = _slowest(m)
    if factor >= SLOWER and _for_straggler(m, slowest):
        return "straggler", f"rounds wait for worker {m.workers[slowest]}, whose steps last {factor:.1f} times as long"
    round_ = f"a round takes {seconds_text(m.round_seconds)} for {bytes_text(m.round_bytes)}"
    if m.server_cpu is not None and m.server_cpu >= BUSY:
        return "server", f"{round_}, and rank 0 keeps {m.server_cpu:.2f} cores busy meanwhile"
    rate = f" ({bytes_text(m.round_bytes / m.round_seconds)}/s)" if m.round_seconds > 0 else ""
    known = "" if m.server_cpu is None else f", and rank 0 keeps only {m.server_cpu:.2f} cores busy meanwhile"
    return "link", f"{round_}{rate}{known}"


def _for_straggler(m: Measurements, slowest: int) -> bool:
    """Whether rounds wait for the slowest worker rather than for bytes."""
    slow = m.step_seconds[slowest]
    if m.overlaps and m.collective:
        # It pushes after every step or two, and each round closes with its push.
        return m.round_every < 2 * slow * int(m.config.get("local_steps") or 1)
    if not m.collective and not m.overlaps:
        return False
    # The slowest worker itself waits for nothing but bytes, the others for its longer step as well.
    return slow - float(np.median(np.delete(m.step_seconds, slowest))) > m.idle_per_step[slowest]


def _faster_rounds(m: Measurements, bound: Bound, why: str) -> Advice:
    narrow = m.config.get("wire_dtype") in ("bf16", "fp16")
    if bound == "server" and narrow:
        return Advice(bound, why, "--wire-dtype fp32", "rank 0 then adds without converting")
    if bound == "link" and not narrow:
        return Advice(bound, why, "--wire-dtype bf16", "halves the bytes of a round")
    more = max(2 * round(m.steps_per_push), 2)
    return Advice(bound, why, f"--local-steps {more}", "makes rounds half as many")


def _shards(m: Measurements) -> tuple[str, str]:
    if m.config.get("shard_weights"):
        return "--weighting samples", "a worker's update then counts by what is in it"
    least = min((rate for rate in m.rates if rate > 0), default=1.0)
    weights = ",".join(f"{rate / least:.2g}" for rate in m.rates)
    return f"--shard-weights {weights}", "gives each worker data by its speed, so that all are seen as often"


def _steps(number: float) -> str:
    return f"{number:,.0f} local step{'' if round(number) == 1 else 's'}"


def _slowest(m: Measurements) -> tuple[int, float]:
    """The place of the worker with the longest steps, and how many times as long as the others' median they are."""
    seconds = np.asarray(m.step_seconds)
    if len(seconds) < 2 or not np.isfinite(seconds).all():
        return 0, 1.0
    worst = int(seconds.argmax())
    others = float(np.median(np.delete(seconds, worst)))
    return worst, float(seconds[worst]) / others if others > 0 else 1.0
