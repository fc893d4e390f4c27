"""Said by one rank for all, and heard before any rank leaves: a launcher kills the others at the first failing exit."""

from __future__ import annotations

import os
import sys
from array import array

from mpi4py import MPI

from hpcdml.mpi.backoff import Backoff


def settle(status: int, text: str) -> int:
    """Agree on the status of the lowest rank whose status is not 0, and let it say why. Every rank calls this.

    Args:
        status: this rank's exit status, 0 to 255; 0 where nothing is wrong.
        text: its reason; with status 0 on all ranks an answer, told by rank 0 on standard output.

    Returns:
        The same status on all ranks, after the text was written.
    """
    comm = MPI.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    mine, lowest = array("q", [rank * 256 + status if status else size * 256]), array("q", [0])
    _wait(comm.Iallreduce(mine, lowest, op=MPI.MIN))
    speaker, agreed = divmod(lowest[0], 256)
    if rank == speaker and (tasks_apart() < 2 or os.environ.get("SLURM_PROCID") == "0"):
        where = f" (rank {rank} on {MPI.Get_processor_name()})" if rank else ""
        print(text + where, file=sys.stderr, flush=True)
    elif rank == 0 and not agreed and text:
        print(text, flush=True)
    _wait(comm.Ibarrier())
    return agreed


def tasks_apart() -> int:
    """How many tasks srun has started each as an MPI job of one rank, for want of ``--mpi``; 0: that is not so."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    alone = MPI.COMM_WORLD.Get_size() == 1 and "SLURM_STEP_ID" in os.environ
    return int(tasks) if alone and tasks.isdigit() and int(tasks) > 1 else 0


def abort(status: int) -> None:
    """End all ranks at once, for a failure that only this rank knows of: the others may be waiting for it."""
    MPI.COMM_WORLD.Abort(status)


def _wait(request: MPI.Request) -> None:
    """Wait with idle hands: what this rank waits for may be running on the same core."""
    backoff = Backoff()
    while not request.Test():
        backoff.wait()
