"""Several commands by the same ranks, one after the other: to start ranks takes seconds, what most commands do less.

As a program, under mpirun: ``in_one_job.py FOLDER COMMANDS``, with a JSON list of lists of words. What each rank
says goes to files in the folder, and its exit statuses as well.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import launch
from hpcdml.cli.main import main
from hpcdml.cli.ranks import launcher_rank

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Said:
    """What one rank left of one command."""

    status: int
    stdout: str
    stderr: str


def several(
    ranks: int, commands: Sequence[Sequence[str | os.PathLike[str]]], cwd: Path, timeout: float = 240
) -> list[list[Said]]:
    """Run ``hpcdml WORDS`` for each command in one job of so many ranks.

    Only for commands in which no rank leaves alone, which ends the job: then this is a failed assertion.

    Returns:
        By command, then by rank, what it said.
    """
    words = json.dumps([[os.fspath(word) for word in command] for command in commands])
    # The job's folder is the first place in which it looks for modules: it must find this working copy's package.
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as place:
        done = launch.mpirun(ranks, sys.executable, __file__, place, words, cwd=cwd, timeout=timeout, env=env)
        files = {path.name: path.read_text() for path in Path(place).iterdir()}
    told = "\n".join(f"--- {name}\n{text[-2000:]}" for name, text in sorted(files.items()))
    assert done.returncode == 0, f"{done.stderr}\n{told}"
    return [
        [Said(*(kind(files[f"{n}-{rank}-{name}"]) for name, kind in KINDS.items())) for rank in range(ranks)]
        for n in range(len(commands))
    ]


KINDS = {"status": int, "stdout": str, "stderr": str}


def _run(folder: Path, commands: list[list[str]]) -> None:
    rank = launcher_rank()
    for n, command in enumerate(commands):
        names = (folder / f"{n}-{rank}-{name}" for name in KINDS)
        status, out, err = names
        with out.open("w") as stdout, err.open("w") as stderr, redirect_stdout(stdout), redirect_stderr(stderr):
            status.write_text(str(main(command)))


if __name__ == "__main__":
    _run(Path(sys.argv[1]), json.loads(sys.argv[2]))
