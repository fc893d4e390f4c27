"""Data of HDF5 files: types, defects and how they are told, several files as one set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcdml.training.data import DataSpec, TensorSource
from samples import everything, load, usage_error, write_hdf5


@pytest.fixture
def hdf5(tmp_path: Path) -> Callable[..., str]:
    return lambda **arrays: write_hdf5(tmp_path / "data.h5", **arrays)


def test_hdf5_classification_is_split(hdf5: Callable[..., str]) -> None:
    path = hdf5(x=np.random.rand(20, 3), y=np.arange(20, dtype=np.int32)[:, None] % 4)
    data = load(path, test_fraction=0.4)
    assert data.spec == DataSpec((3,), 4, "classification", ())
    assert (len(data.train), len(data.test)) == (12, 8)
    assert torch.bincount(everything(data.test)[1]).tolist() == [2, 2, 2, 2]
    assert everything(data.train)[0].dtype == torch.float32


def test_hdf5_test_part_counts_for_the_classes(hdf5: Callable[..., str]) -> None:
    data = load(hdf5(x=np.ones((4, 2), ">f4"), y=[0, 1, 0, 1], x_test=np.ones((2, 2)), y_test=np.array([1, 6], "u1")))
    assert data.spec.classes == 7
    assert (len(data.train), len(data.test)) == (4, 2)


def test_hdf5_bytes_become_shares_of_255(hdf5: Callable[..., str]) -> None:
    images = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    data = load(hdf5(x=images, y=[0, 1, 2, 3, 4], x_test=images, y_test=[0] * 5))
    assert isinstance(data.train, TensorSource) and data.train.x.dtype == torch.uint8
    x, _ = data.train.batch(np.array([4, 1]))
    torch.testing.assert_close(x, torch.from_numpy(images[[4, 1]].astype(np.float32) / 255))
    split = load(hdf5(x=images, y=[0, 0, 0, 0, 0]))
    assert float(everything(split.train)[0].max()) <= 1


def test_hdf5_regression(hdf5: Callable[..., str]) -> None:
    data = load(hdf5(x=np.arange(10), y=np.random.rand(10, 2)))
    assert data.spec == DataSpec((1,), None, "regression", (2,))
    assert data.spec.outputs == 2


def test_hdf5_tokens(hdf5: Callable[..., str]) -> None:
    x = np.array([[0, 1, 9], [3, 4, 5]], dtype=np.uint8)
    data = load(hdf5(x=x, y=x % 4, x_test=x, y_test=x % 4))
    assert data.spec == DataSpec((3,), 10, "tokens", (3,))
    assert everything(data.train)[0].tolist() == x.tolist()
    assert everything(data.train)[0].dtype == torch.int64


ONES = np.ones((4, 2), dtype=np.float32)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS, "images": ONES}, "has no data set x, which is needed; it holds images, y"),
        ({}, "has no data set x, which is needed; it holds nothing"),
        ({"x": ONES, "labels": LABELS}, "has no data set y"),
        ({"x/a": ONES, "y": LABELS}, "x is a group; must|x is a group; it must"),
        ({"x": h5py.Empty("f4"), "y": LABELS}, "x holds no values"),
        ({"x": ONES, "y": LABELS[:3]}, "x has 4 rows and y has 3"),
        ({"x": ONES[:0], "y": LABELS[:0]}, r"x is empty, with shape \(0, 2\)"),
        ({"x": 1.0, "y": LABELS}, "x is a single number"),
        ({"x": ONES, "y": ["a", "b", "c", "d"]}, "y holds strings of type object"),
        ({"x": ONES, "y": np.array([b"a"] * 4)}, "y holds strings of type .S1"),
        ({"x": ONES.astype(complex), "y": LABELS}, "x holds values of type complex128"),
        ({"x": ONES, "y": np.array([0, 1, -3, -1])}, "y holds the label -3 in row 2; labels count from 0"),
        ({"x": ONES, "y": np.array([0, 1, 2, 2**63], "u8")}, "y holds the label 9223372036854775808 in row 3"),
        ({"x": ONES, "y": np.ones((4, 5), int)}, r"y holds integers of shape \(4, 5\)"),
        ({"x": np.array([[1.0], [np.nan], [np.inf], [2]]), "y": LABELS}, "x holds nan in row 1; must hold finite"),
        ({"x": np.array([1.0, 2, 1e300, 2]), "y": LABELS}, r"x holds 1e\+300 in row 2"),
        ({"x": ONES, "y": np.array([1.0, 2, 3, -np.inf])}, "y holds -inf in row 3"),
        ({"x": ONES, "y": LABELS, "x_test": ONES}, "has x_test but no y_test"),
        ({"x": ONES, "y": LABELS, "y_test": LABELS}, "has y_test but no x_test"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS[:2]}, "x_test has 4 rows and y_test has 2"),
        ({"x": ONES, "y": LABELS, "x_test": ONES[:, :1], "y_test": LABELS}, r"x have shape \(2,\) and .* \(1,\)"),
        ({"x": ONES, "y": LABELS, "x_test": ONES.astype("u1"), "y_test": LABELS}, "x_test uint8; must be of one type"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS * 0.5}, "y_test float64; must be of one type"),
        ({"x": ONES, "y": LABELS, "x_test": ONES, "y_test": LABELS - 1}, "y_test holds the label -1 in row 0"),
        ({"x": ONES * np.nan, "y": LABELS, "x_test": ONES, "y_test": LABELS}, "x holds nan in row 0"),
        ({"x": ONES[:1], "y": LABELS[:1]}, "1 sample cannot be split"),
    ],
)
def test_hdf5_defects(hdf5: Callable[..., str], arrays: dict[str, Any], message: str) -> None:
    path = hdf5(**arrays)
    usage_error(f"^--(dataset {path}|test-fraction 0.2): .*({message})", lambda: load(path))


def test_files_that_are_no_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    usage_error(f"^--dataset no.h5: there is no such file in {tmp_path}$", lambda: load("no.h5"))
    usage_error("^--dataset /no/such: there is no such file$", lambda: load("/no/such"))
    usage_error("the folder .* has no file that ends in .h5", lambda: load(str(tmp_path)))
    (tmp_path / "text.h5").write_text("x,y\n1,2\n")
    usage_error("text.h5: is not an HDF5 file", lambda: load("text.h5"))
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["x"] = np.ones((1000, 10))
        file["y"] = np.ones(1000)
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:3000])
    usage_error("cut.h5: cannot be read as HDF5: ", lambda: load("cut.h5"))
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file["y"] = np.ones(3)
        file.create_dataset("x", shape=(2**50, 16), chunks=(1024, 16), dtype="f4")
    usage_error("huge.h5: x has 1125899906842624 rows and y has 3", lambda: load("huge.h5"))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["x"] = h5py.SoftLink("/nowhere")
        file["y"] = np.ones(3)
    usage_error("link.h5: x is a link that leads nowhere", lambda: load("link.h5"))
    assert len(load("whole.h5").train) == 800


# Several files


def numbered(folder: Path, name: str, first: int, count: int, **more: Any) -> str:
    """A file whose samples have consecutive numbers as inputs and as targets."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    return write_hdf5(folder / name, x=numbers, y=numbers, **more)


