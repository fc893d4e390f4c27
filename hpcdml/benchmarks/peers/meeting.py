"""Which rank this process is, and how the ranks of a peer meet. The launcher tells the first, and no MPI is used."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from hpcdml.errors import MachineError

# Rank, size and ranks on this host as launchers give them.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"),
)
_JOIN_TIMEOUT = timedelta(minutes=5)
_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Place:
    """This process among those that the launcher started; ``local`` of them are on this host."""

    rank: int
    size: int
    local: int


def find_place(env: Mapping[str, str] = os.environ) -> Place:
    """Rank and size as the launcher gave them in the environment; a process that none started is alone."""
    for rank, size, local in _LAUNCHERS:
        if env.get(rank, "").isdigit() and env.get(size, "").isdigit():
            # Slurm's has the form 2(x3), or 3,2 where the hosts differ.
            here = env.get(local, "").partition("(")[0].partition(",")[0]
            return Place(int(env[rank]), int(env[size]), int(here) if here.isdigit() else 1)
    return Place(0, 1, 1)


def join(meeting: str, place: Place) -> None:
    """Meet the other ranks and make gloo's process group.

    Args:
        meeting: a file that all hosts see, or HOST:PORT of rank 0.

    Raises:
        MachineError: they cannot be reached.
    """
    # Otherwise gloo takes the interface that has the address of this host's name.
    if place.local == place.size and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault(_INTERFACE, "lo")
    method = f"file://{os.path.abspath(meeting)}" if os.sep in meeting else f"tcp://{meeting}"
    try:
        dist.init_process_group("gloo", method, _JOIN_TIMEOUT, rank=place.rank, world_size=place.size)
    except (RuntimeError, ValueError) as error:
        where = os.environ.get(_INTERFACE, "that of the host's name")
        raise MachineError(f"no contact at {meeting}, interface {where}: {' '.join(str(error).split())}") from error
