"""``hpcdml data import``: published data sets as files that ``--dataset`` takes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Answer, Parser, nearest
from hpcdml.errors import UsageError

ACTIONS = {"import": "published files of CIFAR or MNIST as one HDF5 file"}
SETS = ("cifar10", "cifar100", "mnist")


def parse(argv: Sequence[str]) -> Namespace:
    """What to do, with what.

    Raises:
        Answer: the help was asked for.
        UsageError: an unknown action or data set, or an argument is missing.
    """
    action = argv[0] if argv else ""
    if action in ("-h", "--help"):
        lines = [f"  {name}  {text}" for name, text in ACTIONS.items()]
        raise Answer("\n".join(["usage: hpcdml data ACTION ...", "", *lines]))
    if action not in ACTIONS:
        raise UsageError(f"data {action}".rstrip() + ": do what? " + ", ".join(ACTIONS) + "; as in " + _EXAMPLE)
    parser = Parser(
        "data import",
        "cifar10|cifar100|mnist FOLDER OUT.h5 [--overwrite]",
        "Write a published data set as one HDF5 file with x, y, x_test and y_test. Nothing is downloaded.",
        "FOLDER has the files as they were published: of CIFAR the archive (.tar.gz) or what is in it, in the\n"
        "Python or the binary version; of MNIST the four idx files, as .gz or unpacked. Their MD5 are compared with\n"
        "the published ones. The pickles of the Python version are read without running anything that they name.",
    )
    parser.add_argument("name", nargs="?", metavar="SET", help=", ".join(SETS))
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="the folder of the published files")
    parser.add_argument("target", nargs="?", metavar="OUT.h5", help="the file to write")
    parser.add_argument("--coarse", action="store_true", help="of cifar100 the 20 coarse classes (default: the 100)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.h5 where it exists (default: false)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv[1:])
    if found.name is not None and found.name not in SETS:
        close = nearest(found.name, SETS)
        advice = f"did you mean {close}?" if close else "there are " + ", ".join(SETS)
        raise UsageError(f"data import {found.name}: no such data set; {advice}")
    if found.target is None:
        raise UsageError("data import: what, from which folder, to which file? as in " + _EXAMPLE)
    if not found.target.endswith((".h5", ".hdf5")):
        raise UsageError(f"data import: {found.target}: the file to write must end in .h5 or .hdf5")
    if found.coarse and found.name != "cifar100":
        raise UsageError(f"--coarse: only cifar100 has coarse classes, not {found.name}")
    return found


_EXAMPLE = "hpcdml data import cifar10 Downloads cifar10.h5"


def run(job: Namespace) -> int:
    """Write the file and say what was read."""
    from hpcdml.training.data.published import convert

    print(convert(job.name, job.folder, job.target, job.coarse, job.overwrite))
    return 0
