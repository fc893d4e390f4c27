"""``hpcdml data import``: files in the published formats, written here, and what must not be read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcdml.cli.main import main
from hpcdml.training.data import DataSpec
from hpcdml.training.data.published import folder as published
from samples import load

Run = Callable[..., tuple[int, str, str]]

RANDOM = np.random.default_rng(0)
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process: its status, output and error output."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        status = main(["data", "import", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def pictures(count: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)


def python2_pickle(items: Mapping[bytes, Any]) -> bytes:
    """A dict in protocol 2 as Python 2 and numpy wrote CIFAR's batches: byte strings, and an array by its calls."""
    out = bytearray(b"\x80\x02}q\x01(")

    def put(value: Any) -> None:
        if isinstance(value, bytes):
            out.extend(
                b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
            )
        elif isinstance(value, int):
            out.extend(b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value))
        elif isinstance(value, list):
            out.extend(b"](")
            for item in value:
                put(item)
            out.extend(b"e")
        else:
            array(value)

    def array(value: np.ndarray) -> None:
        out.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01")
        for size in value.shape:
            out.extend(b"J" + struct.pack("<i", size))
        out.extend(b"\x86" if value.ndim == 2 else b"\x85")
        kind = value.dtype.str[1:].encode()
        out.extend(
            b"cnumpy\ndtype\nU"
            + bytes([len(kind)])
            + kind
            + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        out.extend(b"\x89")
        put(value.tobytes())
        out.extend(b"tb")

    for key, value in items.items():
        put(key)
        put(value)
    out.extend(b"u.")
    return bytes(out)


def cifar10_python(folder: Path, count: int = 4) -> dict[str, tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in BATCHES:
        x, y = pictures(count), RANDOM.integers(0, 10, count).tolist()
        made[name] = (x, y)
        names = [f"p{i}.png".encode() for i in range(count)]
        items = {b"batch_label": name.encode(), b"labels": y, b"data": x, b"filenames": names}
        (folder / name).write_bytes(python2_pickle(items))
    return made


def check_cifar10(path: Path, made: Mapping[str, tuple[np.ndarray, list[int]]]) -> None:
    with h5py.File(path) as file:
        train = np.concatenate([made[name][0] for name in BATCHES[:-1]])
        np.testing.assert_array_equal(file["x"][()], train.reshape(-1, 3, 32, 32))
        assert file["y"][()].tolist() == sum((list(made[name][1]) for name in BATCHES[:-1]), [])
        np.testing.assert_array_equal(file["x_test"][()].reshape(-1, 3072), made["test_batch"][0])
        assert file["y_test"][()].tolist() == list(made["test_batch"][1])
        assert file["x"].dtype == file["y"].dtype == np.uint8 and file["x"].chunks is None


def test_what_is_written_here_is_what_numpy_reads() -> None:
    items = {b"data": pictures(3), b"labels": [1, 2, 300], b"batch_label": b"one"}
    found = pickle.loads(python2_pickle(items), encoding="bytes")
    np.testing.assert_array_equal(found.pop(b"data"), items.pop(b"data"))
    assert found == items


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_python_batches(tmp_path: Path, run: Run, below: str) -> None:
    made = cifar10_python(tmp_path / "in" / below)
    target = tmp_path / "out.h5"
    status, out, err = run("cifar10", tmp_path / "in", target)
    assert (status, err) == (0, "")
    assert out == (
        f"{target}: 20 training and 4 test pictures of cifar10; MD5 not as published: {', '.join(BATCHES)}\n"
    )
    check_cifar10(target, made)
    data = load(str(target))
    assert data.spec.input_shape == (3, 32, 32) and data.spec.task == "classification"


def test_batches_that_python_3_wrote(tmp_path: Path, run: Run) -> None:
    made = {}
    for name in BATCHES:
        x, y = pictures(3), [1, 2, 3]
        made[name] = (x, y)
        (tmp_path / name).write_bytes(pickle.dumps({"data": x, "labels": y}, protocol=2))
    assert run("cifar10", tmp_path, tmp_path / "out.h5")[0] == 0
    check_cifar10(tmp_path / "out.h5", made)


def test_cifar10_binary_in_its_archive(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: (pictures(5), RANDOM.integers(0, 10, 5, dtype=np.uint8)) for name in BATCHES}
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, (x, y) in made.items():
            data = np.concatenate([y[:, None], x], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setitem(published.MD5, archive.name, hashlib.md5(archive.read_bytes()).hexdigest())
    status, out, _ = run("cifar10", tmp_path, tmp_path / "out.h5")
    assert status == 0 and out.endswith("MD5 as published: cifar-10-binary.tar.gz\n")
    check_cifar10(tmp_path / "out.h5", made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar-10-binary.tar.gz", "out.h5"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
def test_cifar100(tmp_path: Path, run: Run, binary: bool, coarse: bool) -> None:
    expected = {}
    for name in ("train", "test"):
        x, fine, rough = (
            pictures(6),
            RANDOM.integers(0, 100, 6, dtype=np.uint8),
            RANDOM.integers(0, 20, 6, dtype=np.uint8),
        )
        expected[name] = rough if coarse else fine
        if binary:
            records = np.concatenate([rough[:, None], fine[:, None], x], axis=1)
            (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
        else:
            items = {b"data": x, b"fine_labels": fine.tolist(), b"coarse_labels": rough.tolist()}
            (tmp_path / name).write_bytes(python2_pickle(items))
    target = tmp_path / "out.h5"
    assert run("cifar100", tmp_path, target, *(["--coarse"] if coarse else []))[0] == 0
    with h5py.File(target) as file:
        assert file["y"][()].tolist() == expected["train"].tolist()
        assert file["y_test"][()].tolist() == expected["test"].tolist()
        np.testing.assert_array_equal(file["x_test"][()].reshape(6, 3072), x)
        assert file.attrs["classes"] == (20 if coarse else 100)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(folder: Path, end: str = "", dot: str = "-") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, count in (("train", 7), ("t10k", 3)):
        for what, shape in (("images", (count, 28, 28)), ("labels", (count,))):
            array = RANDOM.integers(0, 10, shape, dtype=np.uint8)
            made[f"{part} {what}"] = array
            data = idx(array)
            path = folder / f"{part}-{what}{dot}idx{array.ndim}-ubyte{end}"
            path.write_bytes(gzip.compress(data) if end else data)
    return made


@pytest.mark.parametrize(("below", "end", "dot"), [("", ".gz", "-"), ("MNIST/raw", "", "-"), ("", "", ".")])
def test_mnist(tmp_path: Path, run: Run, below: str, end: str, dot: str) -> None:
    made = mnist(tmp_path / "in" / below, end, dot)
    target = tmp_path / "out.h5"
    status, out, err = run("mnist", tmp_path / "in", target)
    assert (status, err) == (0, "")
    assert "7 training and 3 test pictures of mnist; " in out
    assert ("MD5 not as published" if end else "no published MD5 to compare with") in out
    with h5py.File(target) as file:
        np.testing.assert_array_equal(file["x"][()], made["train images"][:, None])
        np.testing.assert_array_equal(file["x_test"][()], made["t10k images"][:, None])
        np.testing.assert_array_equal(file["y_test"][()], made["t10k labels"])
    assert load(str(target)).spec == DataSpec(
        (1, 28, 28), 1 + max(map(int, [*made["train labels"], *made["t10k labels"]])), "classification", ()
    )


# What must not be read


class Attack:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, np.load])
def test_a_batch_that_calls_something_is_not_run(tmp_path: Path, run: Run, function: Any, protocol: int) -> None:
    made = tmp_path / "made"
    argument = f"__import__('os').mkdir({str(made)!r})" if function is eval else str(made)
    bad = {
        b"data": Attack(function, argument, "x") if function is getattr else Attack(function, argument),
        b"labels": [1],
    }
    (tmp_path / "in").mkdir()
    cifar10_python(tmp_path / "in")
    (tmp_path / "in" / "data_batch_3").write_bytes(pickle.dumps(bad, protocol=protocol))
    status, out, err = run("cifar10", tmp_path / "in", tmp_path / "out.h5")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "data_batch_3: is not a Python batch of CIFAR: names " in err
    assert not made.exists() and not (tmp_path / "out.h5").exists()


def array_pickle(array: np.ndarray, labels: list[int]) -> bytes:
    return python2_pickle({b"data": array, b"labels": labels})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array_pickle(pictures(2), [1]), r"holds data of shape \(2, 3072\) and 1 labels"),
        (array_pickle(pictures(2)[:, :50].copy(), [1, 2]), r"shape \(2, 50\)"),
        (array_pickle(pictures(2).astype("i4"), [1, 2]), "an array that is not of bytes"),
        (python2_pickle({b"data": pictures(2)}), "has no data or no labels"),
        (python2_pickle({b"data": pictures(1), b"labels": [300]}), "labels that are not from 0 to 255"),
        (python2_pickle({b"data": [1], b"labels": [1]}), "has no data or no labels"),
        (pickle.dumps([1, 2]), "has no data or no labels"),
        (array_pickle(pictures(2), [1, 2])[:-900], "is not a Python batch"),
        (b"", "is not a Python batch"),
        (b"\x80\x02Ppersistent\n.", "is not a Python batch"),
        (array_pickle(pictures(2), [1, 12]), "picture 1 of the training part has the label 12; cifar10 has 10 classes"),
    ],
)
def test_bad_batches(tmp_path: Path, run: Run, data: bytes, message: str) -> None:
    cifar10_python(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(data)
    status, _, err = run("cifar10", tmp_path, tmp_path / "out.h5")
    assert status == 2 and err.startswith("hpcdml: ") and err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "out.h5").exists()


