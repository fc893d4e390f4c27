"""Minutes of mishaps: workers that die, hang and come back, a server that dies, signals, in one run that is resumed.

``python tests/soak.py 20`` goes on for 20 minutes with four workers and prints, as JSON, what it did to them, how often
the run was resumed, the memory of rank 0 in every job, and the result. It fails if a job hangs. With ``steady`` as the
second argument the server is left alone, and new processes take the places of workers that are killed: one job lasts
for all of the time, so that one sees whether its rank 0 grows. A worker is then killed half a minute after the last one
at the earliest, so that its successor is in the run by then.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import launch
import under_way
from hpcdml.storage.run_reader import RunReader
from test_faults import OPTIONS, accuracy

HANG_SECONDS = 90.0
JOINING_SECONDS = 30.0
WORKERS = 4
ENDLESS = ["--epochs", "1000000", "--policy", "losp", "--worker-timeout", "1", "--min-workers", "2"]
CHECKPOINTS = ["--checkpoint-seconds", "2", "--resume", "auto"]
KINDS = ["stop", "kill", "server", "signal", "stop briefly"]
OFTEN = {"": [5, 2, 0.3, 0.3, 5], "steady": [5, 2, 0, 0, 5]}


def main(minutes: float, how: str = "") -> None:
    until = time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    memory: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        while time.monotonic() < until:
            memory.append(_job(run, until, done, how))
            print(json.dumps({"done": done, "jobs": len(memory), "MiB of rank 0": memory[-1]}), flush=True)
        options = ["--max-samples", str(under_way.samples(run) + 20000), "--epochs", "none"]
        last = launch.run([*_mpirun(), "resume", str(run), *options], timeout=HANG_SECONDS)
        assert last.returncode == 0, last.stderr
        print(
            json.dumps(
                {"accuracy": accuracy(run), "samples": under_way.samples(run), "finished": RunReader(run).finished}
            )
        )


def _job(run: Path, until: float, done: Counter[str], how: str) -> list[float]:
    """One job, to its end or the end of the time; returns the resident memory of rank 0, every ten seconds."""
    more = ["--respawn", "1000"] if how else []
    command = [*_mpirun(), "train", *OPTIONS, *ENDLESS, *CHECKPOINTS, *more, "--output", str(run)]
    before = under_way.samples(run)
    # Into a file, as nobody reads a pipe.
    job, mark = launch.start(["sh", "-c", 'exec "$@" >> "$0" 2>&1', f"{run}.log", *command])
    memory, began, looked, killed = [], time.monotonic(), time.monotonic(), 0.0
    try:
        # A death while MPI starts would hang the others.
        under_way.wait_until(lambda: under_way.samples(run) > before, job, HANG_SECONDS)
        server = launch.ranks(mark).get(0, 0)
        while job.poll() is None and time.monotonic() < until:
            time.sleep(random.uniform(0.5, 4.0))
            workers = _workers(mark) - {server}
            if time.monotonic() - looked > 10:
                looked = time.monotonic()
                memory.append(_resident(server))
            kind = random.choices(KINDS, OFTEN[how])[0]
            steady = how and kind == "kill"
            if not workers or (steady and (len(workers) < WORKERS or time.monotonic() - killed < JOINING_SECONDS)):
                continue
            if kind == "kill":
                killed = time.monotonic()
            victim = server if kind == "server" else random.choice(sorted(workers))
            _harm(kind, victim)
            done[kind] += 1
        if job.poll() is None:
            _harm("signal", server)
        deadline = time.monotonic() + HANG_SECONDS
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.poll() is not None, f"a job hangs {time.monotonic() - began:.0f} s after its start: {done}"
        said = [line for line in Path(f"{run}.log").read_text(errors="replace").splitlines() if "hpcdml:" in line]
        done[f"status {job.returncode}"] += 1
        print(
            json.dumps({"status": job.returncode, "seconds": time.monotonic() - began, "said": said[-2:]}), flush=True
        )
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


def _workers(mark: str) -> set[int]:
    """Process numbers of all ranks, those among them that have joined since the start."""
    return {
        pid for pid, line in launch.processes(mark).items() if " -m hpcdml" in line and "prte" not in line.split()[0]
    }


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has been killed
        return 0.0
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmRSS")), 0.0)


def _mpirun() -> list[str]:
    return [launch.find_mpirun() or "mpirun", "--with-ft", "ulfm", "-n", "5", sys.executable, "-m", "hpcdml"]


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
