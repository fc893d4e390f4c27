"""``hpcdml inspect``: what is in a file, whether it is whole, and how two differ."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser
from hpcdml.errors import UsageError


def parse(argv: Sequence[str]) -> Namespace:
    """The file, and perhaps another to compare it with."""
    parser = Parser(
        "inspect",
        "FILE [OTHER] [--all]",
        "Verify all checksums of a run, checkpoint or file of parameters and tell what is in it, or how two differ.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="the file, or the folder of a run")
    parser.add_argument("other", nargs="?", metavar="OTHER", help="tell how it differs from this one (default: none)")
    parser.add_argument("--all", action="store_true", help="name every parameter and event (default: the first few)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if found.file is None:
        raise UsageError("inspect: which file? as in hpcdml inspect runs/latest")
    return found


def run(job: Namespace) -> int:
    """Print what is in one file, or the differences between two."""
    from hpcdml.observability.differences import differences
    from hpcdml.observability.inspection import describe
    from hpcdml.storage.contents import read_contents

    contents = read_contents(job.file)
    few = None if job.all else 12
    if job.other is None:
        print("\n".join(describe(contents, few)))
    else:
        print("\n".join(differences(contents, read_contents(job.other), few)))
    return 0
