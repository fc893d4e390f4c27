"""Which cores a rank of a shared host gets: bound or not, with and without Slurm, with hardware threads, too few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcdml.mpi import cores

Mask = frozenset[int]


def cpus(first: int, last: int) -> Mask:
    return frozenset(range(first, last + 1))


def single(count: int) -> cores.Units:
    return [frozenset({cpu}) for cpu in range(count)]


@pytest.mark.parametrize(
    ("masks", "server", "limit", "expected"),
    [
        ([cpus(0, 19)] * 5, 0, None, 4),  # 20 CPUs, one of them for the server
        ([cpus(0, 127)] * 5, 0, 20, 4),  # a node of 128, of which the job has 20
        ([cpus(0, 15)] * 4, None, None, 4),  # no server here
        ([cpus(0, 1)] * 5, 0, 20, 1),  # Slurm believes in more CPUs than there are
        ([cpus(0, 7), cpus(8, 15), cpus(16, 23)], 0, 24, 8),  # srun has bound each rank to its own
        ([cpus(0, 7), cpus(0, 7), cpus(8, 15)], 0, 16, 7),  # mpirun has bound them to sockets
        ([cpus(0, 0)] * 2, 0, None, 1),
    ],
)
def test_a_worker_counts_on_its_share(masks: list[Mask], server: int | None, limit: int | None, expected: int) -> None:
    worker = 1
    assert cores.share(masks, worker, server, limit) == expected


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 20, 64])
@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("server", [0, None])
def test_ranks_get_cores_of_their_own(count: int, ranks: int, server: int | None) -> None:
    masks = [cpus(0, count - 1)] * ranks
    parts = [cores.divide(masks, rank, server, single(count)) for rank in range(ranks)]
    if count < ranks:
        assert parts == masks
        return
    assert sum(map(len, parts)) == len(frozenset().union(*parts))  # no core twice
    workers = [part for rank, part in enumerate(parts) if rank != server]
    assert {len(part) for part in workers} == {cores.share(masks, 1, server, None)}
    assert all(max(part) - min(part) == len(part) - 1 for part in workers)
    if server is not None:
        assert parts[server] == masks[0] - frozenset().union(*workers)


def test_the_server_gets_a_physical_core_not_half_of_a_workers() -> None:
    units = [frozenset({core, core + 4}) for core in range(4)]  # two hardware threads each
    masks = [cpus(0, 7)] * 3
    assert [cores.divide(masks, rank, 0, units) for rank in range(3)] == [{0, 1, 4, 5}, {2, 6}, {3, 7}]


def test_what_the_launcher_has_bound_stays() -> None:
    masks = [cpus(0, 3), cpus(4, 7)]
    assert [cores.divide(masks, rank, 0, single(8)) for rank in range(2)] == masks
    partly = [cpus(0, 3), cpus(0, 3), cpus(2, 5)]
    assert [cores.divide(partly, rank, 0, single(8)) for rank in range(3)] == partly


def test_sockets_are_not_mixed(tmp_path: Path) -> None:
    for cpu in range(8):  # numbered across two sockets of two cores, as many machines do
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 2}\n")
        (folder / "core_id").write_text(f"{cpu // 2 % 2}\n")
    assert cores.physical_cores(cpus(0, 7), tmp_path) == [{0, 4}, {2, 6}, {1, 5}, {3, 7}]
    assert cores.physical_cores(frozenset({1, 2, 6}), tmp_path) == [{2, 6}, {1}]
    assert cores.physical_cores(frozenset({1, 2}), tmp_path / "none") == [{1}, {2}]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "20"}, 20),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"SLURM_CPUS_ON_NODE": "20"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "20(x2)"}, None),
        ({}, None),
    ],
)
def test_what_slurm_granted(env: dict[str, str], expected: int | None) -> None:
    assert cores.granted(env) == expected


def test_all_threads_of_a_process_are_bound() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    program = f"""
import os, threading
from hpcdml.mpi import cores
ready = threading.Event()
thread = threading.Thread(target=ready.wait, daemon=True)
thread.start()
cores.bind(frozenset([{allowed[1]}]))
assert len(os.listdir("/proc/self/task")) > 1
print({{cpu for tid in os.listdir("/proc/self/task") for cpu in os.sched_getaffinity(int(tid))}})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str({allowed[1]}), done.stderr
