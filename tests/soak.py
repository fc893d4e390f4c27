"""Minutes of mishaps: workers that die, hang and come back, a server that dies, signals, in one run that is resumed.

``python tests/soak.py 20`` goes on for 20 minutes with four workers and prints, as JSON, what it did to them, how often
the run was resumed, the memory of rank 0 in every job, and the result. It fails if a job hangs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import launch
from hpcdml.storage.run_reader import RunReader
from test_faults import OPTIONS, accuracy

HANG_SECONDS = 90.0
ENDLESS = ["--epochs", "1000000", "--policy", "losp", "--worker-timeout", "1", "--min-workers", "2"]
CHECKPOINTS = ["--checkpoint-seconds", "2", "--resume", "auto"]


def main(minutes: float) -> None:
    until = time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    memory: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        while time.monotonic() < until:
            memory.append(_job(run, until, done))
            print(json.dumps({"done": done, "jobs": len(memory), "MiB of rank 0": memory[-1]}), flush=True)
        options = ["--max-samples", str(_samples(run) + 20000), "--epochs", "none"]
        last = launch.run([*_mpirun(), "resume", str(run), *options], timeout=HANG_SECONDS)
        assert last.returncode == 0, last.stderr
        print(json.dumps({"accuracy": accuracy(run), "samples": _samples(run), "finished": RunReader(run).finished}))


def _job(run: Path, until: float, done: Counter[str]) -> list[float]:
    """One job, to its end or the end of the time; returns the resident memory of rank 0, every ten seconds."""
    command = [*_mpirun(), "train", *OPTIONS, *ENDLESS, *CHECKPOINTS, "--output", str(run)]
    # Into a file, as nobody reads a pipe.
    job, mark = launch.start(["sh", "-c", 'exec "$@" >> "$0" 2>&1', f"{run}.log", *command])
    memory, began, looked = [], time.monotonic(), time.monotonic()
    try:
        _wait_until_trained(job, mark, run)
        while job.poll() is None and time.monotonic() < until:
            time.sleep(random.uniform(0.5, 4.0))
            ranks = launch.ranks(mark)
            if time.monotonic() - looked > 10 and 0 in ranks:
                looked = time.monotonic()
                memory.append(_resident(ranks[0]))
            kind = random.choices(["stop", "kill", "server", "signal", "stop briefly"], [5, 2, 0.3, 0.3, 5])[0]
            victims = [rank for rank in ranks if rank]
            if not victims or 0 not in ranks:
                continue
            victim = ranks[0] if kind == "server" else ranks[random.choice(victims)]
            _harm(kind, victim)
            done[kind] += 1
        if job.poll() is None:
            _harm("signal", launch.ranks(mark).get(0, 0))
        deadline = time.monotonic() + HANG_SECONDS
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.poll() is not None, f"a job hangs {time.monotonic() - began:.0f} s after its start: {done}"
        done[f"status {job.returncode}"] += 1
    finally:
        launch.kill(mark)
        job.wait()
    return memory


def _harm(kind: str, pid: int) -> None:
    number = {"kill": signal.SIGKILL, "server": signal.SIGKILL, "signal": signal.SIGTERM}.get(kind, signal.SIGSTOP)
    try:
        _send(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(3.0 if kind == "stop" else 0.3)
            _send(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


def _send(pid: int, number: int) -> None:
    if pid:
        os.kill(pid, number)


def _wait_until_trained(job: subprocess.Popen[str], mark: str, run: Path) -> None:
    """Until all ranks train: a death while MPI starts would hang the others."""
    before = _samples(run)
    deadline = time.monotonic() + HANG_SECONDS
    while job.poll() is None and _samples(run) <= before and time.monotonic() < deadline:
        time.sleep(0.2)


def _samples(run: Path) -> int:
    try:
        rounds = RunReader(run).table("rounds")
    except Exception:  # it is being made
        return 0
    return int(rounds["samples"].max(initial=0))


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _mpirun() -> list[str]:
    return [launch.find_mpirun() or "mpirun", "--with-ft", "ulfm", "-n", "5", sys.executable, "-m", "hpcdml"]


if __name__ == "__main__":
    main(float(sys.argv[1]))
