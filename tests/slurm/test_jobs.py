"""Every script in jobs/, submitted to a real Slurm as a user would, on a small problem."""

from __future__ import annotations

import os
import re
from pathlib import Path

import h5py
import pytest

from hpcdml.emulation import processes
from hpcdml.storage.run_reader import RunReader
from submission import JOBS, Jobs, hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(360)]

SMALL = ("--dataset", "digits", "--model", "mlp", "--max-samples", "4000", "--threads", "1")
LONG = ("--dataset", "digits", "--model", "mlp", "--max-seconds", "600", "--threads", "1")


def check(run: Path, where: list[str]) -> None:
    reader = RunReader(run)
    assert reader.finished
    assert hosts(run) == where
    assert set(reader.table("steps")["worker"].tolist()) == set(range(1, len(where)))


def test_every_script_is_tested() -> None:
    tested = {"one-node", "several-nodes", "srun", "gpus", "unequal-nodes", "seeds", "preemptible", "chain"}
    assert {path.stem for path in JOBS.glob("*.sbatch")} == tested


@pytest.mark.parametrize("script", sorted(path.stem for path in JOBS.glob("*.sbatch")))
def test_slurm_accepts_the_script_as_it_is(jobs: Jobs, script: str) -> None:
    status, text = jobs.run("sbatch", "--test-only", str(JOBS / f"{script}.sbatch"), *SMALL)
    assert (status, bool(re.search(r"Job \d+ to start at ", text))) == (0, True), text


def test_one_node(jobs: Jobs) -> None:
    job = jobs.submit("one-node", *SMALL, options=("--ntasks=3",))
    check(jobs.finished(job), ["h0"] * 3)


def test_several_nodes(jobs: Jobs) -> None:
    job = jobs.submit("several-nodes", *SMALL, options=("--ntasks-per-node=2",))
    check(jobs.finished(job), ["h0", "h0", "h1", "h1"])


def test_srun(jobs: Jobs) -> None:
    job = jobs.submit("srun", *SMALL, options=("--ntasks-per-node=2",))
    check(jobs.finished(job), ["h0", "h0", "h1", "h1"])


def test_unequal_nodes(jobs: Jobs) -> None:
    job = jobs.submit("unequal-nodes", *SMALL, options=("--ntasks=1", ":", "--ntasks=1", ":", "--ntasks=2"))
    check(jobs.finished(job), ["h0", "h1", "h2", "h2"])


def test_gpus_of_type_count_only(jobs: Jobs) -> None:
    """Slurm gives the GPUs out; as nobody has them, the workers train on the CPU. Only the first node has a server."""
    job = jobs.submit(
        "gpus", *SMALL, "--device", "cpu", options=("--nodes=3", "--gpus-per-node=1", "--ntasks-per-node=2")
    )
    run = jobs.finished(job)
    assert jobs.state(job)["TresPerNode"] == "gres:gpu:1"
    check(run, ["h0", "h0", "h1", "h2"])


def test_gpus_are_missed_where_there_are_none(jobs: Jobs) -> None:
    options = ("--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=2")
    job = jobs.submit("gpus", *SMALL, options=options, env={"CUDA_VISIBLE_DEVICES": ""})
    state = jobs.wait(job)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "2:0"), jobs.story()
    assert len(re.findall("there is no GPU on host h0", jobs.log(job))) == 1


def test_an_array_of_seeds(jobs: Jobs) -> None:
    job = jobs.submit("seeds", *SMALL, options=("--array=3-4%1",))
    for seed in (3, 4):
        run = jobs.finished(f"{job}_{seed}", f"{job}/seed-{seed}")
        check(run, ["h0"] * 3)
        with h5py.File(run, "r") as file:
            assert int(file["config"].attrs["seed"]) == seed


def test_the_server_has_a_core_of_its_own(jobs: Jobs) -> None:
    """Where the job has all CPUs of a node and a core for each rank, the masks of the ranks do not meet."""
    count = len(os.sched_getaffinity(0))
    if count < 2:
        pytest.skip("needs two cores")
    options = ("--ntasks=2", f"--cpus-per-task={count // 2 + count % 2}")
    job = jobs.submit("one-node", *LONG, options=options)
    jobs.wait_for(job, r"\d samples,")
    masks = {}
    for pid in processes.with_mark("SLURM_JOB_ID", job):
        environ = dict(
            word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in word
        )
        if "OMPI_COMM_WORLD_RANK" in environ:
            masks[environ["OMPI_COMM_WORLD_RANK"]] = os.sched_getaffinity(pid)
    jobs.run("scancel", job)
    assert sorted(masks) == ["0", "1"]
    assert masks["0"] and masks["1"] and not masks["0"] & masks["1"], masks


def test_srun_without_pmix_is_told_once(jobs: Jobs) -> None:
    status, text = jobs.run("srun", "--nodes=1", "--ntasks=2", "hpcdml", "train", *SMALL)
    assert (status, len(re.findall("srun --mpi=pmix", text))) == (2, 1), text
