"""``hpcdml resume``: go on with a run from its newest valid checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcdml.cli import options, ranks
from hpcdml.cli.train import WORK
from hpcdml.config import RunOptions, StopOptions, TrainConfig
from hpcdml.errors import UsageError

COLLECTIVE = True

EPILOG = """\
examples:
  mpirun -n 3 hpcdml resume runs/latest                   with the options that the run had
  mpirun -n 5 hpcdml resume runs/latest --epochs 60       with more workers, and for longer

A run with more, fewer or other workers begins anew at the checkpoint's version; it says what that drops.
In batch scripts: hpcdml train --resume auto, which starts the run where there is nothing to go on from."""


@dataclass(frozen=True)
class Job:
    """The run's folder, and the options that are to be otherwise."""

    folder: str
    options: dict[str, Any]


def parse(argv: Sequence[str]) -> Job:
    """The run and the options, before any communication.

    Raises:
        Answer: the help was asked for.
        UsageError: an option is wrong, or this is no MPI job.
    """
    request = options.read(
        argv,
        "resume",
        [StopOptions, RunOptions],
        "Go on with a run from its newest valid checkpoint.",
        EPILOG,
        target=("RUN", "output folder of the run"),
    )
    if request.target is None:
        raise UsageError("resume: which run? as in mpirun -n 3 hpcdml resume runs/latest")
    for name in ("output", "overwrite", "resume", "seed"):
        if name in request.values:
            raise UsageError(f"--{name}: cannot be given to resume, which goes on with the run as it is")
    TrainConfig.from_flat(request.values)
    if ranks.launcher_rank() is None:
        raise UsageError(f"resume needs at least 2 ranks: mpirun -n 3 hpcdml resume {request.target}")
    importlib.import_module(WORK)
    return Job(request.target, request.values)


def run(job: Job) -> int:
    """Go on; every rank calls this."""
    status: int = importlib.import_module(WORK).resume(job.folder, job.options)
    return status
