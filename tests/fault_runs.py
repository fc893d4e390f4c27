"""Runs of four workers to which something happens at random moments. Not a test, as it takes minutes.

    python tests/fault_runs.py RUNS POLICY [MISHAP]

MISHAP is ``kill`` (two workers), ``stop`` (a worker is stopped for 5 s), ``link`` (a host's link is down for 5 s),
``cut`` (for good), ``server`` (rank 0 is killed, and the run resumed) or ``respawn`` (a worker is killed, and a new
process takes its place). Every fourth run is left unharmed. Prints, as JSON, how many ended as they should, their
accuracies, and for each mishap the longest time between two rounds near it: at least the time from a death to the next
round. For ``server`` it is the time until the last rank has ended; for ``respawn``, also that until the new worker is
in.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import launch
from hpcdml.emulation.cluster import Cluster
from hpcdml.storage.run_reader import RunReader
from test_faults import Running, accuracy, running

NEAR_SECONDS = 2.0
AWAY_SECONDS = 5.0
WORKERS = 4
SAMPLES = 100 * 1437

Found = dict[str, list[float]]
Mishap = Callable[[Running, Cluster | None, Found], int]


def a_worker() -> int:
    return random.randint(1, WORKERS)


def kill(run: Running, cluster: Cluster | None, found: Found) -> int:
    for rank in random.sample(range(1, WORKERS + 1), 2):
        time.sleep(random.uniform(0.0, 1.5))
        run.kill(rank)
    return 0


def stop(run: Running, cluster: Cluster | None, found: Found) -> int:
    time.sleep(random.uniform(0.0, 1.5))
    rank = a_worker()
    run.kill(rank, signal.SIGSTOP)
    time.sleep(AWAY_SECONDS)
    run.kill(rank, signal.SIGCONT)
    return 0


def link(run: Running, cluster: Cluster | None, found: Found) -> int:
    assert cluster is not None
    host = f"h{a_worker()}"
    cluster.link_down(host)
    time.sleep(AWAY_SECONDS)
    cluster.link_up(host)
    return 0


def cut(run: Running, cluster: Cluster | None, found: Found) -> int:
    assert cluster is not None
    cluster.link_down(f"h{a_worker()}")
    began = time.monotonic()
    run.job.wait(200)
    found["seconds until all had ended"].append(time.monotonic() - began)
    # What is left on the host that nobody reaches, its part of mpirun for one, stays there.
    launch.kill(run.mark)
    return run.job.returncode


def server(run: Running, cluster: Cluster | None, found: Found) -> int:
    time.sleep(random.uniform(0.5, 2.0))
    began = time.monotonic()
    run.kill(0)
    run.job.wait(120)
    left = launch.wait_for_end(run.mark)
    assert not left, left
    found["seconds until all had ended"].append(time.monotonic() - began)
    return 1


def respawn(run: Running, cluster: Cluster | None, found: Found) -> int:
    time.sleep(random.uniform(0.0, 1.5))
    run.kill(a_worker())
    return 0


MISHAPS: dict[str, Mishap] = {f.__name__: f for f in (kill, stop, link, cut, server, respawn)}
OPTIONS = {
    "kill": [],
    "stop": ["--worker-timeout", "1"],
    "link": ["--worker-timeout", "1"],
    "cut": ["--worker-timeout", "1"],
    "server": ["--checkpoint-seconds", "1"],
    "respawn": ["--respawn", "1"],
}


def main(count: int, policy: str, mishap: str = "kill") -> None:
    # Long enough for what happens, and the same for the unharmed.
    samples = SAMPLES if mishap in ("kill", "server") else 2 * SAMPLES
    options = ["--policy", policy, "--max-samples", str(samples), *OPTIONS[mishap], "--seed"]
    names = ("harmed", "unharmed", "seconds to the next round", "seconds until all had ended", "seconds until back")
    found: Found = {name: [] for name in names}
    failed = []
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path, harmed, cluster = Path(folder) / "run", number % 4 != 3, None
            if mishap in ("link", "cut"):
                cluster = Cluster(WORKERS + 1, "1gbit", "mishaps")
                cluster.up()
                stack.callback(cluster.down)
            with running(path, WORKERS + 1, *options, str(number), cluster=cluster) as run:
                due = MISHAPS[mishap](run, cluster, found) if harmed else 0
                status, out = run.end()
            if status == due and mishap == "server" and harmed:
                done = launch.hpcdml(WORKERS + 1, "resume", path)
                status, due, out = done.returncode, 0, done.stderr
            if status != due or not RunReader(path).finished:
                failed.append(f"status {status}: {out[-300:]}")
                continue
            found["harmed" if harmed else "unharmed"].append(accuracy(path))
            if harmed and mishap != "server":
                _measure(RunReader(path), found)
        shown = {name: _summary(values) for name, values in found.items() if values}
        print(json.dumps({"runs": number + 1, "failed": failed, **shown}), flush=True)


def _measure(run: RunReader, found: Found) -> None:
    times = run.table("rounds")["time"]
    lost = 0.0
    for seconds, _, kind, _ in run.events():
        if kind in ("lost", "silent"):
            lost = seconds
            near = times[(times > seconds - NEAR_SECONDS) & (times < seconds + NEAR_SECONDS)]
            after = times[times > seconds]
            found["seconds to the next round"].append(float(np.diff(near).max()) if len(after) else 0.0)
        if kind == "back":
            found["seconds until back"].append(seconds - lost)


def _summary(values: list[float]) -> dict[str, float]:
    shown = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {"n": len(values), **{name: round(value, 4) for name, value in shown.items()}}


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
