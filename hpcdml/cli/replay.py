"""``hpcdml replay``: repeat a recorded run bit for bit, and compare it with the record."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcdml.cli import options, ranks
from hpcdml.cli.train import WORK
from hpcdml.config import TrainConfig, option
from hpcdml.errors import UsageError

COLLECTIVE = True

EPILOG = """\
examples:
  mpirun -n 3 hpcdml replay runs/latest               all of it; the copy goes to runs/latest/replay
  mpirun -n 3 hpcdml replay runs/latest --until 50    the parameters of version 50

The record says after which of its steps each worker took in which version. A job that keeps to it comes to the same
parameters, whatever the speed of its ranks and links, on the same kind of processor with the same number of ranks."""


@dataclass(frozen=True)
class ReplayOptions:
    """Replay"""

    until: int | None = option(None, "last version to repeat; none: all that the record explains")
    verify: bool = option(True, "compare every version's hash with the recorded one, and name the first that differs")
    slowdown: dict[str, float] = option({}, "worker=factor,... makes a worker's steps so much longer")
    step_seconds: float | None = option(None, "a local step takes so long; none: as long as it takes")
    device: str = option("auto", "as for train")
    debug: bool = option(False, "show tracebacks")


@dataclass(frozen=True)
class Job:
    """The run's folder, the last version, whether to compare, and options of the run that are to be otherwise."""

    folder: str
    until: int | None
    verify: bool
    options: dict[str, Any]


def parse(argv: Sequence[str]) -> Job:
    """The run and the options, before any communication.

    Raises:
        Answer: the help was asked for.
        UsageError: an option is wrong, or this is no MPI job.
    """
    about = "Repeat a recorded run bit for bit, and compare every version with the record."
    request = options.read(argv, "replay", [ReplayOptions], about, EPILOG, ("RUN", "output folder of the run"))
    if request.target is None:
        raise UsageError("replay: which run? as in mpirun -n 3 hpcdml replay runs/latest")
    values = dict(request.values)
    until, verify = values.pop("until", None), values.pop("verify", True)
    TrainConfig.from_flat(values)
    if ranks.launcher_rank() is None:
        raise UsageError(f"replay needs as many ranks as the run had: mpirun -n 3 hpcdml replay {request.target}")
    importlib.import_module(WORK)
    return Job(request.target, until, verify, values)


def run(job: Job) -> int:
    """Repeat the run; every rank calls this."""
    status: int = importlib.import_module(WORK).replay(job.folder, job.until, job.verify, job.options)
    return status
