"""Signals to ranks of real jobs: a checkpoint, a clean end with status 75, and runs that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
import under_way
from hpcdml.errors import PREEMPTED, UsageError
from hpcdml.signals import signal_numbers
from hpcdml.storage.run_reader import RunReader
from hpcdml.training.stop_signals import StopSignals

Job = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(200)

OPTIONS = ["--step-seconds", "0.002", "--threads", "1", "--lr", "0.1"]


def signalled(
    folder: Path, policy: str, rank: int, number: int, stopped: int | None = None, seconds: float = 3.0
) -> tuple[int, str]:
    """Train, send a signal to one rank when the first versions are made, and wait for the end.

    Rank ``stopped``, if there is one, is stopped before, and goes on so many seconds later.
    """
    options = ["--policy", policy, "--epochs", "5000", *OPTIONS, "--output", str(folder)]
    command = [launch.find_mpirun() or "mpirun", "-n", "3", sys.executable, "-m", "hpcdml", "train", *options]
    job, mark = launch.start(command)
    try:
        under_way.wait_until(lambda: len(under_way.rounds(folder)) > 0, job)
        ranks = launch.ranks(mark)
        if stopped is not None:
            os.kill(ranks[stopped], signal.SIGSTOP)
        os.kill(ranks[rank], number)
        if stopped is not None:
            time.sleep(seconds)
            os.kill(ranks[stopped], signal.SIGCONT)
        out, err = job.communicate(timeout=60)
        return job.returncode, out + err
    finally:
        launch.kill(mark)
        job.wait()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks' processes by /proc")
@pytest.mark.parametrize(
    ("policy", "rank", "number"),
    [("losp", 0, signal.SIGTERM), ("bsp", 2, signal.SIGUSR1), ("ssp", 1, signal.SIGINT)],
)
def test_a_signal_to_any_rank_saves_the_run(
    policy: str, rank: int, number: int, hpcdml_job: Job, tmp_path: Path
) -> None:
    status, out = signalled(tmp_path, policy, rank, number)
    assert status == PREEMPTED, out
    kinds = [kind for _, _, kind, _ in RunReader(tmp_path).events()]
    assert "preempted" in kinds and kinds[-1] == "finished"
    (saved,) = (tmp_path / "checkpoints").iterdir()
    version = int(saved.stem.split("-")[1])
    assert f"with status 75; hpcdml resume {tmp_path} goes on from {saved.name}" in out
    before = len(RunReader(tmp_path).table("rounds"))
    assert 0 < version <= before
    options = ["--policy", policy, *OPTIONS, "--max-samples", str(RunReader(tmp_path).table("rounds")["samples"][-1])]
    done = hpcdml_job(3, "train", *options, "--resume", "auto", "--output", tmp_path)
    assert done.returncode == 0 and f"version {version}," in done.stderr, done.stderr
    events = RunReader(tmp_path).events()
    assert [kind for _, _, kind, _ in events].count("resumed") == 1


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks' processes by /proc")
def test_a_signal_after_which_the_run_lives_on_for_a_while_is_told_of(_needs_mpirun: None, tmp_path: Path) -> None:
    status, out = signalled(tmp_path, "bsp", 0, signal.SIGTERM, stopped=2)
    assert status == PREEMPTED, out
    assert "hpcdml: SIGTERM on rank 0: a checkpoint, then the end of all ranks" in out


def test_signals_that_come_together_count_as_one_and_a_later_one_ends_the_process() -> None:
    program = """
import os, signal, sys, time
import hpcdml.training.stop_signals as stop
stop.SAME_SECONDS = 0.2
signals = stop.StopSignals()
signals.watch("TERM,USR1")
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGUSR1)
print(signals.received, flush=True)
child = os.fork()
if child == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGUSR1)
print("still here", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["SIGTERM", str(-signal.SIGTERM)]
    assert done.returncode == -signal.SIGUSR1


def test_names_of_signals() -> None:
    assert signal_numbers("TERM,SIGUSR1") == [signal.SIGTERM, signal.SIGUSR1] and signal_numbers("none") == []
    with pytest.raises(UsageError, match="--signals WINK"):
        signal_numbers("WINK")
    with pytest.raises(UsageError, match="no process can act on SIGKILL"):
        signal_numbers("TERM,KILL")
    with pytest.raises(UsageError, match="SIGKILL"):
        StopSignals().watch("KILL")
