"""Checkpoints: what comes back, what is kept, and what is on the disk when the writer is killed or the disk fails."""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.errors import MachineError, UsageError
from hpcdml.storage import (
    Checkpoint,
    TensorArray,
    checkpoint_path,
    checkpoints,
    discard_newer,
    faults,
    newest_valid,
    read_checkpoint,
    read_tree,
    write_checkpoint,
    write_tree,
)
from hpcdml.storage.checkpoint_folder import check_checkpoint
from hpcdml.storage.seal import append_seal, verify

ROOT = Path(__file__).resolve().parent.parent


def round_trip(tree: Any) -> Any:
    with h5py.File("memory", "w", driver="core", backing_store=False, libver="latest") as file:
        write_tree(file.create_group("tree"), tree)
        return read_tree(file["tree"])


def same(one: Any, other: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, TensorArray):
        return one.torch_dtype == other.torch_dtype and same(one.values, other.values)
    if isinstance(one, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return same(list(one), list(other)) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return np.float64(one).tobytes() == np.float64(other).tobytes() or (one != one and other != other)
    if isinstance(one, complex):
        return same([one.real, one.imag], [other.real, other.imag])
    return bool(one == other)


# Trees

DTYPES = ["?", "b", "B", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8", "<c8", "<c16"]
arrays = st.builds(
    lambda dtype, shape, seed: np.frombuffer(
        np.random.default_rng(seed).integers(0, 2 if dtype == "?" else 128, 2000, np.uint8).tobytes()[: 64 * 16], dtype
    )[: int(np.prod(shape))].reshape(shape),
    st.sampled_from(DTYPES),
    st.sampled_from([(), (0,), (3,), (2, 0), (2, 3), (1, 2, 4)]),
    st.integers(0, 9),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.sampled_from(["none", '"', "[1]", "{", "", "\0", "a\0", "\ud800", "!x", 2**64, -(2**63) - 1, 10**100])
    | st.sampled_from([np.float32(0.1), np.int64(7), np.bool_(True)])
    | arrays
    | arrays.map(lambda a: TensorArray(a, "bfloat16"))
)
keys = (
    st.text() | st.integers() | st.sampled_from(["", ".", "..", "!kind", "/", "%2F", "1", 1, "\0", (1, "a"), None, 2.5])
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(trees)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    assert same(round_trip(tree), tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"long": list(range(100_000)), "text": "x" * 200_000, "array": np.zeros(3)},
        {i: {"a": np.full(2, i)} for i in range(300)},
        {"x" * 2000: np.zeros(1), "y" * 2000: 1},
        collections.Counter({4: 2, 2: 1}),
        {"deep": [[[[{"er": (np.ones(1),)}]]]]},
        np.arange(20).reshape(4, 5)[:, ::2],
        {"strided": np.arange(20.0).reshape(4, 5).T, "wide": np.broadcast_to(np.float32(1), (3, 4))},
    ],
    ids=["long", "many", "names", "counter", "deep", "root", "strided"],
)
def test_large_and_odd_trees(tree: Any) -> None:
    assert same(round_trip(tree), tree)


def test_what_a_tree_cannot_hold_is_named() -> None:
    class Named(tuple):
        pass

    for tree, message in (
        ({"a": [1, {2: print}]}, "/tree/a[1][2]: cannot be stored: it is a builtin_function_or_method"),
        ({"a": np.zeros(1), "b": {"c": {1}}}, "/tree/b['c']: cannot be stored: it is a set"),
        ({"a": [np.array([{}]), 0]}, "/tree/a/0: must hold numbers, not object"),
        ({"a": np.array(["x"])}, "/tree/a: must hold numbers, not <U1"),
        ([Named()], "/tree/0: cannot be stored: it is a test_what_a_tree_cannot_hold_is_named.<locals>.Named"),
    ):
        with pytest.raises(TypeError) as error:
            round_trip(tree)
        assert str(error.value) == message
    itself: list[Any] = [np.zeros(1)]
    itself.append(itself)
    for tree in (itself, itself[1:] * 2):
        with pytest.raises(ValueError, match="nested more than 200 deep, or in itself"):
            round_trip(tree)


# A checkpoint


def sample(version: int = 3, size: int = 50) -> Checkpoint:
    rng = np.random.default_rng(version)
    return Checkpoint(
        version,
        {
            "layer.0/odd%name.weight": rng.normal(size=(30, size)).astype("f4"),
            "half": TensorArray(np.arange(5, dtype="f4"), "bfloat16"),
            "counter": np.array(7),
            "nothing": np.zeros((0, 4), "f2"),
        },
        server={"outer": [rng.normal(size=size)], "counters": {"version": version, "samples": 10**12, "seconds": 0.1}},
        workers={
            2: {"optimizer": {"state": {0: {"step": TensorArray(np.array(3.0), "float32")}}}, "place": (1, 17)},
            10: {"base": rng.normal(size=(size, 3))[:, 1], "random": (3, tuple(range(625)), None)},
        },
        config={"policy": "losp", "lr": 0.1, "model_args": {"hidden": [3, None]}},
        environment={"host": "here"},
    )


def check(found: Checkpoint, expected: Checkpoint) -> None:
    for name in ("version", "server", "workers"):
        assert same(getattr(found, name), getattr(expected, name)), name
    assert found.config == expected.config and found.environment == expected.environment
    assert list(found.parameters) == list(expected.parameters)
    for name, entry in expected.parameters.items():
        typed = entry if isinstance(entry, TensorArray) else TensorArray(entry, entry.dtype.name)
        assert same(found.parameters[name], typed)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoints", sample())
    assert path == tmp_path / "checkpoints" / "step-00000003.h5" and os.listdir(path.parent) == [path.name]
    found = read_checkpoint(path)
    check(found, sample())
    assert found.ordinal == 1 and found.created
    part = read_checkpoint(path, parameters=False, server=False, workers=[10, 99], check=False)
    assert list(part.workers) == [10] and not part.parameters and not part.server
    assert same(part.workers[10], sample().workers[10])


def test_a_checkpoint_is_plain_hdf5(tmp_path: Path) -> None:
    with h5py.File(write_checkpoint(tmp_path, sample()), "r") as file:
        weight = file["parameters/layer.0%2Fodd%25name.weight"]
        np.testing.assert_array_equal(weight[()], sample().parameters["layer.0/odd%name.weight"])
        assert file["parameters/half"].attrs["torch_dtype"] == b"bfloat16" and file["parameters/half"].dtype == "f4"
        assert file["workers/2/optimizer/state/0/step"][()] == 3
        assert file["config"].attrs["lr"] == 0.1 and file["config"].attrs["policy"] == b"losp"
        assert file.attrs["version"] == 3

        def no_objects(name: str, item: Any) -> None:
            assert not isinstance(item, h5py.Dataset) or not item.dtype.hasobject, name

        file.visititems(no_objects)


def test_arrays_of_many_blocks_lie_where_they_should(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big = {f"w{i}": rng.integers(0, 256, n, np.uint8) for i, n in enumerate([9 << 20, 1, 8 << 20, 3 << 20, 20 << 20])}
    big["turned"] = rng.normal(size=(1500, 1800)).T
    found = read_checkpoint(write_checkpoint(tmp_path, Checkpoint(1, big)))
    assert all((found.parameters[name].values == array).all() for name, array in big.items())  # type: ignore[union-attr]


def test_a_state_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    bad = sample()
    bad.workers[2]["x"] = {1, 2}
    with pytest.raises(TypeError, match="/workers/2/x: cannot be stored: it is a set"):
        write_checkpoint(tmp_path, bad)
    assert os.listdir(tmp_path) == []


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        read_checkpoint(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_text("x")
    with pytest.raises(UsageError, match="a.h5: has no seal: it was cut short, changed by another program, or is none"):
        read_checkpoint(tmp_path / "a.h5")
    path = write_checkpoint(tmp_path, sample())
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(UsageError, match="has no seal|damaged"):
        read_checkpoint(path)
    with open(path, "r+b") as raw:
        append_seal(raw.fileno(), {})
    with pytest.raises(UsageError, match="has format version 99; this hpcdml reads 1"):
        read_checkpoint(path)
    assert newest_valid(tmp_path) is None


def test_other_threads_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    state = Checkpoint(1, {"w": np.zeros(40_000_000, "f4")})
    with h5py.File(tmp_path / "other.h5", "w") as file:
        thread = threading.Thread(target=write_checkpoint, args=(tmp_path, state))
        thread.start()
        count = 0
        while thread.is_alive():
            file.attrs["count"] = count  # takes h5py's lock
            count += 1
        thread.join()
    assert count > 100


# The folder


def test_the_last_and_every_so_many_are_kept(tmp_path: Path) -> None:
    for version in (5, 6, 9, 20, 21, 40, 100, 101, 102, 150):
        write_checkpoint(tmp_path, sample(version, 2), keep_last=2, keep_every=4)
    assert [version for version, _ in checkpoints(tmp_path)] == [20, 101, 102, 150]
    assert [read_checkpoint(path).ordinal for _, path in checkpoints(tmp_path)] == [4, 8, 9, 10]
    write_checkpoint(tmp_path, sample(151, 2), keep_last=1)
    assert [version for version, _ in checkpoints(tmp_path)] == [151]


def test_the_newest_valid_one_is_found_and_damaged_ones_are_told(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "nowhere") is None
    for version in range(1, 5):
        write_checkpoint(tmp_path, sample(version), keep_last=9)
    (tmp_path / "step-9.h5").write_text("no name of ours")
    (tmp_path / "step-00000009.h5").write_text("")
    flip(checkpoint_path(tmp_path, 4), -3000)
    os.truncate(checkpoint_path(tmp_path, 3), 5000)
    told: list[str] = []
    assert newest_valid(tmp_path, told.append) == checkpoint_path(tmp_path, 2)
    assert [re.sub(f"^{tmp_path}/", "", line) for line in told] == [
        "step-00000009.h5: has no seal: it was cut short, changed by another program, or is none of ours; passed over",
        f"step-00000004.h5: damaged: bytes 0 to {sealed_size(tmp_path)} do not match their checksum; passed over",
        "step-00000003.h5: has no seal: it was cut short, changed by another program, or is none of ours; passed over",
    ]
    assert [path.name for path in discard_newer(tmp_path, 2)] == [f"step-{v:08d}.h5" for v in (3, 4, 9)]
    assert [version for version, _ in checkpoints(tmp_path)] == [1, 2]


def sealed_size(folder: Path) -> int:
    seal = verify(checkpoint_path(folder, 2))
    assert seal is not None
    return seal.size


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damaged_checkpoints_are_not_deleted_and_do_not_count(tmp_path: Path) -> None:
    for version in (1, 2):
        write_checkpoint(tmp_path, sample(version), keep_last=9)
    os.truncate(checkpoint_path(tmp_path, 1), 100)
    for version in (3, 4):
        write_checkpoint(tmp_path, sample(version), keep_last=1)
    assert [version for version, _ in checkpoints(tmp_path)] == [1, 4]


def test_a_folder_that_cannot_be_read_or_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be read: Not a directory"):
        newest_valid(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be (read|written): (Not a directory|File exists)"):
        write_checkpoint(tmp_path / "file", sample())


# Death and failure at every step of the writing

WRITE = """if 1:
    import sys
    import numpy as np
    from hpcdml.storage import Checkpoint, write_checkpoint
    version = int(sys.argv[2])
    state = {"w": np.full(5_000_000, version, "f4")}
    write_checkpoint(sys.argv[1], Checkpoint(version, state, {"a": version}), keep_last=2)
"""


def of_ones(version: int) -> Checkpoint:
    return Checkpoint(version, {"w": np.full(5_000_000, version, "f4")}, {"a": version})


def write(folder: Path, version: int, fault: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HPCDML_FAULT": fault}
    command = [sys.executable, "-c", WRITE, str(folder), str(version)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def steps_of_writing(folder: Path) -> list[str]:
    """The steps of the third checkpoint's writing, which prunes the first and finds a killed one's leftover."""
    for version in (1, 2):
        assert write(folder, version).returncode == 0
    (folder / ".step-00000099.h5.tmp").write_text("left")
    assert write(folder, 3, f"count:{folder}/steps").returncode == 0
    steps = (folder / "steps").read_text().split("\n")[:-1]
    return steps


def content(path: Path) -> int:
    found = read_checkpoint(path)
    values = found.parameters["w"].values  # type: ignore[union-attr]
    assert (values == found.version).all() and found.server == {"a": found.version}
    return found.version


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return steps_of_writing(tmp_path_factory.mktemp("steps"))


def test_the_steps_of_writing_are_all_there(steps: list[str]) -> None:
    assert steps == ["clean", "create", "layout", *["block"] * 3, "seal", "sync", "rename", "sync folder", "prune"]


@pytest.mark.parametrize("fault", ["kill", "full", "io"])
def test_at_every_step_the_newest_valid_one_is_the_last_or_the_new_one(
    steps: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(folder: Path, number: int) -> str:
        if fault == "kill":
            done = write(folder, 3, f"kill:{number}")
            assert done.returncode == -signal.SIGKILL and not done.stdout
            return ""
        monkeypatch.setenv(faults.VARIABLE, f"{fault}:{number}")
        monkeypatch.setattr(faults, "_passed", 0)
        try:
            write_checkpoint(folder, of_ones(3), keep_last=2)
            return ""
        except MachineError as error:
            return str(error)
        finally:
            monkeypatch.delenv(faults.VARIABLE)

    outcomes: collections.Counter[str] = collections.Counter()
    for number, step in enumerate(steps, 1):
        folder = tmp_path / f"{number}"
        for version in (1, 2):
            write_checkpoint(folder, of_ones(version))
        old = {path.name: path.read_bytes() for _, path in checkpoints(folder)}
        (folder / ".step-00000099.h5.tmp").write_text("left")
        message = attempt(folder, number)
        # What an error keeps from being deleted does not end the writing.
        published = steps.index("rename") + 1 < number or (step == "clean" and fault != "kill")
        told: list[str] = []
        newest = newest_valid(folder, told.append)
        assert newest is not None and not told
        assert content(newest) == (3 if published else 2), step
        if step not in ("prune", "clean") or fault == "kill":
            assert all((folder / name).read_bytes() == data for name, data in old.items())
        if fault != "kill":
            why = {"full": "No space left on device", "io": "Input/output error"}[fault]
            expected = "" if step in ("clean", "prune") else f"{folder}/step-00000003.h5: cannot be written: {why}"
            assert message == expected
            assert step == "clean" or [name for name in os.listdir(folder) if name.endswith(".tmp")] == []
        outcomes["new" if published else "previous"] += 1
        write_checkpoint(folder, of_ones(4))
        newest = newest_valid(folder)
        assert newest is not None and content(newest) == 4
        assert [name for name in os.listdir(folder) if name.endswith(".tmp")] == []
    print(f"{fault} at each of {len(steps)} steps: {dict(outcomes)}")


def test_a_full_disk_leaves_older_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the permission to mount")
    try:
        write_checkpoint(disk, Checkpoint(1, {"w": np.ones(1_200_000, "f4")}))
        with pytest.raises(MachineError, match="step-00000002.h5: cannot be written: No space left on device"):
            write_checkpoint(disk, Checkpoint(2, {"w": np.ones(1_200_000, "f4")}))
        many = {f"w{i}": np.ones(1) for i in range(20_000)}
        with pytest.raises(MachineError, match="step-00000003.h5: cannot be written: No space left on device"):
            write_checkpoint(disk, Checkpoint(3, many))  # not even the layout finds room
        assert os.listdir(disk) == ["step-00000001.h5"]
        check_checkpoint(disk / "step-00000001.h5")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
