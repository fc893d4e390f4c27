"""What launchers tell in the environment, before MPI has started."""

from __future__ import annotations

import pytest

from hpcdml.launcher import Launched, launched, launcher_rank

OPEN_MPI = {"PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}
BATCH_SCRIPT = {"SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        (OPEN_MPI, Launched(1, 4, 1)),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Launched(1, 4, 2)),
        (SLURM, Launched(3, 4, 1)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, Launched(3, 4, 2)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, Launched(3, 4, 3)),
        (SLURM | {"PMIX_RANK": "2"}, Launched(2, 4, 1)),
        (BATCH_SCRIPT, None),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, Launched(0, 2, 2)),
        ({"PMI_RANK": "zero", "PMI_SIZE": "2"}, None),
    ],
)
def test_rank_and_number_of_ranks(env: dict[str, str], found: Launched | None) -> None:
    assert launched(env) == found
    assert launcher_rank(env) == (None if found is None else found.rank)


def test_a_launcher_that_tells_the_rank_alone() -> None:
    assert launched({"PALS_RANKID": "5"}) is None and launcher_rank({"PALS_RANKID": "5"}) == 5
