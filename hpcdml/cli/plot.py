"""``hpcdml plot``: the figures of one or several runs for a paper."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser
from hpcdml.errors import UsageError

AXES = ("seconds", "samples")


def parse(argv: Sequence[str]) -> Namespace:
    """The runs, the file and the horizontal axis."""
    parser = Parser(
        "plot",
        "RUN [RUN ...] OUT.pdf [--axis seconds|samples]",
        "Draw accuracy, training loss, samples a second and a piece of the time line into one file.",
        "OUT ends in .pdf, .png or .svg. It needs pip install 'hpcdml[plot]'. The time line is the first run's.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="output folders of runs, then the file to write")
    parser.add_argument(
        "--axis", metavar="AXIS", default="seconds", help="what accuracy and loss are drawn against (default: seconds)"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if len(found.runs) < 2:
        raise UsageError("plot: which run, and to what file? as in hpcdml plot runs/latest figures.pdf")
    if found.axis not in AXES:
        raise UsageError(f"--axis {found.axis}: must be one of {', '.join(AXES)}")
    *found.runs, found.out = found.runs
    return found


def run(job: Namespace) -> int:
    """Draw and say where."""
    from hpcdml.observability.figures import check_figure, draw
    from hpcdml.observability.view import views

    check_figure(job.out)
    draw(views(job.runs), job.out, job.axis)
    print(f"{job.out}: accuracy, training loss, speed, time line of {', '.join(job.runs)}")
    return 0
