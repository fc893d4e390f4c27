"""Records a run with a straggler on emulated hosts, repeats it at two link rates with another straggler, and compares.

    python tests/replay_runs.py POLICY [TIMES]

Needs root, as emulated hosts do. Prints, as JSON, the rounds of the run and the hash of the final parameters, recorded
and of each replay. Fails if one differs, or if the run has fewer than 200 rounds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from hpcdml.emulation import Cluster
from hpcdml.storage.run_reader import RunReader

RATES = ("1gbit", "250mbit")
ROUNDS = 200
SAMPLES = {"asp": 4800, "ssp": 4800}
OPTIONS = ["--batch-size", "16", "--lr", "0.1", "--threads", "1", "--seed", "3", "--slowdown", "2=3"]


def main(policy: str, times: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder, Cluster(3, RATES[0], "replay") as cluster:
        run = Path(folder) / "run"
        options = ["--policy", policy, "--max-samples", str(SAMPLES.get(policy, 60000)), *OPTIONS]
        _hpcdml(cluster, "train", *options, "--output", str(run))
        rounds = RunReader(run).table("rounds")
        recorded = parameters_hash(run)
        print(json.dumps({"policy": policy, "rounds": len(rounds), "recorded": recorded}), flush=True)
        assert len(rounds) >= ROUNDS
        for rate in RATES:
            cluster.set_rate(rate)
            for _ in range(times):
                text = _hpcdml(cluster, "replay", str(run), "--slowdown", "1=4").strip().splitlines()[-1]
                found = parameters_hash(run / "replay")
                print(json.dumps({"rate": rate, "replayed": found, "told": text.split(": ", 1)[-1]}), flush=True)
                assert found == recorded
                shutil.rmtree(run / "replay")


def parameters_hash(run: Path) -> str:
    """SHA-256 of the final parameters and buffers, with their names; 16 of its digits."""
    found = RunReader(run).parameters()
    assert found is not None
    total = hashlib.sha256()
    for name in sorted(found):
        total.update(name.encode() + b"\0" + found[name].tobytes())
    return total.hexdigest()[:16]


def _hpcdml(cluster: Cluster, *words: str) -> str:
    done = cluster.run(3, [sys.executable, "-m", "hpcdml", *words], timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