def test_bad_idx_files(tmp_path: Path, run: Run) -> None:
    def told(name: str, data: bytes, message: str) -> None:
        mnist(tmp_path)
        (tmp_path / name).write_bytes(data)
        status, _, err = run("mnist", tmp_path, tmp_path / "out.h5")
        assert status == 2 and err.count("\n") == 1 and message in err, err

    labels = RANDOM.integers(0, 10, 7, dtype=np.uint8)
    name = "train-labels-idx1-ubyte"
    told(name, idx(labels)[:-1], f"{name}: has 6 bytes of values; must be those of the shape (7,)")
    told(name, idx(labels)[:6], "is not an idx1 file of bytes")
    told(name, b"", "is not an idx1 file of bytes: it begins with nothing")
    told(name, idx(labels.reshape(7, 1)), "is not an idx1 file of bytes: it begins with 00000802")
    told(name, idx(labels[:5]), "has 7 pictures and 5 labels")
    told(name, idx(labels + 9), "; mnist has 10 classes")
    told("t10k-images-idx3-ubyte", idx(np.zeros((3, 5, 5), np.uint8)), "test pictures (5, 5); must be equal")
    huge = bytes((0, 0, 8, 3)) + struct.pack(">3I", *[2**32 - 1] * 3) + b"x"
    told("train-images-idx3-ubyte", huge, "has 1 bytes of values")
    told(name + ".gz", b"no gzip", f"{name}.gz: cannot be read: ")


