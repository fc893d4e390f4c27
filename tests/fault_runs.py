"""Runs of four workers of which two are killed at random moments. Not a test, as it takes minutes.

``python tests/fault_runs.py 30 losp`` prints, as JSON, how many finished, their accuracies beside those of unharmed
runs, and for each death the longest time between two rounds near it: at least the time from the death to the next one.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpcdml.storage.run_reader import RunReader
from test_faults import accuracy, running

NEAR_SECONDS = 2.0


def main(count: int, policy: str) -> None:
    options = ["--policy", policy, "--epochs", "100", "--seed"]
    found: dict[str, list[float]] = {"harmed": [], "unharmed": [], "seconds to the next round": []}
    failed = []
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            harmed = number % 6 != 5
            with running(path, 5, *options, str(number)) as run:
                for rank in random.sample(range(1, 5), 2) if harmed else ():
                    time.sleep(random.uniform(0.0, 1.5))
                    run.kill(rank)
                status, out = run.end()
            if status:
                failed.append(out[-300:])
                continue
            found["harmed" if harmed else "unharmed"].append(accuracy(path))
            if harmed:
                found["seconds to the next round"] += _gaps(RunReader(path))
        print(
            json.dumps({"runs": number + 1, "failed": failed, **{k: _summary(v) for k, v in found.items()}}), flush=True
        )


def _gaps(run: RunReader) -> list[float]:
    times = run.table("rounds")["time"]
    gaps = []
    for seconds, _, kind, _ in run.events():
        if kind == "lost":
            near = times[(times > seconds - NEAR_SECONDS) & (times < seconds + NEAR_SECONDS)]
            after = times[times > seconds]
            gaps.append(float(np.diff(near).max()) if len(after) else 0.0)
    return gaps


def _summary(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"n": len(values), "median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
