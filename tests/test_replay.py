"""Recorded runs repeated by other ranks at other speeds, and records that explain too little."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdml.config import POLICIES
from hpcdml.storage.run_file import RunWriter
from hpcdml.storage.run_reader import RunReader

Job = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(300)

OPTIONS = ["--lr", "0.1", "--batch-size", "16", "--seed", "3", "--threads", "1"]


def record(job: Job, folder: Path, *options: str, ranks: int = 3) -> None:
    done = job(ranks, "train", *OPTIONS, *options, "--output", folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_with_a_straggler_is_repeated_bit_for_bit(policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    local = ["--local-steps", "3"] if policy in ("losp", "ssp") else []
    record(hpcdml_job, run, "--policy", policy, *local, "--max-samples", "12000", "--slowdown", "2=3")
    # Now the other worker is slow.
    done = hpcdml_job(3, "replay", run, "--slowdown", "1=4")
    assert done.returncode == 0, done.stderr
    rounds = len(RunReader(run).table("rounds"))
    assert f"{rounds} of {rounds} versions compared, all as recorded; the final" in done.stdout
    before, after = RunReader(run).parameters(), RunReader(run / "replay").parameters()
    assert before is not None and after is not None
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_a_replay_to_a_version_gives_that_version(hpcdml_job: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--policy", "losp", "--checkpoint-rounds", "15", "--keep-checkpoints", "100", "--max-samples", "9000"]
    record(hpcdml_job, run, *options)
    version = min(int(path.stem.split("-")[1]) for path in (run / "checkpoints").iterdir())
    done = hpcdml_job(3, "replay", run, "--until", str(version))
    assert done.returncode == 0 and f"{version} of {version} versions compared" in done.stdout, done.stderr
    with h5py.File(run / "checkpoints" / f"step-{version:08d}.h5") as saved:
        found = RunReader(run / "replay").parameters()
        assert found is not None
        for name, dataset in saved["parameters"].items():
            np.testing.assert_array_equal(dataset[()], found[name])


def test_a_resumed_run_is_repeated_as_one(hpcdml_job: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    record(hpcdml_job, run, "--policy", "losp", "--checkpoint-rounds", "20", "--max-samples", "9000")
    saved = sorted((run / "checkpoints").iterdir())
    for path in saved[1:]:
        path.unlink()  # as if it had been killed after the first one
    assert hpcdml_job(3, "resume", run).returncode == 0
    assert [kind for _, _, kind, _ in RunReader(run).events()].count("resumed") == 1
    done = hpcdml_job(3, "replay", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same, bit for bit" in done.stdout


def test_a_difference_is_named_by_its_first_version(hpcdml_job: Job, tmp_path: Path) -> None:
    run, changed = tmp_path / "run", tmp_path / "changed"
    record(hpcdml_job, run, "--policy", "asp", "--max-samples", "3000")
    reader = RunReader(run)
    tables = {name: reader.table(name) for name in ("steps", "pushes", "rounds", "evaluations", "events")}
    tables["rounds"]["hash"][6] += 1
    tables["events"] = tables["events"][:1]
    environment = dict(reader.environment)
    RunWriter.create(changed, reader.config, environment, 2, {}, False, tables).close()
    done = hpcdml_job(3, "replay", changed)
    assert done.returncode == 1
    assert "version 7 differs" in done.stdout
    shutil.rmtree(changed / "replay")
    assert hpcdml_job(3, "replay", changed, "--until", "6").returncode == 0


def test_a_killed_run_is_repeated_as_far_as_it_is_recorded(hpcdml_job: Job, tmp_path: Path) -> None:
    run, killed = tmp_path / "run", tmp_path / "killed"
    record(hpcdml_job, run, "--policy", "losp", "--max-samples", "6000")
    reader = RunReader(run)
    tables = {name: reader.table(name) for name in ("steps", "pushes", "rounds", "evaluations", "events")}
    # The last steps of one worker had not been reported: of those that are, the last one led to a push, and what the
    # worker took in then is not recorded.
    steps, pushes = tables["steps"], tables["pushes"]
    ends = np.cumsum(np.sort(pushes[pushes["worker"] == 1], order="push")["local_steps"])
    tables["steps"] = steps[(steps["worker"] != 1) | (steps["step"] <= ends[ends <= ends[-1] - 40].max())]
    tables["events"] = tables["events"][:1]
    RunWriter.create(killed, reader.config, dict(reader.environment), 2, {}, False, tables).close()
    done = hpcdml_job(3, "replay", killed)
    assert done.returncode == 0 and "all as recorded" in done.stdout, done.stdout + done.stderr
    count = int(done.stdout.split(": ")[-1].split(" of ")[0])
    assert 0 < count < len(tables["rounds"])
    wrong = hpcdml_job(3, "replay", killed, "--until", str(len(tables["rounds"])))
    assert wrong.returncode == 2 and f"must be from 1 to {count}" in wrong.stderr


def test_a_run_that_began_anew_is_repeated_to_there(hpcdml_job: Job, tmp_path: Path) -> None:
    run = tmp_path / "run"
    record(hpcdml_job, run, "--policy", "bsp", "--max-samples", "640", "--checkpoint-rounds", "1000")
    assert hpcdml_job(3, "resume", run, "--max-samples", "1280").returncode == 0
    done = hpcdml_job(3, "replay", run)
    assert done.returncode == 2 and "from version 20 on" in done.stderr and "--until 20" in done.stderr
    assert hpcdml_job(3, "replay", run, "--until", "20").returncode == 0
    ranks = hpcdml_job(4, "replay", run)
    assert ranks.returncode == 2 and "mpirun -n 3" in ranks.stderr
