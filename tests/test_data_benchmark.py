"""bench data with a small file: it runs as a user runs it, and its figures are of this world."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcdml.benchmarks import data
from hpcdml.benchmarks.log import Log
from hpcdml.errors import UsageError

pytestmark = pytest.mark.timeout(200)


@pytest.mark.usefixtures("_needs_mpirun")
@pytest.mark.parametrize("types", ["real", "bytes"])
def test_a_file_by_blocks_takes_less_memory_than_the_whole(tmp_path: Path, types: str) -> None:
    options = data.DataOptions(
        gigabytes=0.3, types=types, data_memory_mb=12, seconds=1.5, repeats=1, hidden=32, folder=str(tmp_path)
    )
    (row,) = data.run(options, Log(lambda line: None))
    assert 0.05 < row["ratio"]["median"] < 20  # others may use the machine
    assert 100 < row["peak_MB_blocks"] < row["peak_MB_memory"] - 150
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"types": "text"}, "--types text: must be one of bytes, real"),
        ({"gigabytes": 0}, "--gigabytes 0: must be above 0"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
    ],
)
def test_wrong_options(options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        data.check(data.DataOptions(**options))
