"""All checks in their order, alone or by all ranks of a job, and the screen that one of them prints."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import hpcdml
from hpcdml.doctor import job, machine, software
from hpcdml.doctor.finding import WRONG, Finding, screen, status
from hpcdml.launcher import Launched, launched
from hpcdml.mpi.installation import launcher

if TYPE_CHECKING:
    from hpcdml.mpi.installation import Library
    from hpcdml.mpi.world import World

TITLE = f"hpcdml {hpcdml.__version__} doctor"

LINK_SECONDS = 1.5
"""About how long all links together are measured."""

PATIENCE_SECONDS = 120.0
"""How long ranks may take to reach each other before that counts as broken; some import from a slow file system."""


def examine(output: str, patience: float = PATIENCE_SECONDS) -> int:
    """Check everything, print the screen on one rank and return the exit status, the same on all ranks.

    Args:
        output: the output folder of the runs to come.
        patience: seconds after which ranks that wait for each other give up.
    """
    started = launched()
    versions = software.versions()
    findings = [software.check_packages(versions)]
    finding, library = software.check_library(versions["mpi4py"])
    findings.append(finding)
    speaks = started is None or started.rank == 0
    if speaks:
        findings.append(software.check_launcher(launcher(), library))
    if library is None:
        return _finish(findings, output) if speaks else 1
    from hpcdml.mpi import world as mpi_world

    with _hurry(patience, speaks, findings):
        world, about_job = _job(started, library, versions, findings[0])
        findings += about_job
    # Where every rank is a world of its own, all of them are rank 0, and the launcher's rank 0 speaks.
    mine = _finish(findings, output) if world.is_server and (speaks or world.size > 1) else status(findings)
    # All ranks hear of the end before any leaves: a launcher ends the others when the first one fails.
    return mpi_world.share(world, bytes([mine]))[0]


def _job(
    started: Launched | None, library: Library, versions: dict[str, str], packages: Finding
) -> tuple[World, list[Finding]]:
    """What the ranks find out together; the findings are on rank 0."""
    from hpcdml.mpi import cores, links
    from hpcdml.mpi.world import hosts, join_world

    world = join_world()
    names = hosts(world)
    problem = packages.text if packages.level == WRONG else ""
    mine = job.RankFacts(world.host, versions, sorted(os.sched_getaffinity(0)), world.cores, problem)
    told = links.gather_bytes(world, json.dumps(dataclasses.asdict(mine)).encode())
    speeds = links.measure(world, job.measured(names), LINK_SECONDS)
    if not world.is_server:
        return world, []
    facts = [job.RankFacts(**json.loads(text)) for text in told]
    available = job.available_cpus(cores.granted())
    return world, [
        job.check_ranks(started, world.size, names),
        *job.check_versions(facts),
        software.check_threads(library.threads),
        software.check_fault_tolerance(library.fault_tolerance),
        job.check_cores(facts, available, os.environ.get("OMP_NUM_THREADS")),
        job.check_links(speeds, world.size - 1),
    ]


def _finish(findings: Sequence[Finding], output: str) -> int:
    """Look at what needs no other rank, print the screen and return the exit status."""
    whole = [*findings, machine.check_cuda(), *machine.check_place(output), machine.check_slurm()]
    print(screen(TITLE, whole), flush=True)
    return status(whole)


@contextmanager
def _hurry(seconds: float, speaks: bool, findings: Sequence[Finding]) -> Iterator[None]:
    """End this process with what was found so far if ranks wait for each other for too long."""

    def give_up() -> None:
        if speaks:
            text = f"the ranks did not reach each other within {seconds:g} s"
            advice = "a firewall or the wrong interface: docs/cluster.md, The network; or another hpcdml on a host"
            print(screen(TITLE, [*findings, Finding(WRONG, "ranks", text, advice)]), flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
