"""Kills a run again and again at random instants, resumes it each time, and counts what came of it.

    python tests/kill_runs.py KILLS [KILLS_A_RUN]

Most kills are within a checkpoint's writing (a fault point on rank 0, drawn at random), the others are SIGKILL to every
process of the job at a random time. Each run is resumed until it ends; its accuracy is then beside unbroken ones.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import launch
from hpcdml.errors import UsageError
from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.checkpoint_folder import newest_valid
from hpcdml.storage.run_reader import RunReader

INTERVAL = 0.5
OPTIONS = ["--policy", "losp", "--lr", "0.2", "--epochs", "60", "--batch-size", "16", "--threads", "1"]
OPTIONS += ["--checkpoint-seconds", str(INTERVAL), "--resume", "auto", "--step-seconds", "0.002"]
LIMIT = 600.0


def start(folder: Path, seed: int, fault: str | None) -> tuple[subprocess.Popen[str], str]:
    """Start the job; its processes have a mark in their environment."""
    arguments = ["-m", "hpcdml", "train", *OPTIONS, "--seed", str(seed), "--output", str(folder)]
    command = [launch.find_mpirun() or "mpirun", "-n", "3", sys.executable, *arguments]
    return launch.start(command, None if fault is None else {"HPCDML_FAULT": fault})


def kill_all(job: subprocess.Popen[str], mark: str) -> None:
    """SIGKILL to all ranks and to the launcher."""
    launch.kill(mark)
    job.wait()


def end(job: subprocess.Popen[str], mark: str) -> tuple[int, str]:
    """Wait for a job; one that hangs is killed, and counts as such."""
    try:
        out, err = job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        kill_all(job, mark)
        return -1, "hangs"
    deadline = time.monotonic() + 10
    while launch.processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    return job.returncode, out + err


def version_of(path: Path | None) -> int:
    return 0 if path is None else int(path.stem.split("-")[1])


def seconds_lost(folder: Path, newest: Path | None) -> float | None:
    """From the newest checkpoint to the last step that the record of a killed run has; None: it has none."""
    with suppress(UsageError):
        steps = RunReader(folder).table("steps")["time"]
        start = 0.0 if newest is None else read_checkpoint(newest, parameters=False, workers=()).server["seconds"]
        return float(max(0.0, steps.max() - start)) if len(steps) else None
    return None


def resumed_from(out: str) -> int:
    """The version from which the job said that it goes on; 0: from the start."""
    return int(out.split("version ")[1].split(",")[0]) if "going on from" in out else 0


def one_run(folder: Path, seed: int, kills: int, draw: random.Random, found: Counter[str], lost: list[float]) -> None:
    """Kill a run so many times, or until it ends before its time, then let it end."""
    at = 0
    for number in range(kills + 1):
        last = number == kills
        within = draw.random() < 0.7
        fault = f"kill:{draw.randint(1, 40)}" if within and not last else None
        before = version_of(newest_valid(folder / "checkpoints"))
        job, mark = start(folder, seed, fault)
        if fault is None and not last:
            # Startup takes some seconds; afterwards the run lasts for a few.
            time.sleep(draw.uniform(0.0, 9.0))
            kill_all(job, mark)
            status, out = 137, job.stderr.read() if job.stderr else ""
        else:
            status, out = end(job, mark)
        if status == 2:
            found["refused: " + out.splitlines()[0]] += 1
            return
        if out == "hangs":
            found["hangs"] += 1
            return
        if "going on from" in out or "hpcdml: warning" in out:
            found["resumed"] += 1
            if resumed_from(out) != before:
                found["resumed from another version than the newest valid one"] += 1
        elif "the run has ended" in out:
            found["killed when all was written"] += 1
        elif before and status == 0:
            found["did not resume"] += 1
        if status == 0:
            found["ended"] += 1
            return
        newest = newest_valid(folder / "checkpoints")
        after = version_of(newest)
        if status != 137:
            found[f"status {status}"] += 1
        found["killed in writing" if within else "killed at a random time"] += 1
        if after < before:
            found["a valid checkpoint was lost"] += 1
        seconds = seconds_lost(folder, newest)
        if seconds is not None:
            lost.append(round(seconds, 3))
        at = after
    found[f"did not end, at version {at}"] += 1


def accuracy(folder: Path) -> float:
    return float(RunReader(folder).table("evaluations")["accuracy"][-1])


def main(argv: list[str]) -> int:
    kills, of_a_run = int(argv[0]), int(argv[1]) if len(argv) > 1 else 10
    draw = random.Random(7)
    found: Counter[str] = Counter()
    lost: list[float] = []
    unbroken, broken = [], []
    with tempfile.TemporaryDirectory() as place:
        seed = 0
        while found["killed in writing"] + found["killed at a random time"] < kills:
            folder = Path(place) / "run"
            if seed < 5:
                job, mark = start(folder, seed, None)
                if end(job, mark)[0] == 0:
                    unbroken.append(accuracy(folder))
                shutil.rmtree(folder)
            ended = found["ended"]
            one_run(folder, seed, of_a_run, draw, found, lost)
            if found["ended"] > ended:
                broken.append(accuracy(folder))
            shutil.rmtree(folder, ignore_errors=True)
            seed += 1
            told = {"counts": dict(found), "seconds lost": sorted(lost), "unbroken": unbroken, "broken": broken}
            print(json.dumps(told), flush=True)
    good = {"ended", "resumed", "killed in writing", "killed at a random time", "killed when all was written"}
    return 1 if set(found) - good else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
