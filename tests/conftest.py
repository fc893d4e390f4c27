"""Fixtures for all tests: real MPI jobs, the command line, and quiet ranks when pytest itself runs under mpirun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import launch
from hpcdml.cli.ranks import launcher_rank

Run = Callable[..., subprocess.CompletedProcess[str]]

# Open MPI 5 sleeps for a second in every rank's MPI_Init when it puts away its libfabric for one-sided communication.
os.environ.setdefault("OMPI_MCA_btl", "^ofi")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Under mpirun: rank 0 alone tells of what passed, every rank of its failures, none of its MPI library."""
    rank = launcher_rank()
    if rank is None:
        return
    for plugin in config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "MPIPlugin":
            plugin._is_testing_mpi = False  # only switches off its thirty lines at the end of every rank's output
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    config.pluginmanager.register(FailuresAtOnce(rank, terminal))
    if rank:
        config.option.verbose = -2
        terminal.reportchars = "fE"


class FailuresAtOnce:
    """Tells a failure when it happens: the other ranks may now wait for this one, and time out in its place."""

    def __init__(self, rank: int, terminal: Any) -> None:
        self.rank = rank
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\nrank {self.rank}: {report.nodeid} failed\n{report.longreprtext}", flush=True)


@pytest.fixture(scope="session")
def _needs_mpirun() -> None:
    if launcher_rank() is not None:
        pytest.skip("starts MPI jobs itself, so it does not run inside one")
    if launch.find_mpirun() is None:
        pytest.skip("no mpirun on the path: make test installs one, or load your site's MPI")


@pytest.fixture
def mpirun(_needs_mpirun: None) -> Run:
    """``mpirun(n, program, ...)``: see ``launch.mpirun``."""
    return launch.mpirun


@pytest.fixture
def hpcdml_job(_needs_mpirun: None) -> Run:
    """``hpcdml_job(n, "train", ...)``: the command line in an MPI job."""
    return launch.hpcdml


@pytest.fixture
def hpcdml() -> Run:
    """``hpcdml("report", ...)``: the command line in a process of its own, outside MPI."""

    def call(*args: str | os.PathLike[str], **options: object) -> subprocess.CompletedProcess[str]:
        return launch.run([sys.executable, "-m", "hpcdml", *map(os.fspath, args)], **options)  # type: ignore[arg-type]

    return call
