"""Ranks of real jobs that die, raise, hang and come back, under ``mpirun --with-ft ulfm``."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

import launch
import under_way
from hpcdml.emulation.cluster import Cluster
from hpcdml.errors import PREEMPTED, HpcdmlError
from hpcdml.mpi.spawning import place_on
from hpcdml.storage.run_reader import RunReader

Job = Callable[..., subprocess.CompletedProcess[str]]

OPTIONS = ["--step-seconds", "0.003", "--threads", "1", "--lr", "0.1", "--batch-size", "16"]
# So that it happens in the midst of a push or an answer, of which the server's buffers hold a part.
MANY_CHUNKS = ["--model", "mlp", "--model-args", "hidden=600,layers=2", "--chunk-kib", "32"]

pytestmark = [
    pytest.mark.timeout(200),
    pytest.mark.skipif(not launch.can_lose_ranks(), reason=launch.CANNOT_LOSE_RANKS),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks' processes by /proc"),
]


class Running:
    """A job with fault tolerance that is training."""

    def __init__(self, job: subprocess.Popen[str], mark: str, folder: Path) -> None:
        self.job, self.mark, self.folder = job, mark, folder

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        os.kill(launch.ranks(self.mark)[rank], number)

    def end(self) -> tuple[int, str]:
        out, err = self.job.communicate(timeout=120)
        return self.job.returncode, out + err


def tolerant(ranks: int, *words: str, cluster: Cluster | None = None) -> list[str]:
    """The command line of ``hpcdml WORDS`` as a job that goes on when a rank dies."""
    program = [sys.executable, "-m", "hpcdml", *words]
    if cluster is None:
        command = [launch.find_mpirun() or "mpirun", "-n", str(ranks), *program]
    else:
        command = cluster.command(ranks, program)
    at = next(place for place, word in enumerate(command) if word.endswith("mpirun")) + 1
    return [*command[:at], *launch.TOLERANT, *command[at:]]


@contextmanager
def running(
    folder: Path, ranks: int, *options: str, rounds: int = 20, cluster: Cluster | None = None
) -> Iterator[Running]:
    """Start a job, and wait until it has made so many rounds; at the end, nothing of it is left."""
    command = tolerant(ranks, "train", *OPTIONS, *options, "--output", str(folder), cluster=cluster)
    job, mark = launch.start(command, cluster and cluster.environment())
    try:
        trains = under_way.wait_until(lambda: len(under_way.rounds(folder)) >= rounds, job)
        assert trains, job.communicate(timeout=1)
        yield Running(job, mark, folder)
        assert not launch.wait_for_end(mark)
    finally:
        launch.kill(mark)
        job.wait()


def kinds(folder: Path) -> list[tuple[int, str]]:
    """Rank and kind of what happened to workers."""
    return [(rank, kind) for _, rank, kind, _ in RunReader(folder).events() if kind in ("lost", "silent", "back")]


def accuracy(folder: Path) -> float:
    return float(RunReader(folder).table("evaluations")["accuracy"][-1])


@pytest.mark.parametrize("policy", ["losp", "bsp", "asp", "asp in many chunks"])
def test_two_of_four_workers_die_and_the_others_finish(policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    options = MANY_CHUNKS if "chunks" in policy else []
    with running(tmp_path, 5, "--policy", policy.split()[0], "--epochs", "60", *options) as run:
        for rank in random.sample(range(1, 5), 2):
            time.sleep(random.uniform(0.0, 0.5))
            run.kill(rank)
        status, out = run.end()
    assert status == 0, out
    assert len({rank for rank, kind in kinds(tmp_path) if kind == "lost"}) == 2, out
    assert "lost: on" in out
    reader = RunReader(tmp_path)
    assert reader.finished and accuracy(tmp_path) > 0.95
    # The samples of the dead are trained on by the others, to the same number in all.
    assert int(reader.table("rounds")["samples"][-1]) >= 60 * 1437 - 500
    if policy == "losp":
        done = hpcdml_job(5, "replay", tmp_path)
        assert done.returncode == 2 and "such a run cannot be repeated" in done.stderr


@pytest.mark.parametrize("policy", ["losp", "bsp", "ssp", "asp", "asp in many chunks"])
def test_a_worker_that_hangs_is_left_out_and_let_back_in(policy: str, tmp_path: Path) -> None:
    options = ["--policy", policy.split()[0], "--worker-timeout", "1", "--max-samples", "10000000"]
    options += MANY_CHUNKS if "chunks" in policy else []
    with running(tmp_path, 4, *options, "--max-seconds", "9") as run:
        run.kill(2, signal.SIGSTOP)
        time.sleep(3)
        run.kill(2, signal.SIGCONT)
        status, out = run.end()
    assert status == 0, out
    assert kinds(tmp_path) == [(2, "silent"), (2, "back")], out
    times = [seconds for seconds, _, kind, _ in RunReader(tmp_path).events() if kind in ("silent", "back")]
    rounds = RunReader(tmp_path).table("rounds")
    meanwhile = rounds[(rounds["time"] > times[0]) & (rounds["time"] < times[1])]
    assert len(meanwhile) > 20 and accuracy(tmp_path) > 0.9
    # The worker pushes again, with the others.
    pushes = RunReader(tmp_path).table("pushes")
    assert (pushes["time"][pushes["worker"] == 2] > times[1]).sum() > 20


@pytest.fixture
def hosts() -> Iterator[Cluster]:
    """Three emulated hosts."""
    stack = ExitStack()
    try:
        made = stack.enter_context(Cluster(3, "1gbit", "faults"))
    except HpcdmlError as problem:
        pytest.skip(str(problem))
    with stack:
        yield made


def test_a_host_that_is_cut_off_for_seconds_comes_back(hosts: Cluster, tmp_path: Path) -> None:
    options = ["--policy", "losp", "--worker-timeout", "1", "--max-samples", "10000000", "--max-seconds", "12"]
    with running(tmp_path, 3, *options, cluster=hosts) as run:
        hosts.link_down("h2")
        time.sleep(3)
        hosts.link_up("h2")
        status, out = run.end()
    assert status == 0, out
    assert kinds(tmp_path) == [(2, "silent"), (2, "back")], out
    assert accuracy(tmp_path) > 0.9


def test_a_worker_that_hangs_for_good_is_ended_with_the_others(tmp_path: Path) -> None:
    options = ["--policy", "losp", "--worker-timeout", "1", "--max-samples", "10000000", "--max-seconds", "6"]
    with running(tmp_path, 4, *options) as run:
        run.kill(3, signal.SIGSTOP)
        status, out = run.end()
    assert status == 1 and "nothing comes from 3 any more" in out, out
    assert RunReader(tmp_path).finished and RunReader(tmp_path).parameters() is not None


def test_too_few_workers_end_the_run_after_a_checkpoint(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--policy", "osp", "--min-workers", "3", "--epochs", "5000"]
    with running(tmp_path, 4, *options) as run:
        run.kill(1)
        status, out = run.end()
    assert status == PREEMPTED, out
    assert "lost: on" in out and kinds(tmp_path) == [(1, "lost")]
    assert "ended early (2 workers are left, fewer than --min-workers 3), with status 75" in out
    assert f"hpcdml resume {tmp_path} goes on from step-" in out
    done = hpcdml_job(3, "resume", tmp_path, "--max-samples", "30000", "--epochs", "none")
    assert done.returncode == 0, done.stderr
    assert RunReader(tmp_path).finished


def test_too_few_workers_end_the_run_alike_where_one_hangs(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--policy", "losp", "--worker-timeout", "1", "--min-workers", "2", "--epochs", "5000"]
    with running(tmp_path, 3, *options) as run:
        run.kill(2, signal.SIGSTOP)
        status, out = run.end()
    assert status == PREEMPTED and "ended by force, as nothing comes from 2 any more" in out, out
    done = hpcdml_job(2, "resume", tmp_path, "--max-samples", "30000", "--epochs", "none")
    assert done.returncode == 0, done.stderr
    assert RunReader(tmp_path).finished


def test_a_run_whose_last_worker_dies_has_failed(tmp_path: Path) -> None:
    with running(tmp_path, 2, "--policy", "losp", "--epochs", "5000") as run:
        run.kill(1)
        status, out = run.end()
    assert status == 1 and "no worker is left; the last one was rank 1" in out, out


def test_a_server_that_dies_ends_all_and_the_run_goes_on(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--policy", "losp", "--epochs", "5000", "--checkpoint-rounds", "10"]
    with running(tmp_path, 3, *options, rounds=60) as run:
        begin = time.monotonic()
        run.kill(0)
        status, out = run.end()
        took = time.monotonic() - begin
    assert status == 1 and "rank 0, the server, is lost; this worker's model is in" in out, out
    assert took < 60
    assert sorted(p.name for p in (tmp_path / "rescued").iterdir()) == ["worker-1.h5", "worker-2.h5"]
    done = hpcdml_job(3, "resume", tmp_path, "--max-samples", "20000", "--epochs", "none")
    assert done.returncode == 0 and RunReader(tmp_path).finished, done.stderr


def test_workers_without_a_server_leave_when_the_slowest_has_saved_its_model(tmp_path: Path) -> None:
    with running(tmp_path, 3, "--policy", "losp", "--epochs", "5000") as run:
        run.kill(2, signal.SIGSTOP)
        run.kill(0)
        assert under_way.wait_until(lambda: (tmp_path / "rescued" / "worker-1.h5").exists(), run.job)
        time.sleep(1)
        assert run.job.poll() is None
        run.kill(2, signal.SIGCONT)
        status, out = run.end()
    assert status == 1, out
    assert sorted(p.name for p in (tmp_path / "rescued").iterdir()) == ["worker-1.h5", "worker-2.h5"]


def test_a_server_that_dies_ends_all_on_other_hosts_too_with_status_1(hosts: Cluster, tmp_path: Path) -> None:
    with running(tmp_path, 3, "--policy", "losp", "--epochs", "5000", cluster=hosts) as run:
        run.kill(0)
        status, out = run.end()
    assert status == 1, out
    assert all(f"rank {rank} on h{rank}: rank 0, the server, is lost; this worker" in out for rank in (1, 2)), out
    assert sorted(p.name for p in (tmp_path / "rescued").iterdir()) == ["worker-1.h5", "worker-2.h5"]


def test_a_server_that_hangs_ends_workers_on_other_hosts_who_agree_that_it_does(hosts: Cluster, tmp_path: Path) -> None:
    with running(tmp_path, 3, "--policy", "losp", "--worker-timeout", "1", "--epochs", "5000", cluster=hosts) as run:
        run.kill(0, signal.SIGSTOP)
        status, out = run.end()
    assert status not in (0, None), out
    assert "on h1: rank 0, the server, has not answered for 30 s; this worker's model is in" in out
    assert sorted(p.name for p in (tmp_path / "rescued").iterdir()) == ["worker-1.h5", "worker-2.h5"]


@pytest.mark.parametrize("policy", ["losp", "bsp"])
def test_a_new_process_takes_the_place_of_a_worker_that_died(policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--policy", policy, "--respawn", "1", "--max-samples", "10000000", "--max-seconds", "20"]
    with running(tmp_path, 4, *options) as run:
        run.kill(2)
        status, out = run.end()
    assert status == 0, out
    assert kinds(tmp_path) == [(2, "lost"), (2, "back")], out
    back = [seconds for seconds, _, kind, _ in RunReader(tmp_path).events() if kind == "back"]
    run_ = RunReader(tmp_path)
    pushes, steps = run_.table("pushes"), run_.table("steps")
    assert (pushes["time"][pushes["worker"] == 2] > back[0]).sum() > 20
    # It counts its steps and pushes on from those of the one that died.
    steps = steps[steps["worker"] == 2]
    assert len(steps) == len(np.unique(steps["step"])) and len(steps) > 40
    # Its time is that of the others: no step ends after the push that it is in has arrived.
    pushes = pushes[(pushes["worker"] == 2) & (pushes["time"] > back[0]) & (pushes["local_steps"] > 0)]
    ended = dict(zip(steps["step"].tolist(), steps["time"].tolist(), strict=True))
    late = [ended[p["last_step"]] - p["time"] for p in pushes if p["last_step"] in ended]
    assert len(late) > 20 and -0.5 < np.median(late) < 0.1
    assert accuracy(tmp_path) > 0.9
    assert hpcdml_job(1, "inspect", tmp_path / "run.h5").returncode == 0


def test_a_new_process_takes_the_place_of_the_last_worker(tmp_path: Path) -> None:
    options = ["--policy", "bsp", "--respawn", "1", "--min-workers", "1", "--max-samples", "10000000"]
    with running(tmp_path, 2, *options, "--max-seconds", "15") as run:
        run.kill(1)
        status, out = run.end()
    assert status == 0, out
    assert kinds(tmp_path) == [(1, "lost"), (1, "back")], out
    back = next(seconds for seconds, _, kind, _ in RunReader(tmp_path).events() if kind == "back")
    assert (RunReader(tmp_path).table("rounds")["time"] > back).sum() > 20


def test_a_new_process_takes_the_cores_and_the_device_of_the_one_that_died() -> None:
    hosts = ["a", "a", "a", "b", "b"]
    assert [place_on("a", 1, hosts, 8), place_on("a", 2, hosts, 8)] == [(0, 3), (1, 3)]
    assert [place_on("b", 3, hosts, 8), place_on("b", 4, hosts, 8)] == [(0, 4), (1, 4)]
    assert place_on("a", 4, hosts, 8) == (2, 2)  # another host than before
    assert place_on("c", 4, hosts, 8) == (0, 8) and place_on("a", 1, hosts, 2) == (0, 1)


def test_a_new_process_saves_its_model_too_when_the_server_dies(tmp_path: Path) -> None:
    options = ["--policy", "losp", "--respawn", "1", "--epochs", "5000"]
    with running(tmp_path, 4, *options) as run:
        first = launch.ranks(run.mark)
        run.kill(2)
        assert under_way.wait_until(lambda: kinds(tmp_path) == [(2, "lost"), (2, "back")], run.job)
        os.kill(first[0], signal.SIGKILL)  # the new process is a rank 0 as well, of a job of its own
        status, out = run.end()
    # Open MPI 5.0's mpirun counts the new process's end as that of the job.
    assert status in (1, 137), out
    assert sorted(p.name for p in (tmp_path / "rescued").iterdir()) == [f"worker-{rank}.h5" for rank in (1, 2, 3)], out


def test_a_new_process_that_dies_before_it_has_started_keeps_nobody(tmp_path: Path) -> None:
    options = ["--policy", "losp", "--respawn", "2", "--max-samples", "10000000", "--max-seconds", "12"]
    with running(tmp_path, 4, *options) as run:
        run.kill(2)
        starting: list[int] = []
        deadline = time.monotonic() + 60
        while not starting and time.monotonic() < deadline:
            time.sleep(0.01)
            starting = [pid for pid, line in launch.processes(run.mark).items() if "training.joining" in line]
        os.kill(starting[0], signal.SIGKILL)
        status, out = run.end()
    # Open MPI 5.0's mpirun counts the new process's end as that of the job.
    assert status in (0, 137), out
    assert "in place of rank 2: the new process has not started within" in out
    assert RunReader(tmp_path).finished and accuracy(tmp_path) > 0.9


MODEL = """
import torch
from torch import nn

class Model(nn.Sequential):
    def __init__(self, rank=0):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.steps = 0

    def forward(self, x):
        import os
        self.steps += self.training
        if self.steps == 40 and os.environ["OMPI_COMM_WORLD_RANK"] == "2":
            raise RuntimeError("no more of this")
        return super().forward(x)

def build(**kwargs):
    return Model()
"""


def test_a_worker_that_raises_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)  # where the module is found
    with running(tmp_path / "run", 4, "--model", "mine:build", "--epochs", "20", rounds=1) as run:
        status, out = run.end()
    assert status == 0, out
    assert kinds(tmp_path / "run") == [(2, "lost")]
    assert "rank 2 on" in out and "RuntimeError: no more of this" in out
    finals = RunReader(tmp_path / "run").parameters()
    assert finals is not None and all(np.isfinite(values).all() for values in finals.values())
