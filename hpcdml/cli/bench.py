"""``hpcdml bench NAME``: benchmarks that launch runs by mpirun, in turn, and print a table."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcdml.cli import files, options
from hpcdml.cli.parser import Answer, nearest
from hpcdml.config import option
from hpcdml.errors import UsageError

# Name: its line in the help text, its module, its options. A module has run(options, log) -> rows, and may have
# check(options), which raises UsageError before anything runs, and draw(options, runs, path) for an option picture.
BENCHMARKS: dict[str, tuple[str, str, str]] = {
    "accuracy": ("every policy beside sequential training, for equal samples", "accuracy", "AccuracyOptions"),
    "checkpoint": ("how fast a checkpoint is written, beside dd on the same disk", "checkpoint", "CheckpointOptions"),
    "convergence": ("time to an accuracy, beside PyTorch's ways", "convergence", "ConvergenceOptions"),
    "data": ("training from a file that is larger than the memory for it", "data", "DataOptions"),
    "link": ("how full a round keeps the server's link", "link", "LinkOptions"),
    "memory": ("rank 0's memory with few workers and with many", "memory", "MemoryOptions"),
    "overlap": ("how much of the communication-free speed is left", "overlap", "OverlapOptions"),
    "polls": ("what the hooks cost a step when they find nothing", "polls", "PollsOptions"),
    "server": ("what rank 0's processor spends on a byte", "server", "ServerOptions"),
    "straggler": ("what one slow worker does to a fast one", "straggler", "StragglerOptions"),
    "tracing": ("what the records of local steps cost", "tracing", "TracingOptions"),
}


@dataclass(frozen=True)
class ResultOptions:
    """Results"""

    output: str | None = option(
        None, "HDF5 file for all runs, their curves, the options and the machine; none: no file"
    )
    results: str | None = option(None, "show, and draw, what is in a file that --output wrote, and measure nothing")


@dataclass(frozen=True)
class Job:
    """A benchmark that was asked for: its name, its module, its own options and those of all benchmarks."""

    name: str
    module: Any
    options: Any
    files: ResultOptions


def parse(argv: Sequence[str]) -> Job:
    """The benchmark and its options.

    Raises:
        Answer: the help was asked for.
        UsageError: an unknown benchmark or a wrong option.
    """
    name = argv[0] if argv else ""
    if name in ("", "-h", "--help"):
        width = max(map(len, BENCHMARKS))
        lines = [f"  {name:<{width}}  {text}" for name, (text, _, _) in BENCHMARKS.items()]
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
    kinds = [getattr(module, class_name), ResultOptions]
    request = options.read(argv[1:], f"bench {name}", kinds, f"Measure {text}.")
    chosen, results = (
        kind(**{f.name: request.values[f.name] for f in dataclasses.fields(kind) if f.name in request.values})
        for kind in kinds
    )
    if request.print_config:
        raise Answer(files.write(dataclasses.asdict(chosen) | dataclasses.asdict(results)))
    if results.output is not None and results.results is not None:
        raise UsageError("--results: does not go with --output: nothing is measured")
    try:
        getattr(module, "check", lambda options: None)(chosen)
    except UsageError as error:
        raise request.blame(error) from None
    return Job(name, module, chosen, results)


def run(job: Job) -> int:
    """Run the benchmark, or read its results, and print its table, or JSON."""
    from hpcdml.benchmarks.log import Log
    from hpcdml.benchmarks.table import format_table
    from hpcdml.observability.environment import environment
    from hpcdml.storage.bench_file import BenchFile, read_results

    chosen = dataclasses.asdict(job.options)
    if job.files.results is not None:
        found = read_results(job.files.results, job.name)
        chosen, runs, rows = found.options, found.runs, found.rows
    else:
        file = BenchFile(job.files.output, job.name, chosen, environment())
        rows = job.module.run(job.options, Log(lambda line: print(line, file=sys.stderr, flush=True), file.add))
        file.finish(rows)
        runs = file.runs
    picture = getattr(job.options, "picture", None)
    if picture is not None:
        job.module.draw(chosen, runs, picture)
    print(json.dumps(rows, indent=1) if job.options.json else format_table(rows))
    return 0
