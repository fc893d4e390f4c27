"""How fast rank 0 and a worker exchange some megabytes, in both directions at once, and what every rank has to tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from mpi4py import MPI

from hpcdml.mpi.backoff import Backoff
from hpcdml.mpi.tags import Tag
from hpcdml.mpi.world import SERVER, World, wait

_PIECE = 1 << 20
_FIRST = 1 << 20
_MOST = 1 << 26
_REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """Bytes a second between rank 0 and a worker: ``up`` to rank 0, ``down`` from it, both at the same time."""

    rank: int
    up: float
    down: float


def gather_bytes(world: World, data: bytes) -> list[bytes]:
    """What every rank has to tell, in rank order, on rank 0; elsewhere nothing."""
    sizes = np.zeros((world.size, 1), np.int64)
    wait(world.comm.Iallgather(np.array([len(data)], np.int64), sizes))
    if not world.is_server:
        wait(world.comm.Isend(np.frombuffer(data, np.uint8), SERVER, Tag.STATE))
        return []
    found = [data]
    for rank in world.workers:
        told = np.empty(int(sizes[rank, 0]), np.uint8)
        wait(world.comm.Irecv(told, rank, Tag.STATE))
        found.append(told.tobytes())
    return found


def measure(world: World, workers: Sequence[int], seconds: float) -> list[Speed]:
    """Measure the link of some workers, one after the other; every rank calls this.

    Args:
        workers: their ranks, the same on all ranks.
        seconds: about how long all of it may take.

    Returns:
        Their speeds on rank 0; elsewhere nothing.
    """
    found = []
    for worker in workers:
        if world.rank not in (SERVER, worker):
            continue
        peer = worker if world.is_server else SERVER
        _exchange(world.comm, peer, _FIRST)  # opens the connection
        first = _exchange(world.comm, peer, _FIRST)
        # Rank 0 says how much to send, so that a slow link does not take for ever.
        share = _FIRST / first * seconds / len(workers) / _REPEATS
        size = np.array([min(_MOST, max(_FIRST, int(share)))], np.int64)
        if world.is_server:
            wait(world.comm.Isend(size, peer, Tag.STATE))
        else:
            wait(world.comm.Irecv(size, peer, Tag.STATE))
        # The median: one side may lose its core for a while, and what has come by then looks all too quick.
        mine = np.array([median(_exchange(world.comm, peer, int(size[0])) for _ in range(_REPEATS))])
        if world.is_server:
            other = np.zeros(1)
            wait(world.comm.Irecv(other, peer, Tag.STATE))
            found.append(Speed(worker, float(size[0] / mine[0]), float(size[0] / other[0])))
        else:
            wait(world.comm.Isend(mine, peer, Tag.STATE))
    wait(world.comm.Ibarrier())
    return found


def _exchange(comm: MPI.Comm, peer: int, size: int) -> float:
    """Send and receive so many bytes at once; returns the seconds until all had been received."""
    sent, got = np.zeros(size, np.uint8), np.empty(size, np.uint8)
    parts = [slice(start, start + _PIECE) for start in range(0, size, _PIECE)]
    receives = [comm.Irecv(got[part], peer, Tag.CHUNK) for part in parts]
    empty = np.zeros(0, np.uint8)
    ready = comm.Irecv(np.empty(0, np.uint8), peer, Tag.HEADER)
    wait(comm.Isend(empty, peer, Tag.HEADER))
    wait(ready)  # both have posted their receives
    begin = time.perf_counter()
    sends = [comm.Isend(sent[part], peer, Tag.CHUNK) for part in parts]
    backoff = Backoff(200e-6)
    while not MPI.Request.Testall(receives):
        MPI.Request.Testall(sends)
        backoff.wait()
    seconds = time.perf_counter() - begin
    while not MPI.Request.Testall(sends):
        backoff.wait()
    return max(seconds, 1e-9)
