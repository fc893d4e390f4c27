"""What an MPI launcher tells its processes in their environment, before any of them has asked MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

JOB_VARIABLES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "SLURM_", "HYDRA_", "MPIEXEC_", "MV2_")
"""How the names of the variables begin that a process must not inherit which is to be no rank of this job."""

# Variables with the rank, the number of ranks, and that of the ranks on this host; Slurm's are of the step.
_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE")
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),  # Open MPI's mpirun
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI, Cray, and srun --mpi=pmi2
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),  # MVAPICH
    ("PMIX_RANK", *_STEP),  # Open MPI 5, and srun --mpi=pmix
    ("SLURM_PROCID", *_STEP),
)

LAUNCHER_RANKS = (*(rank for rank, _, _ in _LAUNCHERS if rank != "SLURM_PROCID"), "PALS_RANKID")
"""Variables of which each tells that a launcher has started this process; HPE's PALS tells no number of ranks."""


class Launched(NamedTuple):
    """This process's rank, the number of ranks, and that of the ranks on its host; 1 where it is not told."""

    rank: int
    size: int
    local: int


ALONE = Launched(0, 1, 1)


def launched(env: Mapping[str, str] = os.environ) -> Launched | None:
    """What the launcher tells; none: not started by one, or by one that does not tell.

    To be asked before MPI starts: Open MPI sets these variables itself in a process that it believes to be alone.
    """
    for rank, size, local in _LAUNCHERS:
        if env.get(rank, "").isdigit() and env.get(size, "").isdigit():
            if rank == "SLURM_PROCID" and not _is_step_of_several(env):
                continue
            # Slurm's has the form 2(x3), or 3,2 where the hosts differ.
            here = env.get(local, "").partition("(")[0].partition(",")[0]
            return Launched(int(env[rank]), int(env[size]), int(here) if here.isdigit() else 1)
    return None


def launcher_rank(env: Mapping[str, str] = os.environ) -> int | None:
    """This process's rank as its MPI launcher gave it in the environment; none: not started by one."""
    for name in LAUNCHER_RANKS:
        if env.get(name, "").isdigit():
            return int(env[name])
    if "SLURM_STEP_ID" in env and _is_step_of_several(env) and env.get("SLURM_PROCID", "").isdigit():
        return int(env["SLURM_PROCID"])
    return None


def _is_step_of_several(env: Mapping[str, str]) -> bool:
    """A batch script and an interactive shell are steps of one task: only a step of several is a launch."""
    tasks = env.get("SLURM_STEP_NUM_TASKS", "")
    return tasks.isdigit() and int(tasks) > 1
