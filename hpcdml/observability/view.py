"""All that reports show of one run, read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.observability.advice import Advice, advise
from hpcdml.observability.curves import Curves, curves, free_rate
from hpcdml.observability.lines import WorkerLine, taken, worker_lines
from hpcdml.observability.measurements import Measurements, measure
from hpcdml.observability.summary import summarise
from hpcdml.storage import RunReader


@dataclass(frozen=True)
class RunView:
    """A run and what is derived from it, each when it is first asked for.

    Attributes:
        name: what the run is called beside others.
        run: its file.
    """

    name: str
    run: RunReader

    @cached_property
    def summary(self) -> dict[str, Any]:
        return summarise(self.run)

    @cached_property
    def lines(self) -> list[WorkerLine]:
        return worker_lines(self.run)

    @cached_property
    def curves(self) -> Curves:
        return curves(self.lines)

    @cached_property
    def measurements(self) -> Measurements:
        return measure(self.run, self.lines)

    @cached_property
    def advice(self) -> Advice:
        return advise(self.measurements)

    @cached_property
    def rounds(self) -> np.ndarray:
        return self.run.table("rounds")

    @cached_property
    def pushes(self) -> np.ndarray:
        return taken(self.run.table("pushes"))

    @cached_property
    def evaluations(self) -> np.ndarray:
        return self.run.table("evaluations")

    @cached_property
    def free_share(self) -> float | None:
        """Samples a second as a share of those without communication; None where nothing was trained."""
        free = free_rate(self.lines)
        return self.summary["samples_per_second"] / free if free else None


def views(paths: Sequence[str]) -> list[RunView]:
    """The runs at these places, each named by the shortest end of its path that tells it from the others.

    Raises:
        UsageError: there is no run at one of them.
    """
    runs = [RunReader(path) for path in paths]
    folders = [run.path.resolve().parent if run.path.name == "run.h5" else run.path.resolve() for run in runs]
    return [RunView(name, run) for name, run in zip(names(folders), runs, strict=True)]


def names(folders: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other has; a number where one is given twice."""
    found = []
    for i, folder in enumerate(folders):
        others = [other.parts for k, other in enumerate(folders) if k != i and other != folder]
        parts = folder.parts
        length = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        same = [k for k, other in enumerate(folders) if other == folder]
        found.append("/".join(parts[-length:]) + (f" ({same.index(i) + 1})" if len(same) > 1 else ""))
    return found
