"""``hpcdml bench NAME``: benchmarks that launch runs by mpirun, in turn, and print a table."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from hpcdml.cli import files, options
from hpcdml.cli.parser import Answer, nearest
from hpcdml.errors import UsageError

# Name: its line in the help text, its module, its options. A module has run(options, tell) -> rows.
BENCHMARKS: dict[str, tuple[str, str, str]] = {
    "accuracy": ("every policy beside sequential training, for equal samples", "accuracy", "AccuracyOptions"),
    "checkpoint": ("how fast a checkpoint is written, beside dd on the same disk", "checkpoint", "CheckpointOptions"),
    "straggler": ("what one slow worker does to a fast one", "straggler", "StragglerOptions"),
}


def parse(argv: Sequence[str]) -> tuple[Any, Any]:
    """The benchmark's module and its options.

    Raises:
        Answer: the help was asked for.
        UsageError: an unknown benchmark or a wrong option.
    """
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        lines = [f"  {name:<10} {text}" for name, (text, _, _) in BENCHMARKS.items()]
        text = "\n".join(["usage: hpcdml bench NAME [--option value ...]", "", *lines])
        if name:
            raise Answer(text)
        raise UsageError("bench: which one? " + ", ".join(BENCHMARKS))
    if name not in BENCHMARKS:
        close = nearest(name, BENCHMARKS)
        raise UsageError(
            f"bench {name}: " + (f"did you mean {close}?" if close else "there are " + ", ".join(BENCHMARKS))
        )
    text, module_name, class_name = BENCHMARKS[name]
    module = importlib.import_module(f"hpcdml.benchmarks.{module_name}")
    kind = getattr(module, class_name)
    request = options.read(argv[1:], f"bench {name}", [kind], f"Measure {text}.")
    if request.print_config:
        raise Answer(files.write(dataclasses.asdict(kind(**request.values))))
    return module, kind(**request.values)


def run(job: tuple[Any, Any]) -> int:
    """Run the benchmark and print its table, or JSON."""
    from hpcdml.benchmarks.table import format_table

    module, chosen = job
    rows = module.run(chosen, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(rows, indent=1) if chosen.json else format_table(rows))
    return 0
