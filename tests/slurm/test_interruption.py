"""Runs that Slurm interrupts: by a time limit, a preemption, scancel or a kill. They go on from their checkpoints."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import Slurm
from hpcdml.emulation import processes
from hpcdml.storage.run_reader import RunReader
from submission import DONE, JOBS, Jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]

# bsp does not depend on the machine: whatever interrupts it, its result is that of an unbroken run. It takes 4 s.
LONG = ("--dataset", "digits", "--model", "mlp", "--policy", "bsp", "--threads", "1", "--checkpoint-seconds", "0.5")
LONG = (*LONG, "--step-seconds", "0.02", "--max-samples", "12800", "--eval-seconds", "100")
SIZE = ("--nodes=1", "--ntasks=3", "--ntasks-per-node=3")
PREEMPTED = 75


@pytest.fixture(scope="module")
def unbroken(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of the run that is interrupted in the tests."""
    jobs = Jobs(slurm, tmp_path_factory.mktemp("unbroken"))
    return result(jobs.finished(jobs.submit("preemptible", *LONG, options=SIZE)))


def result(run: Path) -> dict[str, bytes]:
    reader = RunReader(run)
    found = reader.parameters()
    assert reader.finished and found is not None
    return {name: value.tobytes() for name, value in found.items()}


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*.h5"))


def wait_for_checkpoint(jobs: Jobs, job: str, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints(folder):
        assert time.monotonic() < deadline and jobs.state(job)["JobState"] not in DONE, jobs.story()
        time.sleep(0.05)


def no_process_is_left(job: str) -> None:
    left = processes.wait_for_none(lambda: processes.with_mark("SLURM_JOB_ID", job), 30)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]


def test_a_preempted_job_ends_as_an_unbroken_one(jobs: Jobs, unbroken: dict[str, bytes]) -> None:
    """A job of a partition with a higher priority needs its node; Slurm ends it and queues it again."""
    job = jobs.submit("preemptible", *LONG, options=SIZE)
    folder = jobs.folder / "runs" / job
    wait_for_checkpoint(jobs, job, folder)
    status, urgent = jobs.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 1"
    )
    assert status == 0, urgent
    assert jobs.wait(urgent.strip())["JobState"] == "COMPLETED"
    assert result(jobs.finished(job)) == unbroken
    assert jobs.state(job)["Restarts"] == "1"
    assert "going on from" in jobs.log(job)


def test_before_its_time_limit_a_job_is_queued_again(jobs: Jobs, unbroken: dict[str, bytes]) -> None:
    job = jobs.submit("preemptible", *LONG, options=SIZE)
    wait_for_checkpoint(jobs, job, jobs.folder / "runs" / job)
    assert jobs.run("scancel", "--signal=USR1", "--batch", job)[0] == 0  # as Slurm does 120 s before the limit
    jobs.wait_for(job, "going on from")
    assert result(jobs.finished(job)) == unbroken
    assert jobs.state(job)["Restarts"] == "1"


def test_a_chain_of_jobs_ends_as_an_unbroken_one(jobs: Jobs, unbroken: dict[str, bytes]) -> None:
    script = jobs.folder / "chain.sbatch"  # sizes are set in the script, for the next jobs to know them
    script.write_text((JOBS / "chain.sbatch").read_text().replace("--ntasks=5", "--ntasks=3"))
    first = jobs.submit(str(script), *LONG)
    folder = jobs.folder / "runs" / first
    wait_for_checkpoint(jobs, first, folder)
    second = str(int(first) + 1)
    assert jobs.state(second)["Dependency"].startswith(f"afterany:{first}")
    assert jobs.run("scancel", "--signal=USR1", "--batch", first)[0] == 0
    state = jobs.wait(first)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", f"{PREEMPTED}:0"), jobs.story()
    assert result(jobs.finished(second, first)) == unbroken
    assert "going on from" in jobs.log(second)
    assert jobs.wait(str(int(second) + 1))["JobState"] == "CANCELLED"  # the third, which is not needed


def test_a_chain_goes_on_after_a_kill(jobs: Jobs, unbroken: dict[str, bytes]) -> None:
    script = jobs.folder / "chain.sbatch"
    script.write_text((JOBS / "chain.sbatch").read_text().replace("--ntasks=5", "--ntasks=3"))
    first = jobs.submit(str(script), *LONG)
    wait_for_checkpoint(jobs, first, jobs.folder / "runs" / first)
    for pid in processes.with_mark("SLURM_JOB_ID", first):  # without a word, the script as well
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert jobs.wait(first)["JobState"] == "FAILED"
    assert result(jobs.finished(str(int(first) + 1), first)) == unbroken


@pytest.mark.parametrize("script", ["preemptible", "srun"])
def test_scancel_leaves_a_checkpoint_and_no_process(jobs: Jobs, script: str) -> None:
    """The checkpoint is one of the moment of the end: without scancel there would not have been any."""
    forever = ("--dataset", "digits", "--model", "mlp", "--max-seconds", "600", "--threads", "1")
    size = ("--nodes=2", "--ntasks-per-node=2")
    job = jobs.submit(script, *forever, "--checkpoint-seconds", "500", options=size)
    jobs.wait_for(job, r"[1-9]\d* samples,")
    jobs.run("scancel", job)
    assert jobs.wait(job)["JobState"] == "CANCELLED"
    no_process_is_left(job)
    assert len(checkpoints(jobs.folder / "runs" / job)) == 1, jobs.story()
    status, text = jobs.run("hpcdml", "inspect", str(checkpoints(jobs.folder / "runs" / job)[0]))
    assert status == 0, text
