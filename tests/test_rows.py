"""Rows of HDF5 data sets, by every way of reading, against what h5py reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcdml.errors import UsageError
from hpcdml.storage.datasets import DataFile
from hpcdml.storage.rows import ChunkedRows, ContiguousRows, Rows

SHAPE = (23, 4, 5)

LAYOUTS: dict[str, tuple[dict[str, Any], type[Rows]]] = {
    "contiguous": ({}, ContiguousRows),
    "whole rows in a chunk": ({"chunks": (6, 4, 5)}, ChunkedRows),
    "a chunk beyond the end": ({"chunks": (40, 4, 5), "maxshape": (None, 4, 5)}, ChunkedRows),
    "several chunks beside each other": ({"chunks": (6, 3, 2)}, ChunkedRows),
    "gzip": ({"chunks": (6, 4, 5), "compression": "gzip", "shuffle": True}, Rows),
    "checksums": ({"chunks": (6, 4, 5), "fletcher32": True}, Rows),
}
TYPES = ("u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "?")


def values(dtype: str) -> np.ndarray:
    return (np.random.default_rng(5).integers(0, 200, SHAPE) % (2 if dtype == "?" else 200)).astype(dtype)


def write(path: Path, array: np.ndarray, options: dict[str, Any], **file_options: Any) -> str:
    with h5py.File(path, "w", **file_options) as file:
        file.create_dataset("x", data=array, **options)
        file["y"] = np.zeros(len(array))
    return str(path)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_as_h5py_reads_it(tmp_path: Path, layout: str, dtype: str) -> None:
    options, kind = LAYOUTS[layout]
    array = values(dtype)
    file = DataFile(write(tmp_path / "x.h5", array, options))
    rows = file.rows["x"]
    assert type(rows) is kind
    assert (rows.shape, rows.dtype, len(rows)) == (SHAPE, array.dtype, 23)
    for start, stop in ((0, 23), (0, 1), (5, 7), (6, 12), (4, 20), (22, 23)):
        out = np.zeros((stop - start, *SHAPE[1:]), array.dtype)
        file.read("x", start, out)
        np.testing.assert_array_equal(out, array[start:stop])
    file.close()


@given(st.integers(0, 22), st.integers(1, 23), st.integers(1, 30), st.integers(1, 4), st.integers(1, 5))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_of_any_chunks(tmp_path: Path, start: int, count: int, height: int, wide: int, deep: int) -> None:
    count = min(count, 23 - start)
    array = values("<f4")
    maximum = (None, *SHAPE[1:])
    file = DataFile(write(tmp_path / "x.h5", array, {"chunks": (height, wide, deep), "maxshape": maximum}))
    out = np.zeros((count, *SHAPE[1:]), array.dtype)
    file.read("x", start, out)
    np.testing.assert_array_equal(out, array[start : start + count])
    file.close()


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as target:
        target.create_dataset("x", (20, 3), "f4", chunks=(5, 3), fillvalue=7.5)[10:12] = 1
        target.create_dataset("y", (20,), "f4", fillvalue=2.5)
    file = DataFile(str(tmp_path / "x.h5"))
    x, y = np.zeros((20, 3), "f4"), np.zeros(20, "f4")
    file.read("x", 0, x)
    file.read("y", 0, y)
    assert type(file.rows["x"]) is ChunkedRows
    assert np.flatnonzero(x[:, 0] == 1).tolist() == [10, 11] and (x == 7.5).sum() == 54
    assert (y == 2.5).all()


def _user_block(path: Path) -> str:
    return write(path, values("<f4"), {}, userblock_size=512)


def _virtual(path: Path) -> str:
    write(path.with_name("source.h5"), values("<f4"), {})
    layout = h5py.VirtualLayout(SHAPE, "<f4")
    layout[:] = h5py.VirtualSource(path.with_name("source.h5"), "x", SHAPE)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
        file["y"] = np.zeros(23)
    return str(path)


def _external(path: Path) -> str:
    with h5py.File(path, "w") as file:
        outside = [(str(path.with_name("x.raw")), 0, values("<f4").nbytes)]
        file.create_dataset("x", SHAPE, "<f4", external=outside)[...] = values("<f4")
        file["y"] = np.zeros(23)
    return str(path)


@pytest.mark.parametrize("make", [_user_block, _virtual, _external])
def test_what_does_not_lie_in_the_file_goes_through_hdf5(tmp_path: Path, make: Callable[[Path], str]) -> None:
    file = DataFile(make(tmp_path / "x.h5"))
    assert type(file.rows["x"]) is Rows
    out = np.zeros((9, *SHAPE[1:]), "<f4")
    file.read("x", 7, out)
    np.testing.assert_array_equal(out, values("<f4")[7:16])


def test_a_file_that_was_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5", np.zeros((5000, 100)), {})
    file = DataFile(path)
    with open(path, "r+b") as cut:
        cut.truncate(1_000_000)
    with pytest.raises(UsageError, match=r"^--dataset .*x.h5: cannot be read as HDF5: the file ends at byte 1000000"):
        file.read("x", 0, np.zeros((5000, 100)))


def test_damaged_chunks_are_told(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((100, 50))
    path = write(tmp_path / "x.h5", array, {"chunks": (10, 50), "compression": "gzip"})
    data = bytearray(Path(path).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    Path(path).write_bytes(data)
    file = DataFile(path)
    with pytest.raises(UsageError, match=r"^--dataset .*x.h5: cannot be read as HDF5: .*") as caught:
        file.read("x", 0, np.zeros((100, 50)))
    assert "\n" not in str(caught.value)
