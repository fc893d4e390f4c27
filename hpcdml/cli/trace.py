"""``hpcdml trace``: a run for the viewers of Chrome's trace format."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser
from hpcdml.cli.values import seconds
from hpcdml.errors import UsageError


def parse(argv: Sequence[str]) -> Namespace:
    """The run, the file and the part of the run."""
    parser = Parser(
        "trace",
        "RUN OUT.json [--from SECONDS] [--to SECONDS]",
        "Write what every rank did when, in the trace format of Chrome, for https://ui.perfetto.dev or chrome://tracing.",
        "OUT ends in .json or .json.gz. A local step takes some 300 bytes of .json: of a long run take a part.",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="output folder of the run, or its run.h5")
    parser.add_argument("out", nargs="?", metavar="OUT", help="the file to write; one that exists is replaced")
    parser.add_argument(
        "--from", dest="begin", metavar="SECONDS", help="from so many seconds of training on (default: 0)"
    )
    parser.add_argument("--to", dest="end", metavar="SECONDS", help="up to so many seconds of training (default: all)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if found.run is None or found.out is None:
        raise UsageError("trace: which run, and to what file? as in hpcdml trace runs/latest trace.json")
    found.begin = -math.inf if found.begin is None else seconds("--from", found.begin)
    found.end = math.inf if found.end is None else seconds("--to", found.end)
    if not found.begin < found.end:
        raise UsageError(f"--to {found.end:g}: must be after --from, {found.begin:g}")
    return found


def run(job: Namespace) -> int:
    """Write the trace and say how much is in it."""
    from hpcdml.observability.trace import write_trace
    from hpcdml.observability.view import views

    count = write_trace(views([job.run])[0], job.out, job.begin, job.end)
    print(f"{job.out}: {count:,} events; open it at https://ui.perfetto.dev, which keeps it on your machine")
    return 0
