"""The Slurm of these tests; it is there once for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster
from cluster import Slurm
from hpcdml.errors import HpcdmlError
from submission import LONG, SIZE, Jobs, result


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    found = Slurm(cpus=max(cluster.CPUS, os.cpu_count() or 1))
    try:
        found.up()
    except HpcdmlError as error:
        if os.environ.get("HPCDML_NEEDS_SLURM"):
            raise
        pytest.skip(f"no Slurm for tests: {error}")
    yield found
    found.down()


@pytest.fixture
def jobs(slurm: Slurm, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs of one test; none of them outlives it."""
    found = Jobs(slurm, tmp_path)
    yield found
    found.end()


@pytest.fixture(scope="session")
def unbroken(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of the run that is interrupted in the tests."""
    jobs = Jobs(slurm, tmp_path_factory.mktemp("unbroken"))
    return result(jobs.finished(jobs.submit("preemptible", *LONG, options=SIZE)))
