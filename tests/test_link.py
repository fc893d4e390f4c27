"""A run over links of a set rate, by TCP between hosts."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import median

import pytest

from hpcdml.cli.ranks import launcher_rank
from hpcdml.emulation import Cluster, check_machine
from hpcdml.errors import HpcdmlError
from hpcdml.observability.summary import summarise
from hpcdml.storage.run_reader import RunReader

RATE = 200e6 / 8  # bytes per second each way


@pytest.mark.timeout(200)
def test_workers_train_through_rounds_that_are_many_steps_long(tmp_path: Path) -> None:
    """The model's 1.1 MB go twice each way over the server's link in a round, which takes far longer than a step."""
    if launcher_rank() is not None:
        pytest.skip("starts MPI jobs itself, so it does not run inside one")
    try:
        check_machine()
    except HpcdmlError as error:
        pytest.skip(f"cannot emulate a cluster here: {error}")
    options = ["--policy", "losp", "--model-args", "hidden=480,layers=2", "--max-seconds", "6", "--batch-size", "16"]
    # A set step time: how many steps there are does not depend on how busy this machine is.
    options += ["--step-seconds", "0.02"]
    with Cluster(3, "200mbit", name=f"lk{os.getpid() % 10**6}") as cluster:
        command = [sys.executable, "-m", "hpcdml", "train", *options, "--output", str(tmp_path)]
        done = cluster.run(3, command, timeout=120)
    assert done.returncode == 0, done.stderr
    reader = RunReader(tmp_path)
    rounds, summary = reader.table("rounds"), summarise(reader)
    assert len(rounds) > 10
    # No round can be faster than its bytes on the link, so the rate was kept, and TCP taken.
    assert median(rounds["seconds"]) > 0.8 * float(rounds["bytes"][0]) / RATE
    assert min(summary["local_steps"]) > 3 * len(rounds)