def test_what_is_missing_and_what_is_there(tmp_path: Path, run: Run) -> None:
    target = tmp_path / "out.h5"
    assert run("cifar10", tmp_path / "no", target)[2] == (
        f"hpcdml: {tmp_path}/no: there is no such folder; name the one that has the downloaded files\n"
    )
    assert (
        "has none of the files of cifar10: test_batch, cifar-10-batches-py/test_batch"
        in run("cifar10", tmp_path, target)[2]
    )
    assert "has none of train-images-idx3-ubyte.gz, " in run("mnist", tmp_path, target)[2]
    cifar10_python(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    assert "has no data_batch_4, which is needed" in run("cifar10", tmp_path, target)[2]
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"not an archive")
    assert "cifar-100-python.tar.gz: cannot be unpacked: " in run("cifar100", tmp_path, target)[2]
    mnist(tmp_path)
    target.write_text("mine")
    assert run("mnist", tmp_path, target) == (2, "", f"hpcdml: {target}: exists; --overwrite replaces it\n")
    assert target.read_text() == "mine"
    assert run("mnist", tmp_path, target, "--overwrite")[0] == 0


def test_wrong_use(tmp_path: Path, run: Run) -> None:
    assert "cifar-10: no such data set; did you mean cifar10?" in run("cifar-10", tmp_path, "out.h5")[2]
    assert "what, from which folder, to which file?" in run("mnist", tmp_path)[2]
    assert "out.npz: the file to write must end in .h5" in run("mnist", tmp_path, "out.npz")[2]
    assert "--coarse: only cifar100 has coarse classes, not mnist" in run("mnist", tmp_path, "out.h5", "--coarse")[2]
    assert main(["data"]) == main(["data", "export"]) == 2
    assert main(["data", "--help"]) == main(["data", "import", "--help"]) == 0
