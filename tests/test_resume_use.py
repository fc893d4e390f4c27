"""Resuming as users do it: other workers, other options, damaged checkpoints, nothing to go on from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.run_reader import RunReader

Job = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(300)

# Steps of a set length, so that a run lasts for several checkpoints on any machine.
OPTIONS = ["--policy", "losp", "--lr", "0.1", "--threads", "1", "--step-seconds", "0.01"]


def run_to_the_end(job: Job, folder: Path, *more: str) -> None:
    done = job(3, "train", *OPTIONS, "--max-samples", "9000", "--output", folder, *more)
    assert done.returncode == 0, done.stderr


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_valid_checkpoint_is_taken_and_the_record_goes_on(hpcdml_job: Job, tmp_path: Path) -> None:
    run_to_the_end(hpcdml_job, tmp_path, "--checkpoint-rounds", "10", "--keep-checkpoints", "9")
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert len(saved) >= 2
    for path in saved[1:]:
        damage(path)
    first = read_checkpoint(saved[0])
    done = hpcdml_job(3, "resume", tmp_path)
    assert done.returncode == 0, done.stderr
    for path in saved[1:]:
        assert f"hpcdml: warning: {path}: damaged" in done.stderr
    assert f"going on from {saved[0].name}: version {first.version}" in done.stderr
    run = RunReader(tmp_path)
    rounds, steps, pushes = (run.table(name) for name in ("rounds", "steps", "pushes"))
    np.testing.assert_array_equal(rounds["round"], np.arange(1, len(rounds) + 1))
    for worker in (1, 2):
        mine = steps[steps["worker"] == worker]
        np.testing.assert_array_equal(mine["step"], np.arange(1, len(mine) + 1))
        assert (np.diff(mine["time"]) > 0).all()
        sent = pushes[pushes["worker"] == worker]
        np.testing.assert_array_equal(sent["push"], np.arange(1, len(sent) + 1))
        assert sent["local_steps"].sum() == len(mine) and sent["samples"].sum() == mine["samples"][-1]
    assert rounds["samples"][-1] == pushes["samples"].sum() >= 8500
    kinds = [kind for _, _, kind, _ in run.events()]
    assert kinds.count("resumed") == 1 and kinds.count("finished") == 1 and kinds[-1] == "finished"


@pytest.mark.parametrize("ranks", [2, 4])
def test_other_workers_begin_anew_and_what_that_drops_is_told(ranks: int, hpcdml_job: Job, tmp_path: Path) -> None:
    run_to_the_end(hpcdml_job, tmp_path, "--checkpoint-rounds", "10", "--optimizer-args", "momentum=0.9")
    saved = sorted((tmp_path / "checkpoints").iterdir())
    for path in saved[1:]:
        path.unlink()
    done = hpcdml_job(ranks, "resume", tmp_path, "--max-samples", "20000")
    assert done.returncode == 0, done.stderr
    assert f"workers {'1' if ranks == 2 else '1, 2, 3'} in place of 1, 2; dropped: " in done.stderr
    assert ("the states of workers 2" if ranks == 2 else "workers 3 begin with copies") in done.stderr
    run = RunReader(tmp_path)
    assert run.workers == ranks - 1
    assert run.table("rounds")["samples"][-1] >= 18000
    assert run.table("evaluations")["accuracy"][-1] > 0.8
    assert "restarted" in [kind for _, _, kind, _ in run.events()]


def test_a_run_is_not_resumed_as_another_one(hpcdml_job: Job, tmp_path: Path) -> None:
    run_to_the_end(hpcdml_job, tmp_path, "--checkpoint-rounds", "100")
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    auto = ["train", "--resume", "auto", "--output", tmp_path, "--max-samples", "20000"]
    for change, first in (
        ([*OPTIONS, "--lr", "0.2"], "--lr 0.2"),
        ([*OPTIONS, "--model-args", "hidden=32"], '--model-args {"hidden": 32}'),
        (["--policy", "bsp", "--lr", "0.1"], "--policy bsp"),
        ([*OPTIONS, "--seed", "1"], "--seed 1"),
    ):
        done = hpcdml_job(3, *auto, *change)
        assert done.returncode == 2 and done.stderr.startswith(f"hpcdml: {first}: "), done.stderr
    # As it had ended, nothing is left to do; a larger bound is more to do.
    done = hpcdml_job(3, *auto[:-1], "9000", *OPTIONS)
    assert done.returncode == 0 and "the run has ended" in done.stdout
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert RunReader(tmp_path).finished


def test_where_there_is_nothing_to_go_on_from(hpcdml_job: Job, hpcdml: Job, tmp_path: Path) -> None:
    done = hpcdml_job(3, "resume", tmp_path / "none")
    assert done.returncode == 2 and "holds no valid checkpoint" in done.stderr
    assert hpcdml("resume", tmp_path).returncode == 2
    new = tmp_path / "new"
    run_to_the_end(hpcdml_job, new, "--resume", "auto", "--checkpoint-rounds", "1000000")
    # A run that was killed before its first checkpoint begins anew; one that came to an end is not lost.
    for path in (new / "checkpoints").iterdir():
        path.unlink()
    done = hpcdml_job(3, "train", *OPTIONS, "--resume", "auto", "--output", new)
    assert done.returncode == 2 and "holds a run already" in done.stderr


def test_a_checkpoint_that_cannot_be_written_is_a_warning(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--checkpoint-rounds", "10", "--keep-checkpoints", "9"]
    done = hpcdml_job(
        3, "train", *OPTIONS, *options, "--max-samples", "9000", "--output", tmp_path, env={"HPCDML_FAULT": "full:3"}
    )
    assert done.returncode == 0, done.stderr
    assert "hpcdml: warning: checkpoint " in done.stderr and "training goes on" in done.stderr
    assert "warning" in [kind for _, _, kind, _ in RunReader(tmp_path).events()]
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert saved and not list((tmp_path / "checkpoints").glob(".*"))
    assert read_checkpoint(saved[-1]).workers.keys() == {1, 2}
