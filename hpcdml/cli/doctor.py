"""``hpcdml doctor``: whether this installation can train, alone or under a launcher."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser


def parse(argv: Sequence[str]) -> Namespace:
    """The folder to try."""
    parser = Parser(
        "doctor",
        "[--output FOLDER]",
        "Check this installation: libraries, MPI and its launcher, cores, links, GPU, files, Slurm.",
        "Alone, or by all ranks of a job as it will run: mpirun -n 3 hpcdml doctor. Each line begins with ok,\n"
        "warning, wrong, or - for what is not there and not needed. Exit status: 0 usable, 1 something is wrong.",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", default="runs/latest", help="output folder of runs to come (default: runs/latest)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    return parser.scan(argv)


def run(job: Namespace) -> int:
    """Check everything and print one screen."""
    from hpcdml.doctor.examination import examine

    return examine(job.output)
