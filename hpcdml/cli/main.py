"""The command ``hpcdml``: finds the subcommand, and turns whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import hpcdml
from hpcdml.cli import ranks
from hpcdml.cli.parser import Answer, nearest
from hpcdml.errors import HpcdmlError, UsageError

# Subcommand: its line in the help text, its module. A module has parse(argv) -> job, which communicates with nobody and
# raises UsageError or Answer, and run(job) -> exit status. COLLECTIVE = True in a module: it is the program of an MPI
# job, all ranks parse, and they run only if all of them could.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train a model over MPI: mpirun -n 3 hpcdml train --help", "hpcdml.cli.train"),
    "resume": ("go on with a run from its newest checkpoint: mpirun -n 3 hpcdml resume RUN", "hpcdml.cli.resume"),
    "replay": ("repeat a recorded run bit for bit: mpirun -n 3 hpcdml replay RUN", "hpcdml.cli.replay"),
    "report": ("what runs reached and what bounds them: table, page, JSON, CSV, TensorBoard", "hpcdml.cli.report"),
    "watch": ("follow a run from another terminal while it trains", "hpcdml.cli.watch"),
    "plot": ("curves and time line of runs as a figure: PDF, PNG, SVG", "hpcdml.cli.plot"),
    "trace": ("what every rank did when, for Perfetto and Chrome's tracing", "hpcdml.cli.trace"),
    "inspect": ("what is in a run or checkpoint, whether it is whole, how two differ", "hpcdml.cli.inspect"),
    "doctor": ("check this installation: hpcdml doctor, or mpirun -n 3 hpcdml doctor", "hpcdml.cli.doctor"),
    "data": ("published data sets as HDF5 files: hpcdml data import --help", "hpcdml.cli.data"),
    "export": ("a checkpoint's parameters as .safetensors or .pt, and back", "hpcdml.cli.export"),
    "bench": ("measure: hpcdml bench --help lists the benchmarks", "hpcdml.cli.bench"),
}

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 failed, 2 wrong use, 75 ended early, after a
    checkpoint, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _main(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop(sys.stdout)  # the reader has seen enough, as in hpcdml report RUN | head
        return 0
    except OSError as problem:
        _drop(sys.stdout)  # a full disk, for one: what is left to write must not fail again at exit
        print(f"hpcdml: standard output: {(problem.strerror or str(problem)).lower()}", file=sys.stderr)
        return 1


def _main(arguments: list[str]) -> int:
    try:
        module, rest = _find(arguments)
        job = module.parse(rest)
    except Answer as answer:
        return ranks.settle(0, answer.text.rstrip("\n"))
    except Exception as problem:
        return ranks.settle(_status(problem), _line(problem, arguments))
    collective = getattr(module, "COLLECTIVE", False)
    if collective and (status := ranks.settle(0)):
        return status
    try:
        return module.run(job)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return _leave(collective, INTERRUPTED)
    except Exception as problem:
        ranks.write(_line(problem, arguments), _status(problem))
        return _leave(collective, _status(problem))


def _find(arguments: list[str]) -> tuple[Any, list[str]]:
    """The module of the subcommand and the arguments after it."""
    if not arguments:
        raise UsageError("which command? " + ", ".join(COMMANDS) + "; hpcdml --help tells more")
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        raise Answer(_help())
    if name == "--version":
        raise Answer(f"hpcdml {hpcdml.__version__}")
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        close = nearest(name, COMMANDS)
        advice = f"did you mean {close}?" if close else "there are " + ", ".join(COMMANDS)
        raise UsageError(f"{name}: no such {what}; {advice}")
    return importlib.import_module(COMMANDS[name][1]), rest


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hpcdml COMMAND ...",
            "",
            hpcdml.__doc__ or "",
            "",
            "commands:",
            *lines,
            "",
            "hpcdml COMMAND --help tells each one's options; hpcdml --version, the version.",
            "Exit status: 0 done, 1 failed, 2 wrong use, 75 ended by a signal, to be resumed.",
            "Any command takes --debug: show tracebacks.",
        ]
    )


def _line(problem: Exception, arguments: list[str]) -> str:
    """The one line about a failure; with --debug the traceback before it."""
    text = " ".join(str(problem).split())
    trace = "".join(traceback.format_exception(problem)) if "--debug" in arguments else ""
    if isinstance(problem, HpcdmlError):
        return f"{trace}hpcdml: {text}"
    return f"{trace}hpcdml: failed: {type(problem).__name__}: {text}" + ("" if trace else "; --debug shows where")


def _status(problem: Exception) -> int:
    return problem.status if isinstance(problem, HpcdmlError) else 1


def _leave(collective: bool, status: int) -> int:
    """Leave alone. A rank of an MPI job takes the others with it: they would wait for it for ever."""
    if collective and ranks.launcher_rank() is not None:
        from hpcdml.mpi import once

        sys.stdout.flush()
        once.abort(status)
    return status


def _drop(stream: Any) -> None:
    """Send what is still buffered to nowhere."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
