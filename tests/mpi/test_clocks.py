"""One time for all ranks: ``mpirun -n 3 python -m pytest --with-mpi tests/mpi``."""

from __future__ import annotations

import time

import pytest

from hpcdml.mpi import clocks
from hpcdml.mpi.world import World, barrier, gather, join_world

pytestmark = [pytest.mark.mpi(min_size=2), pytest.mark.timeout(120)]


def test_ranks_agree_on_a_moment_however_far_apart_they_leave_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(world: World) -> None:
        barrier(world)
        time.sleep(0.3 * world.rank)

    monkeypatch.setattr(clocks, "barrier", late)
    world = join_world()
    try:
        # On one host perf_counter is the same clock everywhere.
        zeros = gather(world, int(1e9 * clocks.common_zero(world)))
        assert max(zeros) - min(zeros) < 0.1e9
    finally:
        world.comm.Free()
