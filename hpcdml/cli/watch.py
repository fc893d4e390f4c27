"""``hpcdml watch``: a run followed from another terminal."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser
from hpcdml.cli.values import seconds
from hpcdml.errors import UsageError


def parse(argv: Sequence[str]) -> Namespace:
    """The run and how often to look."""
    parser = Parser(
        "watch",
        "RUN [--once] [--every SECONDS]",
        "Follow a run while it trains, by its run.h5: loss, accuracy, samples a second, and a line for each worker.",
        "It waits for a run that has not begun, and ends with it; Ctrl-C ends the watching only.\n"
        "Where the output is no terminal it shows the run once.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="output folder of the run, or its run.h5")
    parser.add_argument("--once", action="store_true", help="show how the run stands and stop (default: false)")
    parser.add_argument("--every", metavar="SECONDS", default="1", help="seconds between two looks (default: 1)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if found.run is None:
        raise UsageError("watch: which run? as in hpcdml watch runs/latest")
    found.every = seconds("--every", found.every, least=0.1)
    return found


def run(job: Namespace) -> int:
    """Show the run once, or until it has finished."""
    from hpcdml.observability.watch import show_once, watch

    if job.once or not sys.stdout.isatty():
        show_once(job.run, sys.stdout)
        return 0
    try:
        watch(job.run, sys.stdout, job.every)
    except KeyboardInterrupt:
        print()  # the way to leave it
    return 0
