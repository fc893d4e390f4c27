"""Which device and how many threads a rank uses."""

from __future__ import annotations

import torch

from hpcdml.errors import UsageError
from hpcdml.mpi import cores
from hpcdml.mpi.world import World


def pick_device(option: str, world: World) -> torch.device:
    """Return the rank's device.

    With ``auto`` or ``cuda`` the host's GPUs go round robin over its workers; the server has the CPU.

    Raises:
        UsageError: a GPU is asked for where there is none.
    """
    if world.is_server:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if option == "auto":
        option = "cuda" if count else "cpu"
    try:
        device = torch.device(option)
    except RuntimeError:
        raise UsageError(f"--device {option}: must be auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UsageError(f"--device {option}: must be auto, cpu, cuda or cuda:N")
    if not count:
        raise UsageError(f"--device {option}: there is no GPU on host {world.host}; --device cpu works everywhere")
    if ":" not in option:
        device = torch.device("cuda", world.local_worker % count)
    elif device.index >= count:
        raise UsageError(f"--device {option}: host {world.host} has {count} GPUs, numbered from 0")
    torch.cuda.set_device(device)
    return device


def set_threads(option: int | None, bind: str, world: World) -> int:
    """Set and return this rank's CPU threads: its cores, divided among the workers that share them.

    Args:
        option: threads of a worker; none: as many as it has cores.
        bind: ``cores`` keeps the rank to cores of its own, where there are enough for all ranks of the host.
    """
    if bind == "cores":
        cores.bind(world.own_cpus)
    threads = 1 if world.is_server else option or world.cores
    torch.set_num_threads(threads)
    return threads
