"""The options that side-by-side benchmarks share, and runs of which one may fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import run_side
from hpcdml.config import TrainConfig, option
from hpcdml.errors import MachineError

FAILURES = 3
"""Failed runs in a row after which a benchmark gives up."""

STEP_SECONDS = (
    "seconds of a step, as on a device of the worker's own beside which the CPU is free: it makes emulated hosts that "
    "share cores independent; none: the CPU computes"
)

# What of a run's figures is kept in the file of results.
_KEPT = (
    *("samples", "wall_seconds", "samples_per_second", "samples_per_second_per_worker", "local_steps", "step_seconds"),
    *("idle_fraction", "rounds", "round_seconds_median", "payload_bytes", "evaluation_seconds"),
)


@dataclass(frozen=True)
class JobOptions:
    """Jobs"""

    workers: int = option(2, "workers, each on an emulated host of its own, the server on another")
    repeats: int = option(3, "runs of each side, in turn")
    dataset: str = option("digits", "as for train")
    model: str = option("mlp", "as for train")
    model_args: dict[str, Any] = option({"hidden": 1000, "layers": 2}, "as for train")
    threads: int = option(1, "CPU threads of each worker")
    straggler: float = option(1.0, "factor by which the last worker's steps are longer")

    def train_options(self) -> dict[str, Any]:
        """The options of ``hpcdml train`` that all sides share.

        Raises:
            UsageError: a value is out of its range.
        """
        need_counts(self, "workers", "repeats")
        need(self, "straggler", 1 <= self.straggler <= 1000, "from 1 to 1000")
        options: dict[str, Any] = {
            "dataset": self.dataset,
            "model": self.model,
            "model_args": self.model_args,
            "threads": self.threads,
        }
        if self.straggler > 1:
            options["slowdown"] = {str(self.workers): self.straggler}
        TrainConfig.from_flat(options)
        return options


class Runner:
    """Runs sides one after the other. A failed run is told, and the next one goes on.

    Args:
        site: where the jobs run.
        workers: of every job.
    """

    def __init__(self, site: Site, workers: int, log: Log) -> None:
        self.site = site
        self.workers = workers
        self.log = log
        self._failures = 0

    def run(self, side: str, options: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any] | None:
        """Run a side once and record it; see ``run_side``.

        Args:
            about: what tells this run from the others.

        Returns:
            Its figures; None where it failed.

        Raises:
            UsageError: a wrong option.
            MachineError: as many runs in a row have failed as make it unlikely that the next one will not.
        """
        try:
            found = run_side(self.site, self.workers, side, options)
        except MachineError as error:
            self._failures += 1
            if self._failures >= FAILURES:
                raise MachineError(f"{self._failures} runs in a row failed; the last: {side}: {error}") from error
            self.log(f"{', '.join(f'{k} {v}' for k, v in about.items())}, {side}: failed: {error}")
            return None
        self._failures = 0
        kept = {name: found[name] for name in _KEPT if name in found}
        self.log.run({"side": side, "rate": self.site.rate, **about, **kept}, found["curve"])
        return found
