"""``hpcdml export``: the parameters of a checkpoint or run for other programs, and theirs for hpcdml."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from hpcdml.cli.parser import Parser
from hpcdml.errors import UsageError


def parse(argv: Sequence[str]) -> Namespace:
    """The two files."""
    parser = Parser(
        "export",
        "IN OUT [--overwrite]",
        "Write the parameters and buffers of a model from one file into another of another kind.",
        "IN: a checkpoint, a run's folder (its final parameters, else those of its newest valid checkpoint),\n"
        "a file that export made, a .safetensors file, or a state_dict of plain tensors in a .pt file.\n"
        "OUT: ends in .safetensors (needs pip install 'hpcdml[export]'), .pt or .h5.",
    )
    parser.add_argument("source", nargs="?", metavar="IN", help="the file to read, or the folder of a run")
    parser.add_argument("target", nargs="?", metavar="OUT", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists (default: false)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks (default: false)")
    parser.add_argument("-h", "--help", action="store_true", help="show this text and stop")
    found = parser.scan(argv)
    if found.source is None or found.target is None:
        raise UsageError("export: from what to what? as in hpcdml export runs/latest model.safetensors")
    return found


def run(job: Namespace) -> int:
    """Write the file and say from what."""
    from hpcdml.training.export import export

    found, count = export(job.source, job.target, job.overwrite)
    print(f"{job.target}: {count} parameters and buffers of {found}")
    return 0
