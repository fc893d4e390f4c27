"""``hpcdml.Session``: loaders, wrong use, one process, and what a loop of one's own may do under mpirun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, WeightedRandomSampler

import hpcdml
import launch
from hpcdml.errors import UsageError
from hpcdml.session.batches import count, shard
from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.checkpoint_folder import newest_valid
from hpcdml.storage.run_reader import RunReader

CASES = Path(__file__).with_name("session_cases.py")
POLICIES = ["bsp", "local-sgd", "asp", "ssp", "osp", "losp"]
GOOD = ["plain", "leaves", "bounded", "skipped", "closure", "stream"]
GOOD += [f"uneven_{policy}" for policy in POLICIES] + ["idle_worker", "nobody_steps", "narrow"]
GOOD += [f"marked_{number}" for number in range(4)]


def drawn(loaders: list[Any]) -> list[list[int]]:
    return [[int(i) for batch in loader for i in batch] for loader in loaders]


@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_share_a_loader(shuffle: bool) -> None:
    loader = DataLoader(range(23), batch_size=4, shuffle=shuffle, collate_fn=lambda found: torch.tensor(found) + 100)
    parts = [shard(loader, worker, 3, 0) for worker in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    found = drawn(parts)
    assert [len(indices) for indices in found] == [8, 8, 8]
    assert {i for indices in found for i in indices} == set(range(100, 123))  # one of them comes twice
    assert (sorted(found[0]) != found[0]) == shuffle


def test_a_sampler_of_ones_own_is_dealt_out() -> None:
    torch.manual_seed(0)
    loader = DataLoader(range(40), batch_size=5, sampler=WeightedRandomSampler([1.0] * 20 + [0.0] * 20, 31))
    found = drawn([shard(loader, worker, 2, 0) for worker in range(2)])
    assert [len(indices) for indices in found] == [15, 15]
    assert max(max(indices) for indices in found) < 20


def test_a_batch_sampler_of_ones_own_is_dealt_out() -> None:
    class Own(BatchSampler):
        pass

    loader = DataLoader(range(40), batch_sampler=Own(SequentialSampler(range(40)), 10, drop_last=False))
    assert drawn([shard(loader, worker, 2, 0) for worker in range(2)]) == [
        [*range(10), *range(20, 30)],
        [*range(10, 20), *range(30, 40)],
    ]


def test_what_cannot_be_divided_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(5))

    loader = DataLoader(Stream(), batch_size=2)
    assert shard(loader, 0, 2, 0, tell=True) is loader and shard([1, 2], 0, 2, 0, tell=True) == [1, 2]
    assert shard(loader, 1, 2, 0) is loader
    assert capsys.readouterr().err.splitlines() == [
        f"hpcdml: note: {what} cannot be divided: every worker reads all of it (shard=False: as it should)"
        for what in ("an iterable data set", "a list")
    ]
    with pytest.raises(UsageError, match="2 samples cannot be shared by 3 workers"):
        shard(DataLoader(range(2)), 0, 3, 0)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ((torch.zeros(7, 2), torch.zeros(7)), 7),
        ({"n": 3, "x": torch.zeros(5, 1)}, 5),
        ([torch.tensor(1.0), np.zeros((4, 2))], 4),
        (object(), 1),
    ],
)
def test_samples_of_a_minibatch_are_counted(batch: Any, samples: int) -> None:
    assert count(batch) == samples


def test_wrong_use_is_told() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for arguments, options, text in [
        ((model, optimizer), {"policy": "lops"}, "^policy lops: must be one of bsp, local-sgd"),
        ((model, optimizer), {"max_local_steps": 0}, "^max_local_steps 0: must be at least 1"),
        ((model, optimizer), {"max_samples": "many"}, "max_samples='many'"),
        ((model, optimizer), {"polcy": "losp"}, r"^Session\(polcy=...\): there is no such option; there are policy"),
        ((model, [optimizer, optimizer]), {}, r"^Session\(optimizer\): 2 optimizers; must be one"),
        ((optimizer, model), {}, r"^Session\(model\): is a SGD; must be an nn.Module"),
        ((model, model), {}, r"^Session\(optimizer\): is a Linear; must be a torch.optim.Optimizer"),
        ((nn.Linear(2, 2), optimizer), {}, "2 of its 2 parameters are not the model's"),
    ]:
        with pytest.raises(UsageError, match=text):
            hpcdml.Session(*arguments, **options)
    with hpcdml.Session(model, optimizer) as session, pytest.raises(UsageError, match="needs a number"):
        list(session.epochs())
    with hpcdml.Session(model, optimizer, epochs=2) as session, pytest.raises(UsageError, match="cannot be counted"):
        session.batches([1, 2])


def test_one_process_stops_at_the_bounds_too() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(torch.ones(10, 2), batch_size=2)
    for options, steps in [({"epochs": 2.5}, 13), ({"max_samples": 7}, 4), ({"max_seconds": 1e-9}, 1)]:
        taken = 0
        with hpcdml.Session(model, optimizer, **options) as session:
            for _ in session.epochs():
                for x in session.batches(loader):
                    session.loss(model(x).sum()).backward()
                    optimizer.step()
                    taken += 1
        assert taken == steps and session.stopped and session.is_first and not session.is_server


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_cases_alone(tmp_path: Path) -> None:
    names = ["plain", "leaves", "bounded", "skipped", "closure", "stream", "uneven_losp"]
    done = launch.run([sys.executable, str(CASES), str(tmp_path), *names], timeout=600)
    assert done.returncode == 0, done.stderr
    found = {line["case"]: line for line in lines(done)}
    assert set(found) == set(names) and not any(line["mpi"] for line in found.values())
    assert found["plain"]["batches"] == 180 and found["plain"]["lengths"] == [30]
    assert found["plain"]["after"] < 0.5 * found["plain"]["before"]
    assert found["leaves"]["taken"] == 7
    assert not list(tmp_path.iterdir())  # nothing is written


@pytest.fixture(scope="module")
def job(_needs_mpirun: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """The folder of the runs, and by case what the three ranks of one job said, in rank order."""
    folder = tmp_path_factory.mktemp("session")
    done = launch.mpirun(3, sys.executable, str(CASES), str(folder), *GOOD, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(lines(done), key=lambda line: line["rank"])
    return folder, {name: [line for line in found if line["case"] == name] for name in GOOD}


pytestmark = pytest.mark.timeout(1000)


def table(folder: Path, name: str, which: str) -> np.ndarray:
    return RunReader(folder / name).table(which)


@pytest.mark.parametrize("name", GOOD)
def test_all_ranks_end_with_the_final_parameters(job: Any, name: str) -> None:
    folder, said = job
    assert [line["rank"] for line in said[name]] == [0, 1, 2]
    assert len({line["digest"] for line in said[name]}) == 1
    run = folder / (name if name != "stream" else "stream-1")
    assert RunReader(run).finished


def test_a_plain_loop(job: Any) -> None:
    folder, said = job
    server, *workers = said["plain"]
    assert server["batches"] == 0 and [w["batches"] for w in workers] == [90, 90]  # 120 samples a worker, by 8
    assert all(line["same_objects"] and line["same_shapes"] for line in said["plain"])
    assert all(line["optimizer_sees_the_model"] and line["lengths"] == [15] for line in said["plain"])
    assert all(w["after"] < 0.6 * server["before"] for w in said["plain"])
    steps = table(folder, "plain", "steps")
    assert [int((steps["worker"] == w).sum()) for w in (1, 2)] == [90, 90]
    assert np.isfinite(steps["loss"]).all() and steps["samples"].max() == 720
    assert table(folder, "plain", "rounds")["samples"][-1] == 1440
    config = RunReader(folder / "plain").config
    assert config["dataset"] == "session_cases.py (own loop)" and config["model"] == "Sequential"


@pytest.mark.parametrize("policy", POLICIES)
def test_workers_may_take_different_numbers_of_steps(job: Any, policy: str) -> None:
    folder, said = job
    assert [line["taken"] for line in said[f"uneven_{policy}"]] == [0, 5, 41]
    steps = table(folder, f"uneven_{policy}", "steps")
    assert [int((steps["worker"] == w).sum()) for w in (1, 2)] == [5, 41]
    pushes = table(folder, f"uneven_{policy}", "pushes")
    assert [int(pushes["local_steps"][pushes["worker"] == w].sum()) for w in (1, 2)] == [5, 41]  # none is lost


def test_workers_without_a_step_leave(job: Any) -> None:
    folder, said = job
    assert [line["taken"] for line in said["idle_worker"]] == [0, 0, 30]
    assert [line["taken"] for line in said["nobody_steps"]] == [0, 0, 0]
    assert not len(table(folder, "nobody_steps", "rounds"))


def test_a_loop_may_end_where_a_checkpoint_is_asked_for(job: Any) -> None:
    folder, said = job
    for number in range(4):
        assert [line["taken"] for line in said[f"marked_{number}"]] == [0, 7, 9]
        newest = newest_valid(folder / f"marked_{number}" / "checkpoints")
        assert newest is not None
        assert read_checkpoint(newest, parameters=False, workers=()).server["ended"]


def test_a_worker_breaks_out(job: Any) -> None:
    _, said = job
    assert [line["taken"] for line in said["leaves"]] == [0, 7, 45]


def test_the_server_stops_the_loops(job: Any) -> None:
    folder, said = job
    assert all(line["stopped"] for line in said["bounded"])
    samples = int(table(folder, "bounded", "rounds")["samples"][-1])
    assert abs(samples - 20 * 240) < 20 * 240 / 4
    assert table(folder, "bounded", "evaluations")["accuracy"][-1] > 0.7


def test_skipped_steps_are_none(job: Any) -> None:
    folder, said = job
    assert [line["tried"] for line in said["skipped"]] == [0, 7, 7]
    assert said["skipped"][1]["scale"] == 512.0
    steps = table(folder, "skipped", "steps")
    assert [int((steps["worker"] == w).sum()) for w in (1, 2)] == [6, 6]
    assert sorted(np.diff(steps["samples"][steps["worker"] == 1])) == [16] * 4 + [32]


def test_tools_read_the_runs(job: Any, hpcdml: Any) -> None:
    folder, _ = job
    done = hpcdml("report", folder / "plain", folder / "closure")
    assert done.returncode == 0, done.stderr
    assert "losp" in done.stdout and "local-sgd" in done.stdout
    done = hpcdml("inspect", folder / "bounded")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("raises", 1, "hpcdml: rank 2 on * session_cases.py:*: RuntimeError: the disk is on fire (Session(debug"),
        ("unsharded", 1, "hpcdml: rank 0 on *: a step of the optimizer on rank 0, which is the server and must not"),
        ("unknown", 2, "hpcdml: policy lops: must be one of bsp,"),
        ("nobody_steps nobody_steps", 2, "hpcdml: output *: holds a run already; choose another folder or add overwri"),
    ],
)
def test_a_failure_ends_all_ranks(_needs_mpirun: None, tmp_path: Path, name: str, status: int, text: str) -> None:
    done = launch.mpirun(3, sys.executable, str(CASES), str(tmp_path), *name.split(), timeout=600)
    assert done.returncode == status, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("hpcdml: ")]
    assert len(said) == 1 and all(part in said[0] for part in text.split("*")), done.stderr
    assert "Traceback" not in done.stderr


def test_one_rank_is_too_few(_needs_mpirun: None, tmp_path: Path) -> None:
    done = launch.mpirun(1, sys.executable, str(CASES), str(tmp_path), "plain", timeout=600)
    assert done.returncode == 2
    assert "a session needs at least 2 ranks, a server and its workers, or no mpirun at all" in done.stderr


@pytest.mark.skipif(not launch.can_lose_ranks(), reason=launch.CANNOT_LOSE_RANKS)
def test_where_ranks_may_die_a_worker_that_fails_leaves_alone(tmp_path: Path) -> None:
    done = launch.mpirun(3, *launch.TOLERANT, sys.executable, str(CASES), str(tmp_path), "raises", timeout=600)
    assert "hpcdml: rank 2 on" in done.stderr and "RuntimeError: the disk is on fire" in done.stderr
    assert {line["rank"] for line in lines(done)} == {0, 1}
    run = RunReader(tmp_path / "raises")
    steps = run.table("steps")
    assert run.finished and int((steps["worker"] == 1).sum()) == 15
