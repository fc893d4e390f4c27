"""Scripts with a loop of their own that are stopped or killed, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

import launch
import under_way
from hpcdml.errors import PREEMPTED
from hpcdml.session.batches import shard
from hpcdml.session.places import Place, Places
from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.checkpoint_folder import newest_valid
from hpcdml.storage.run_reader import RunReader

pytestmark = pytest.mark.timeout(400)

SCRIPT = Path(__file__).with_name("resumed_session.py")
STEP = 0.02
OPTIONS = {"policy": "bsp", "resume": "auto", "checkpoint_seconds": 0.2, "threads": 1, "eval_seconds": 100.0}


def command(folder: Path, options: dict[str, Any], seconds: float = 0.0) -> list[str]:
    return [sys.executable, str(SCRIPT), str(folder), json.dumps({**OPTIONS, **options}), str(seconds)]


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda line: line["rank"])


def run(folder: Path, ranks: int = 3, **options: Any) -> list[dict[str, Any]]:
    done = launch.mpirun(ranks, *command(folder, options), timeout=200)
    assert done.returncode == 0, done.stderr
    return lines(done)


def broken(
    folder: Path, number: int, rank: int | None, after: int = 300, words: tuple[str, ...] = (), **options: Any
) -> tuple[int, str]:
    """Start the script with these words for mpirun, and send a signal to one rank, or kill all, when there is a
    checkpoint and so many samples have been trained on, in the second epoch unless others are given.
    """
    mpirun = [launch.find_mpirun() or "mpirun", "-n", "3", *words]
    job, mark = launch.start([*mpirun, *command(folder, options, STEP)])
    try:
        under_way.wait_until(
            lambda: under_way.samples(folder) >= after and newest_valid(folder / "checkpoints") is not None, job
        )
        if rank is None:
            launch.kill(mark)
        else:
            os.kill(launch.ranks(mark)[rank], number)
        out, err = job.communicate(timeout=100)
        assert not launch.wait_for_end(mark)
    finally:
        launch.kill(mark)
        job.wait()
    return job.returncode, out + err


@pytest.fixture(scope="module")
def unbroken(_needs_mpirun: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found = run(tmp_path_factory.mktemp("unbroken") / "run")
    assert [line["taken"] for line in found] == [0, 90, 90]
    return found


@pytest.mark.parametrize("rank", [0, 2])
def test_a_signal_ends_the_script_and_it_goes_on_bit_for_bit(
    unbroken: list[dict[str, Any]], tmp_path: Path, rank: int
) -> None:
    folder = tmp_path / "run"
    status, out = broken(folder, signal.SIGTERM, rank)
    assert status == PREEMPTED, out
    assert '"digest"' not in out and "Traceback" not in out  # what comes after the loop is not for now
    found = run(folder)
    rest = [line["taken"] for line in found]
    assert 0 < rest[1] < 75 and rest[1] == rest[2]
    assert found[1]["epochs"][0] >= 1 and found[1]["epochs"][-1] == 5
    for name in ("digest", "updates", "lr"):
        assert [line[name] for line in found][1:] == [line[name] for line in unbroken][1:], name
    assert found[0]["digest"] == unbroken[0]["digest"]
    steps = RunReader(folder).table("steps")
    assert [int((steps["worker"] == w).sum()) for w in (1, 2)] == [90, 90]


def test_a_killed_script_goes_on_and_a_finished_one_has_nothing_to_do(
    unbroken: list[dict[str, Any]], hpcdml_job: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    broken(folder, signal.SIGKILL, None)
    found = run(folder)
    for name in ("digest", "updates", "lr", "averaged"):
        assert [line[name] for line in found][1:] == [line[name] for line in unbroken][1:], name
    again = run(folder)
    assert [line["taken"] for line in again] == [0, 0, 0]
    assert {line["digest"] for line in again} == {unbroken[0]["digest"]} and RunReader(folder).finished
    # More epochs are more to do, and other workers as well: they begin where all together were.
    more = run(folder, ranks=4, loop=8)
    assert [line["taken"] for line in more] == [0, 20, 20, 20] and more[1]["epochs"] == [6, 7]
    done = hpcdml_job(4, "resume", folder)
    assert done.returncode == 2 and "that goes on when it is started again with Session(resume=" in done.stderr
    done = launch.mpirun(4, *command(folder, {"stateful": False, "loop": 9}))
    assert done.returncode == 2, done.stderr
    assert "stateful=...): has nothing; the checkpoint has averaged, scheduler; a run goes on only" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("hpcdml: stateful")]) <= 1


@pytest.mark.skipif(not launch.can_lose_ranks(), reason=launch.CANNOT_LOSE_RANKS)
def test_a_script_whose_server_dies_saves_its_models_and_goes_on(
    unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    status, out = broken(folder, signal.SIGKILL, 0, words=launch.TOLERANT)
    assert status == 1 and "rank 0, the server, is lost; this worker's model is in" in out, out
    assert sorted(p.name for p in (folder / "rescued").iterdir()) == ["worker-1.h5", "worker-2.h5"]
    assert [line["digest"] for line in run(folder)] == [line["digest"] for line in unbroken]


@pytest.mark.parametrize("policy", ["losp", "asp"])
def test_policies_that_do_not_wait_go_on(_needs_mpirun: None, tmp_path: Path, policy: str) -> None:
    folder = tmp_path / "run"
    options = {"policy": policy, "epochs": 8, "loop": None}
    status, out = broken(folder, signal.SIGTERM, 1, **options)
    assert status == PREEMPTED, out
    assert 'the script goes on when it is started again with Session(resume="auto"), from step-' in out
    found = run(folder, **options)
    assert len({line["digest"] for line in found}) == 1
    samples = int(RunReader(folder).table("rounds")["samples"][-1])
    assert abs(samples - 8 * 240) < 240  # what is under way when the server says stop counts as well
    # The bound is reached: nothing is to be done any more.
    again = run(folder, **options)
    assert [line["taken"] for line in again] == [0, 0, 0] and again[0]["digest"] == found[0]["digest"]


def test_a_run_may_have_nothing_left_to_do_when_it_goes_on(_needs_mpirun: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    status, out = broken(folder, signal.SIGTERM, 1)
    assert status == PREEMPTED, out
    found = run(folder, max_seconds=1e-3)
    assert all(line["taken"] <= 2 for line in found) and len({line["digest"] for line in found}) == 1


@pytest.mark.parametrize("policy", ["bsp", "losp"])
def test_a_large_integer_buffer_keeps_no_rank_from_its_end(_needs_mpirun: None, tmp_path: Path, policy: str) -> None:
    """What a rank that ends leaves unread must not need a receiver."""
    options = {"policy": policy, "counts": 3000, "checkpoint_seconds": None, "checkpoint_rounds": 1, "loop": 1}
    # Of 10 steps every third is followed by a mark, and so the last one: each worker has ended before it reads it.
    done = launch.mpirun(4, *command(tmp_path / "run", options, 0.3), timeout=100)
    assert done.returncode == 0 and len({line["digest"] for line in lines(done)}) == 1, done.stderr


def test_a_worker_that_hangs_in_the_end_keeps_nobody_for_ever(_needs_mpirun: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = {"hangs": 2, "checkpoint_seconds": 1000.0, "loop": 2, "worker_timeout": 2.0, "policy": "losp"}
    done = launch.mpirun(3, *command(folder, options), timeout=200)  # a minute of them for a loop that lasts longer
    assert done.returncode == 1 and "as nothing comes from 2 any more" in done.stderr, done.stderr
    assert RunReader(folder).finished
    checkpoint = read_checkpoint(newest_valid(folder / "checkpoints"), parameters=False)
    assert sorted(checkpoint.workers) == [1] and checkpoint.server["ended"]


def test_a_signal_after_one_of_the_loops_has_ended(_needs_mpirun: None, tmp_path: Path) -> None:
    """No consistent state can be had in the midst any more: all end, and go on from there."""
    folder = tmp_path / "run"
    options = {"policy": "asp", "loop": [1, 12]}
    status, out = broken(folder, signal.SIGTERM, 2, after=5 * 120, **options)
    assert status == PREEMPTED, out
    found = run(folder, **options)
    rest = [line["taken"] for line in found]
    assert rest[1] == 0 and 0 < rest[2] < 150, out
    steps = RunReader(folder).table("steps")
    assert [int((steps["worker"] == w).sum()) for w in (1, 2)] == [15, 180]
    assert len({line["digest"] for line in found}) == 1


def test_a_loader_goes_on_at_its_place() -> None:
    class Own(BatchSampler):
        pass

    loaders = [
        shard(DataLoader(range(40), batch_size=3, shuffle=True), 1, 2, 0),
        shard(DataLoader(range(40), batch_sampler=Own(SequentialSampler(range(40)), 4, drop_last=False)), 1, 2, 0),
        shard(DataLoader(range(40), batch_size=None), 1, 2, 0),
        [torch.tensor(i) for i in range(7)],
    ]
    for loader in loaders:
        passes: list[list[Any]] = []
        place = Place()
        for _ in range(3):
            passes.append([torch.as_tensor(batch).tolist() for batch in place.begin(loader)])
        samples = sum(len(batch) if isinstance(batch, list) else 1 for batch in passes[1][:4])
        places = Places()
        places.restore({"epoch": 1, "epoch_samples": 40, "loaders": [[2, True, 4, samples]]})
        again = places.of_next_loader()
        assert [torch.as_tensor(batch).tolist() for batch in again.begin(loader)] == passes[1][4:]
        assert [torch.as_tensor(batch).tolist() for batch in again.begin(loader)] == passes[2] and again.passes == 3


def test_a_place_is_estimated() -> None:
    loader = shard(DataLoader(range(60), batch_size=5, shuffle=True), 0, 3, 0)
    places = Places(epoch_samples=60)
    places.estimate(2 * 60 + 30)
    place = places.of_next_loader()
    assert places.epoch == 2
    assert len(list(place.begin(loader))) == 2 and (place.passes, place.batches, place.samples) == (3, 2, 10)
