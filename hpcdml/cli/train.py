"""``hpcdml train``: options to a checked configuration; the work is in ``hpcdml.training``."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Sequence

from hpcdml.cli import files, options, ranks
from hpcdml.cli.parser import Answer
from hpcdml.config import TrainConfig, groups
from hpcdml.errors import UsageError

COLLECTIVE = True
WORK = "hpcdml.training.run"  # brings torch and mpi4py: imported late, so that --help and mistakes are quick

EPILOG = """\
examples:
  mpirun -n 4 hpcdml train --dataset digits --model mlp --model-args hidden=64,layers=2 --policy losp --epochs 30
  mpirun -n 4 hpcdml train run.yaml --lr 0.02     the options of a file; the command line wins
  hpcdml train --lr 0.02 --print-config > run.yaml"""


def parse(argv: Sequence[str]) -> TrainConfig:
    """Options to a configuration, before any communication and before any file of the run is touched.

    Raises:
        Answer: the help or the configuration was asked for.
        UsageError: an option is wrong, or this is no MPI job.
    """
    request = options.read(
        argv,
        "train",
        [group for _, group in groups()],
        "Train a model. Rank 0 is the parameter server, every other rank a worker.",
        EPILOG,
    )
    try:
        config = TrainConfig.from_flat(request.values)
    except UsageError as error:
        raise request.blame(error) from None
    if request.print_config:
        raise Answer(_yaml(config))
    if ranks.launcher_rank() is None:
        words = shlex.join(argv)
        raise UsageError(
            f"train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train {words}".rstrip()
        )
    importlib.import_module(WORK)  # a rank that lacks a library says so before the others wait for it
    return config


def run(config: TrainConfig) -> int:
    """Train; every rank calls this."""
    status: int = importlib.import_module(WORK).train(config)
    return status


def _yaml(config: TrainConfig) -> str:
    """The whole configuration as a file that ``hpcdml train`` reads."""
    values = config.flat()
    parts = []
    for _, group in groups():
        names = [option.name for option in options.options_of(group)]
        parts.append(f"# {(group.__doc__ or '').strip()}\n" + files.write({name: values[name] for name in names}))
    return "\n".join(parts)
