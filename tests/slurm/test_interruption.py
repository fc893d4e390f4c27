"""Runs that are interrupted, by a preemption or a kill: they go on by themselves, and end as an unbroken one."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from hpcdml.emulation import processes
from submission import JOBS, LONG, SIZE, Jobs, result, wait_for_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]


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
