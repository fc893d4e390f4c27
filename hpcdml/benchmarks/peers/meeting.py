"""How the ranks of a peer meet, without MPI."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from hpcdml.errors import MachineError
from hpcdml.launcher import Launched

_JOIN_TIMEOUT = timedelta(minutes=5)
_INTERFACE = "GLOO_SOCKET_IFNAME"


def join(meeting: str, place: Launched) -> None:
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
