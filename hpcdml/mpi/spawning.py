"""New processes for a running job, which take the places of workers that have died (``MPI_Comm_spawn``).

Rank 0 calls it from a thread of its own, as it lasts until the new process has started MPI, a second or more. Other
workers are not asked: each process is joined to the server alone, by a communicator of these two.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from hpcdml.errors import MachineError
from hpcdml.mpi.tags import Tag
from hpcdml.mpi.world import SERVER, World, join_world, wait

_HEAD = 3  # rank, ranks of the run, size of what follows


def may_spawn() -> bool:
    """Whether this MPI lets a thread start processes while another one communicates."""
    return bool(MPI.Query_thread() >= MPI.THREAD_MULTIPLE)


def spawn(program: list[str]) -> MPI.Intercomm:
    """Start ``python PROGRAM`` as one process, in this one's folder; returns once it has started MPI.

    Raises:
        MachineError: there is no room for it, for one.
    """
    info = MPI.Info.Create()
    info.Set("wdir", os.getcwd())
    try:
        comm = MPI.COMM_SELF.Spawn(sys.executable, program, 1, info)
    except MPI.Exception as error:
        raise MachineError(f"no process could be started: {error}") from error
    info.Free()
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    return comm


def introduce(comm: MPI.Intercomm, world: World, rank: int, given: dict[str, Any]) -> list[object]:
    """Start telling a new process who it is and what it needs; returns what must be kept until it has heard of it."""
    data = np.frombuffer(bytearray(json.dumps(given).encode()), np.uint8)
    head = np.array([rank, world.size, len(data)], np.int64)
    run = np.array([world.run_id], np.uint64)
    sends = [comm.Isend(part, 0, Tag.STATE) for part in (head, run, data)]
    return [*sends, head, run, data]


def meet() -> tuple[World, World, dict[str, Any]]:
    """In the new process: this rank as it is alone, the same with the way to the server, and what that has given.

    Its number among the workers of its host, and the cores that it counts on, are as if it had been there from the
    start, by the ``hosts`` of the ranks that the server has given.
    """
    alone = join_world()
    parent = MPI.Comm.Get_parent()
    parent.Set_errhandler(MPI.ERRORS_RETURN)
    head, run = np.zeros(_HEAD, np.int64), np.zeros(1, np.uint64)
    wait(parent.Irecv(head, SERVER, Tag.STATE))
    wait(parent.Irecv(run, SERVER, Tag.STATE))
    rank, size, count = (int(value) for value in head)
    data = np.empty(count, np.uint8)
    wait(parent.Irecv(data, SERVER, Tag.STATE))
    given: dict[str, Any] = json.loads(data.tobytes())
    host = socket.gethostname()
    number, share = place_on(host, rank, given["hosts"], alone.cores)

    def place(comm: MPI.Comm) -> World:
        return World(comm, rank, size, number, share, alone.own_cpus, int(run[0]), host, beside_server=False)

    return place(alone.comm), place(parent), given


def place_on(host: str, rank: int, hosts: Sequence[str], free: int) -> tuple[int, int]:
    """The number of a new worker among those of its host, from 0, and its share of the host's ``free`` cores.

    Args:
        rank: whose place it takes, there or on another host.
        hosts: host names of all ranks of the run, the server's first.
    """
    others = [other for other in range(1, len(hosts)) if hosts[other] == host and other != rank]
    number = sum(other < rank for other in others) if hosts[rank] == host else len(others)
    server = int(hosts[SERVER] == host)
    return number, max(1, (free - server) // (len(others) + 1))
