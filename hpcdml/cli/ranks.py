"""One voice for many ranks: what every rank would say is said by one of them, before any of them leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

LAUNCHER_RANKS = (
    "OMPI_COMM_WORLD_RANK",  # Open MPI's mpirun
    "PMIX_RANK",  # Open MPI 5, and srun --mpi=pmix
    "PMI_RANK",  # MPICH, Intel MPI, Cray, and srun --mpi=pmi2
    "MV2_COMM_WORLD_RANK",  # MVAPICH
    "PALS_RANKID",  # HPE's launcher
)


def launcher_rank(env: Mapping[str, str] = os.environ) -> int | None:
    """This process's rank as its MPI launcher gave it in the environment; none: not started by one."""
    for name in LAUNCHER_RANKS:
        if env.get(name, "").isdigit():
            return int(env[name])
    # A batch script and an interactive shell are steps of one task: only a step of several is a launch.
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    if "SLURM_STEP_ID" in env and tasks.isdigit() and int(tasks) > 1 and env.get("SLURM_PROCID", "").isdigit():
        return int(env["SLURM_PROCID"])
    return None


def settle(status: int, text: str = "") -> int:
    """Agree with all ranks on how to go on, and say ``text`` once. Under a launcher every rank must call this.

    Args:
        status: exit status that this rank would leave with; 0 where nothing is wrong.
        text: its reason, for standard error; with status 0 an answer, for standard output.

    Returns:
        0 if it is 0 on all ranks, else the status of the lowest rank that has another, whose text is the one told.
    """
    rank = launcher_rank()
    if rank is None:
        write(text, status)
        return status
    try:
        from hpcdml.mpi import once
    except (ImportError, RuntimeError) as problem:  # mpi4py found no MPI library
        if rank == 0:
            reason = " ".join(str(problem).split())
            write(text or f"hpcdml: mpi4py cannot be used: {reason}", status or 1)
        return status or 1
    return once.settle(status, text)


def write(text: str, status: int) -> None:
    """Write an answer (status 0) to standard output, anything else to standard error, and flush."""
    if text:
        print(text, file=sys.stderr if status else sys.stdout, flush=True)
