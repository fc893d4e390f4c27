"""Minutes of mishaps: workers that die, hang, are cut off and come back, or push values that are not finite, a server
that dies, signals, in one run that is resumed.

``python tests/soak.py 20`` goes on for 20 minutes with four workers and prints, as JSON, what it did to them, how often
the run was resumed, the memory of rank 0 in every job, and the result. It fails if a job hangs. Every rank has an
emulated host of its own, which needs root. With ``steady`` as the
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
from contextlib import ExitStack
from pathlib import Path

import launch
import under_way
from hpcdml.emulation.cluster import Cluster
from hpcdml.storage.run_reader import RunReader
from test_faults import OPTIONS, accuracy, tolerant
from test_poison import MODEL

HANG_SECONDS = 90.0
JOINING_SECONDS = 30.0
WORKERS = 4
ENDLESS = ["--epochs", "1000000", "--policy", "losp", "--worker-timeout", "1", "--min-workers", "2"]
CHECKPOINTS = ["--checkpoint-seconds", "2", "--resume", "auto"]
POISONED = 200
"""Of so many steps of worker 1 one gives nan."""
KINDS = ["stop", "kill", "server", "signal", "stop briefly", "link", "cut"]
OFTEN = {"": [5, 2, 0.3, 0.3, 5, 3, 0.15], "steady": [5, 2, 0, 0, 5, 0, 0]}


def main(minutes: float, how: str = "") -> None:
    until = time.monotonic() + 60 * minutes
    done: Counter[str] = Counter()
    memory: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = Path(folder) / "run"
        (run.parent / "poison.py").write_text(MODEL)
        cluster = None if how else stack.enter_context(Cluster(WORKERS + 1, "1gbit", "soak"))
        while time.monotonic() < until:
            memory.append(_job(run, until, done, how, cluster))
            print(json.dumps({"done": done, "jobs": len(memory), "MiB of rank 0": memory[-1]}), flush=True)
        options = ["--max-samples", str(under_way.samples(run) + 20000), "--epochs", "none"]
        last = launch.run(tolerant(WORKERS + 1, "resume", str(run), *options), timeout=HANG_SECONDS, cwd=run.parent)
        assert last.returncode == 0, last.stderr
        reader = RunReader(run)
        refused = int((reader.table("pushes")["refused"] == 1).sum())
        result = {"accuracy": accuracy(run), "samples": under_way.samples(run), "finished": reader.finished}
        print(json.dumps({**result, "refused pushes": refused}))


def _job(run: Path, until: float, done: Counter[str], how: str, cluster: Cluster | None) -> list[float]:
    """One job, to its end or the end of the time; returns the resident memory of rank 0, every ten seconds."""
    more = ["--respawn", "1000"] if how else ["--model", "poison:model", "--model-args", f"every={POISONED}"]
    words = [*OPTIONS, *ENDLESS, *CHECKPOINTS, *more, "--output", str(run)]
    command = tolerant(WORKERS + 1, "train", *words, cluster=cluster)
    before = under_way.samples(run)
    # Into a file, as nobody reads a pipe.
    into = ["sh", "-c", 'exec "$@" >> "$0" 2>&1', f"{run}.log"]
    job, mark = launch.start([*into, *command], cluster and cluster.environment(), run.parent)
    memory, began, looked, killed = [], time.monotonic(), time.monotonic(), 0.0
    harms: list[tuple[str, float]] = []
    has_said = len(_said(run))
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
            if cluster is not None and kind in ("link", "cut"):
                _cut_off(cluster, for_good=kind == "cut")
            else:
                _harm(kind, victim)
            done[kind] += 1
            harms.append((kind, round(time.monotonic() - began, 1)))
        if job.poll() is None:
            _harm("signal", server)
        deadline = time.monotonic() + HANG_SECONDS
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.poll() is not None, f"a job hangs {time.monotonic() - began:.0f} s after its start: {done}"
        done[f"status {job.returncode}"] += 1
        ended = {"status": job.returncode, "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({**ended, "harmed": harms[-6:], "said": _said(run)[has_said:][-6:]}), flush=True)
    finally:
        launch.kill(mark)
        job.wait()
        for host in cluster.hosts if cluster is not None else ():
            cluster.link_up(host)
    return memory


def _said(run: Path) -> list[str]:
    log = Path(f"{run}.log")
    return [line for line in log.read_text(errors="replace").splitlines() if "hpcdml:" in line] if log.exists() else []


def _cut_off(cluster: Cluster, for_good: bool) -> None:
    """Cut a worker's host off, for a moment or until the job is over."""
    host = random.choice(cluster.hosts[1:])
    cluster.link_down(host)
    if not for_good:
        time.sleep(3.0)
        cluster.link_up(host)


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


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
