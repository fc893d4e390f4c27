"""The Slurm of these tests; it is there once for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster
from cluster import Slurm
from submission import Jobs


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if reason := cluster.missing():
        if os.environ.get("HPCDML_NEEDS_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with Slurm(cpus=max(cluster.CPUS, os.cpu_count() or 1)) as up:
        yield up


@pytest.fixture
def jobs(slurm: Slurm, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs of one test; none of them outlives it."""
    found = Jobs(slurm, tmp_path)
    yield found
    found.end()
