"""What checkpoints add to the time for which workers are blocked. Not a test, as it takes minutes.

    python tests/idle_runs.py PAIRS [OPTION...]

Runs two workers with a checkpoint every 10 s and without any, in turn, PAIRS times, the first of a pair by turns.
Prints, as JSON, the share of the workers' time that each side was idle, and the difference of each pair. The options
are further ones of ``hpcdml train``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

import launch
from hpcdml.observability.measurements import measure
from hpcdml.storage.run_reader import RunReader

SECONDS = 32
OPTIONS = ["--policy", "losp", "--step-seconds", "0.018", "--batch-size", "16", "--threads", "1", "--epochs", "none"]
OPTIONS += ["--model-args", "hidden=1000,layers=2", "--lr", "0.01", "--max-seconds", str(SECONDS)]


def idle(checkpoints: str, more: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", *OPTIONS, "--checkpoint-seconds", checkpoints, *more, "--output", folder]
        done = launch.hpcdml(3, *words)
        assert done.returncode == 0, done.stderr
        written = len(list((Path(folder) / "checkpoints").glob("*.h5")))
        assert written >= (3 if checkpoints != "none" else 0), written
        return measure(RunReader(folder)).idle


def main(pairs: int, more: list[str]) -> None:
    found: dict[str, list[float]] = {"10": [], "none": []}
    for pair in range(pairs):
        for checkpoints in sorted(found, reverse=pair % 2 == 1):
            found[checkpoints].append(idle(checkpoints, more))
        added = [with_ - without for with_, without in zip(found["10"], found["none"], strict=True)]
        told = {"pairs": pair + 1, "with": statistics.median(found["10"]), "without": statistics.median(found["none"])}
        told |= {"added": statistics.median(added), "least": min(added), "most": max(added)}
        print(json.dumps({name: round(value, 5) for name, value in told.items()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
