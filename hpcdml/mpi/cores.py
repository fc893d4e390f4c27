"""The cores of a host, divided among the ranks that share them; from masks and numbers alone, without MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
Units = list[frozenset[int]]  # physical cores, each by the numbers of the CPUs (hardware threads) in it


def granted(env: Mapping[str, str] = os.environ) -> int | None:
    """CPUs of this host that Slurm gave to the job; none: no job of Slurm.

    Where neither cgroups nor an affinity plugin keeps a job to its CPUs, it may run on all of the host, and this number
    is all that tells its share.
    """
    value = env.get("SLURM_CPUS_ON_NODE", "")
    return int(value) if "SLURM_JOB_ID" in env and value.isdigit() and int(value) > 0 else None


def share(masks: Sequence[frozenset[int]], rank: int, server: int | None, limit: int | None) -> int:
    """How many CPUs a rank of a host can count on, beside the other ranks there.

    Args:
        masks: CPUs that each rank may run on.
        rank: which of them.
        server: which of them is the server, that needs a CPU for itself; none: it is elsewhere.
        limit: CPUs that the job has on the host; none: as many as the masks say.
    """
    mine = masks[rank]
    sharing = [other for other, mask in enumerate(masks) if mask & mine]
    count = len(mine)
    if limit is not None and len(sharing) == len(masks):
        count = min(count, limit)
    workers = max(1, sum(other != server for other in sharing))
    return max(1, (count - (server in sharing)) // workers)


def divide(masks: Sequence[frozenset[int]], rank: int, server: int | None, units: Units) -> frozenset[int]:
    """CPUs of a rank's own, where the ranks with the same mask have a physical core for each of them; else its mask.

    Each worker gets as many neighbouring cores as another, the server what is left over: at least one.
    """
    mine = masks[rank]
    group = [other for other, mask in enumerate(masks) if mask == mine]
    cores = [core for core in (unit & mine for unit in units) if core]
    if len(group) < 2 or len(cores) < len(group) or any(masks[o] & mine for o in range(len(masks)) if o not in group):
        return mine
    workers = [other for other in group if other != server]
    each = (len(cores) - (server in group)) // len(workers)
    if rank == server:
        return frozenset().union(*cores[: len(cores) - each * len(workers)])
    start = len(cores) - each * (len(workers) - workers.index(rank))
    return frozenset().union(*cores[start : start + each])


def physical_cores(cpus: frozenset[int], topology: Path = _TOPOLOGY) -> Units:
    """The physical cores of these CPUs, in the order of sockets; where the system does not tell, each CPU is one."""
    found: dict[tuple[int, ...], set[int]] = {}
    for cpu in sorted(cpus):
        folder = topology / f"cpu{cpu}" / "topology"
        try:
            place = tuple(int((folder / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            place = (0, cpu)
        found.setdefault(place, set()).add(cpu)
    return [frozenset(found[place]) for place in sorted(found, key=lambda place: (place[0], min(found[place])))]


def bind(cpus: frozenset[int]) -> None:
    """Keep this process, with the threads that it has already, to these CPUs."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:  # it has just ended
            continue
