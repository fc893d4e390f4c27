"""bench link, server and memory with small jobs: they run as a user runs them, and their figures are of this world."""

from __future__ import annotations

import pytest

from hpcdml.benchmarks import link, memory, server
from hpcdml.benchmarks.log import Log
from hpcdml.errors import UsageError

pytestmark = pytest.mark.timeout(200)

SILENT = Log(lambda line: None)
with_mpirun = pytest.mark.usefixtures("_needs_mpirun")


@with_mpirun
def test_serving_from_memory_costs_more_than_adding_and_not_absurdly_more() -> None:
    (row,) = server.run(server.ServerOptions(megabytes=[8], repeats=2), SILENT)
    assert 0 < row["adding_ns"]["median"] < row["serving_ns"]["median"]
    assert 1 < row["ratio"]["median"] < 50


@with_mpirun
def test_rounds_go_through_a_link_that_mpi_alone_has_measured() -> None:
    (row,) = link.run(link.LinkOptions(rates="none", megabytes=4, seconds=1.5, repeats=1), SILENT)
    assert row["raw"]["median"] > 0
    assert 0 < row["ratio"]["median"] < 3


@with_mpirun
def test_rank_0_does_not_hold_a_model_for_every_worker() -> None:
    rows = memory.run(memory.MemoryOptions(megabytes=40, workers=[1, 4], samples=64), SILENT)
    assert [row["workers"] for row in rows] == [1, 4]
    # Three more models would be 120 MB.
    assert rows[0]["peak_MB"] > 80 and rows[1]["peak_MB"] - rows[0]["peak_MB"] < 80


@pytest.mark.parametrize(
    ("module", "options", "text"),
    [
        (server, server.ServerOptions(megabytes=[]), "--megabytes"),
        (server, server.ServerOptions(repeats=0), "--repeats 0: must be at least 1"),
        (link, link.LinkOptions(rates="fast"), "--rates fast"),
        (link, link.LinkOptions(seconds=0), "--seconds 0: must be above 0"),
        (memory, memory.MemoryOptions(workers=[1.5]), "--workers"),
    ],
)
def test_a_wrong_option_takes_one_line(module: object, options: object, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        module.check(options)  # type: ignore[attr-defined]
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)
