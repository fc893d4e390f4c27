"""What the ranks of a job have in common: whether they see each other, their versions, their cores, their links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from hpcdml.doctor.finding import NONE, OK, WARNING, WRONG, Finding
from hpcdml.launcher import Launched

if TYPE_CHECKING:
    from hpcdml.mpi.links import Speed

_SLOW = 10e6  # bytes a second, a tenth of Gigabit Ethernet's
_FREE = "mpirun --bind-to none, and --bind cores for hpcdml: docs/cluster.md"


@dataclass(frozen=True)
class RankFacts:
    """What one rank tells: ``cpus`` are those that it may run on, ``cores`` how many hpcdml counts on.

    ``problem`` is what is wrong with its packages; empty: nothing.
    """

    host: str
    versions: dict[str, str]
    cpus: list[int]
    cores: int
    problem: str = ""


def check_ranks(started: Launched | None, size: int, hosts: Sequence[str]) -> Finding:
    """Whether as many ranks see each other as were started.

    Args:
        started: what the launcher has told.
        size: ranks in MPI's world.
        hosts: host of each rank.
    """
    if started is not None and started.size != size:
        text = f"{started.size} ranks were started, but this one sees {size}: the launcher is not that of the library"
        return Finding(WRONG, "ranks", text, "use the mpirun beside the library (above), or srun --mpi=pmix")
    if size == 1:
        return Finding(NONE, "ranks", "alone; mpirun -n 3 hpcdml doctor looks at ranks and links as well")
    names = sorted(set(hosts))
    shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"
    return Finding(OK, "ranks", f"{size} see each other, on {len(names)} host{'s' * (len(names) > 1)}: {shown}")


def check_versions(facts: Sequence[RankFacts]) -> list[Finding]:
    """A finding where a rank has another version of something than rank 0, or a broken package; else none."""
    for rank, one in enumerate(facts):
        if rank and one.problem:
            advice = "use one environment on all hosts, on a file system that all of them see"
            return [Finding(WRONG, "same", f"rank {rank} ({one.host}): {one.problem}", advice)]
        for name, version in one.versions.items():
            if version != facts[0].versions.get(name):
                here = facts[0].versions.get(name) or "none"
                text = f"{name} is {here} on rank 0 and {version or 'none'} on rank {rank} ({one.host})"
                return [Finding(WRONG, "same", text, "use one environment on all hosts: give hpcdml's full path")]
    return []


def check_cores(facts: Sequence[RankFacts], available: int | None, threads: str | None = None) -> Finding:
    """Whether ranks have cores of their own, by the host where that is worst.

    Args:
        available: CPUs of a host for this job; none: not known.
        threads: OMP_NUM_THREADS, where it is set.
    """
    hosts: dict[str, list[RankFacts]] = {}
    for one in facts:
        hosts.setdefault(one.host, []).append(one)
    for host, ranks in hosts.items():
        masks = [frozenset(one.cpus) for one in ranks]
        union = frozenset().union(*masks)
        if len(ranks) > len(union):
            text = f"{len(ranks)} ranks share {len(union)} CPU{'s' * (len(union) > 1)} of {host}"
            return Finding(WARNING, "cores", text, f"fine for a trial; for speed a CPU for each rank, or {_FREE}")
        apart = len(masks) > 1 and sum(map(len, masks)) == len(union)
        if apart and available is not None and len(union) * 2 <= available:
            text = f"the launcher bound {len(ranks)} ranks to {len(union)} of the {available} CPUs of {host}"
            return Finding(WARNING, "cores", text, _FREE)
    if len(facts) == 1:
        return Finding(OK, "cores", f"{len(facts[0].cpus)} CPUs are usable here, of {available or 'an unknown number'}")
    counts = sorted({one.cores for one in facts[1:]})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = f"{each} threads for a worker; rank 1 may run on {len(facts[1].cpus)} CPUs"
    if threads is not None and threads != str(counts[-1]):
        text += f"; OMP_NUM_THREADS={threads} does not matter, --threads does"
    return Finding(OK, "cores", text)


def check_links(speeds: Sequence[Speed], workers: int) -> Finding:
    """How fast rank 0 and each worker exchange data, both ways at once."""
    if not speeds:
        return Finding(NONE, "links", "no other rank to exchange data with")
    least = min(speeds, key=lambda s: min(s.up, s.down))
    worst, usual = min(least.up, least.down), median(min(s.up, s.down) for s in speeds)
    if len(speeds) <= 4:
        text = ", ".join(f"{s.rank}: {_rate(s.up)} up, {_rate(s.down)} down" for s in speeds) + " (MB/s)"
    else:
        some = f"{len(speeds)} of {workers}" if len(speeds) < workers else f"{workers}"
        text = f"{some} workers: median {_rate(usual)} MB/s, least {_rate(worst)}, rank {least.rank}"
    if worst < _SLOW:
        return Finding(WARNING, "links", text, "is it the right network? docs/cluster.md, The network")
    if worst < 0.4 * usual:
        return Finding(WARNING, "links", text, f"rank {least.rank} is far slower than the others: look at its host")
    return Finding(OK, "links", text)


def measured(hosts: Sequence[str], most: int = 32) -> list[int]:
    """Which workers' links to measure where there are many: one of each host first, then from the lowest rank on."""
    workers = list(range(1, len(hosts)))
    if len(workers) <= most:
        return workers
    first = {host: rank for rank, host in reversed(list(enumerate(hosts))) if rank}
    chosen = sorted(first.values())[:most]
    return sorted({*chosen, *[rank for rank in workers if rank not in chosen][: most - len(chosen)]})


def available_cpus(granted: int | None) -> int | None:
    """CPUs of this host for this job: what Slurm gave, else all."""
    return granted if granted is not None else os.cpu_count()


def _rate(speed: float) -> str:
    return f"{speed / 1e6:,.0f}" if speed >= 1e6 else f"{speed / 1e6:.2g}"