@pytest.mark.parametrize("dataset", ["a.h5,b.h5", "*.h5", "[ab].h5", ".", "../{here}", "a.h5,../{here}/b.h5"])
def test_several_files_are_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path, "b.h5", 10, 7)
    numbered(tmp_path, "a.h5", 0, 10, x_test=np.float32([50, 51]), y_test=np.float32([50, 51]))
    (tmp_path / "notes.txt").write_text("not a file of samples")
    data = load(dataset.format(here=tmp_path.name))
    x, y = everything(data.train)
    assert x[:, 0].tolist() == y.tolist() == list(range(17))
    assert everything(data.test)[1].tolist() == [50, 51]
    assert data.spec == DataSpec((1,), None, "regression", ())


def test_a_list_has_its_own_order_and_a_name_may_hold_a_comma(tmp_path: Path) -> None:
    b, a = numbered(tmp_path, "b.h5", 10, 2, x_test=[0.0], y_test=[0.0]), numbered(tmp_path, "a.h5", 0, 2)
    assert everything(load(f"{b},{a}").train)[1].tolist() == [10, 11, 0, 1]
    odd = numbered(tmp_path, "a,b.h5", 5, 2)
    assert len(load(odd).train) + len(load(odd).test) == 2


def test_files_that_do_not_make_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path, "a.h5", 0, 5)
    write_hdf5(tmp_path / "wide.h5", x=np.ones((5, 2)), y=np.ones(5))
    write_hdf5(tmp_path / "classes.h5", x=np.ones(5), y=[0, 1, 2, 0, 1])
    write_hdf5(tmp_path / "bytes.h5", x=np.ones(5, np.uint8), y=np.ones(5))
    write_hdf5(tmp_path / "nan.h5", x=np.ones(5), y=[1, 1, 1, np.nan, 1])
    usage_error(r"^--dataset wide.h5: rows of x in a.h5 have shape \(\) and .*\(2,\)", lambda: load("a.h5,wide.h5"))
    usage_error("^--dataset classes.h5: y in a.h5 holds float32 and y int64", lambda: load("a.h5,classes.h5"))
    usage_error("^--dataset bytes.h5: x in a.h5 holds float32 and x uint8; must", lambda: load("a.h5,bytes.h5"))
    usage_error("^--dataset nan.h5: y holds nan in row 3; must hold finite", lambda: load("a.h5,nan.h5"))
    usage_error("a.h5,./a.h5: ./a.h5 is there twice", lambda: load("a.h5,./a.h5"))
    usage_error("a.h5,: has nothing between two commas", lambda: load("a.h5,"))
    usage_error(r"^--dataset no\*.h5: no file matches no\*.h5; in quotes", lambda: load("no*.h5"))
    usage_error("^--dataset no.h5: there is no such file in", lambda: load("a.h5,no.h5"))
    with pytest.raises(Exception, match="must be one of digits"):
        load("digits,iris")


def test_labels_of_all_files_count_for_the_classes(tmp_path: Path) -> None:
    a = write_hdf5(tmp_path / "a.h5", x=np.ones(3), y=[0, 1, 2])
    b = write_hdf5(tmp_path / "b.h5", x=np.ones(3), y=[0, 7, 1], x_test=[1.0], y_test=[9])
    assert load(f"{a},{b}").spec.classes == 10
