"""What Slurm tells a run by signals: a time limit that nears, and scancel. It leaves a checkpoint and status 75."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcdml.emulation import processes
from submission import JOBS, LONG, SIZE, Jobs, checkpoints, result, wait_for_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]

PREEMPTED = 75


def no_process_is_left(job: str) -> None:
    left = processes.wait_for_none(lambda: processes.with_mark("SLURM_JOB_ID", job), 30)
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]


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
