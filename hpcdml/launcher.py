"""What an MPI launcher tells its processes in their environment, before any of them has asked MPI."""

from __future__ import annotations

import os
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
