"""Storage: what is on the disk when a run goes on, is killed, finishes, meets a full disk or is damaged afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import TrainConfig
from hpcdml.errors import HpcdmlError, MachineError, UsageError
from hpcdml.storage import TABLES, RunReader, RunWriter, read_state, table, write_state
from hpcdml.storage.hdf5 import escape, get_attributes, set_attribute, unescape
from hpcdml.storage.row_checks import stored_type
from hpcdml.storage.seal import append_seal
from hpcdml.storage.tables import EVENTS, PUSHES, STEPS

ROOT = Path(__file__).resolve().parent.parent
STATE: dict[str, tuple[tuple[int, ...], Any]] = {
    "layer.0/strange%name.weight": ((30, 7), "float32"),
    "layer.0.bias": ((7,), np.dtype("float64")),
    "a.counter": ((), "int64"),
    "mask": ((3,), "bool"),
    "nothing": ((0, 4), "float16"),
    "half": ((5,), "bfloat16"),
}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "layer.0/strange%name.weight": rng.normal(size=(30, 7)).astype("f4"),
        "layer.0.bias": rng.normal(size=(7, 3))[:, 1],  # not in one piece
        "a.counter": np.array(12345678901),
        "mask": np.array([True, False, True]),
        "nothing": np.zeros((0, 4), "f2"),
        "half": np.arange(5, dtype="f4"),
    }


def create(folder: Path, overwrite: bool = False, config: dict[str, object] | None = None) -> RunWriter:
    return RunWriter.create(folder, config or {"policy": "losp"}, {"host": "here"}, 2, STATE, overwrite)


def step_rows(first: int, count: int, worker: int = 1) -> np.ndarray:
    rows = np.zeros(count, STEPS.dtype)
    rows["worker"] = worker
    rows["step"] = np.arange(first, first + count)
    rows["time"] = rows["step"] * 0.5
    return rows


def python(code: str, *arguments: object, **kwargs: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, **kwargs)


def finish(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """The output of a process that must end well and say nothing on its standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert (process.returncode, err) == (0, ""), out
    return out


# Tables and attributes


def test_every_column_has_a_unit_and_a_meaning_in_the_file(tmp_path: Path) -> None:
    create(tmp_path).close()
    with h5py.File(tmp_path / "run.h5", "r") as file:
        for each in TABLES:
            lines = [line.decode() for line in file[each.name].attrs["columns"]]
            assert [line.split(" [")[0] for line in lines] == [*(each.dtype.names or ()), "check"]
            assert all(
                c.unit and c.meaning and f"[{c.unit}]: {c.meaning}" in lines[i] for i, c in enumerate(each.columns)
            )
            assert file[each.name].dtype == stored_type(each.dtype) and file[each.name].maxshape == (None,)
            assert not file[each.name].dtype.hasobject


def test_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="no table 'stepps'"):
        table("stepps")


plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
nested = st.recursive(plain | text, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(nested | st.sampled_from(["none", '"', "[1]", "{", "", '{"a": 1}']))
def test_attributes_come_back_as_they_were(value: object) -> None:
    with h5py.File("memory", "w", driver="core", backing_store=False, libver="latest") as file:
        set_attribute(file, "value", value)
        found = get_attributes(file)["value"]
        assert found == value and type(found) is type(value)


@given(text)
def test_names_survive_as_links(name: str) -> None:
    assert unescape(escape(name)) == name and "/" not in escape(name)


def test_none_dicts_and_lists_are_readable_by_others(tmp_path: Path) -> None:
    create(tmp_path, config={"a": None, "b": {"x": [1, None]}, "c": [3, 1]}).close()
    with h5py.File(tmp_path / "run.h5", "r") as file:
        found = {name: value.decode() for name, value in file["config"].attrs.items()}
    assert found == {"a": "none", "b": '{"x": [1, null]}', "c": "[3, 1]"}


# A run that is written and read


def test_the_whole_configuration_comes_back(tmp_path: Path) -> None:
    config = TrainConfig.from_flat(
        {"model_args": {"hidden": 3}, "shard_weights": [3.0, 1.0], "slowdown": {"1": 2.5}, "seed": 2**40, "lr": 1e-3}
    ).flat()
    create(tmp_path, config=config).close()
    run = RunReader(tmp_path)
    assert run.config == config
    assert TrainConfig.from_flat(run.config).flat() == config
    assert run.workers == 2 and run.environment == {"host": "here"} and run.created


def test_rows_are_seen_after_a_flush_only(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        rows = step_rows(1, 3)
        writer.append("steps", rows)
        rows["step"] = 99  # the buffer of the caller is its own again
        run = RunReader(tmp_path)
        assert len(run.table("steps")) == 0
        writer.flush(force=True)
        assert run.table("steps")["step"].tolist() == [1, 2, 3]
        assert run.table("steps").dtype == STEPS.dtype
        writer.append("steps", step_rows(4, 1)[0:1].reshape(()))
        writer.append("pushes", PUSHES.rows((1, 1, 0.5, 0, 1, 0, 3, 96, 3, 0)))
        writer.event(2.5, 1, "lost worker", "ü" * 300)
        writer.flush()  # too early
        assert len(run.table("steps")) == 3
    assert run.table("steps")["step"].tolist() == [1, 2, 3, 4]
    assert run.table("steps", start=3)["step"].tolist() == [4]
    assert run.table("pushes")["samples"].tolist() == [96]
    assert run.events() == [(2.5, 1, "lost worker", "ü" * 128)]
    assert not run.finished and run.parameters() is None


def test_an_unforced_flush_writes_when_it_is_due(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        writer.append("steps", step_rows(1, 1))
        writer.flush()
        assert len(RunReader(tmp_path).table("steps")) == 1


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        with pytest.raises(TypeError, match="rows of steps: dtype must be"):
            writer.append("steps", np.zeros(2))
        with pytest.raises(KeyError):
            writer.append("step", step_rows(1, 1))
    with pytest.raises(ValueError, match="is closed"):
        writer.append("steps", step_rows(1, 1))
    writer.close()


def test_rows_appended_by_one_thread_while_another_flushes_are_all_there(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        done = threading.Event()

        def flush() -> None:
            while not done.is_set():
                writer.flush(force=True)

        thread = threading.Thread(target=flush)
        thread.start()
        for i in range(2000):
            writer.append("steps", step_rows(i + 1, 1))
        done.set()
        thread.join()
    assert RunReader(tmp_path).table("steps")["step"].tolist() == list(range(1, 2001))


def test_parameters_come_back_before_and_after_closing(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        run = RunReader(tmp_path)
        assert run.torch_dtypes()["half"] == "bfloat16" and run.torch_dtypes()["mask"] == "bool"
        assert run.parameters() is None
        writer.write_parameters(values(), seconds=3.0)
        check_parameters(run)
        assert run.finished and run.events()[-1] == (3.0, 0, "finished", "")
    check_parameters(run)
    with h5py.File(tmp_path / "run.h5", "r") as file:  # and without SWMR once it is closed
        assert "layer.0.bias" in file["parameters"]


def check_parameters(run: RunReader) -> None:
    found = run.parameters()
    assert found is not None and list(found) == list(STATE)
    for name, value in values().items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_large_parameters_are_written_in_slices(tmp_path: Path) -> None:
    state = {"w": ((3000, 1500), "float32")}  # 18 MB, slices of 8 MiB
    array = np.arange(4_500_000, dtype="f4").reshape(3000, 1500)
    with RunWriter.create(tmp_path, {}, {}, 1, state, False) as writer:
        writer.write_parameters({"w": array})
    np.testing.assert_array_equal((RunReader(tmp_path).parameters() or {})["w"], array)


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    with create(tmp_path) as writer:
        with pytest.raises(ValueError, match="parameters: mask is missing"):
            writer.write_parameters({k: v for k, v in values().items() if k != "mask"})
        with pytest.raises(ValueError, match="parameters: more is not in the run file"):
            writer.write_parameters({**values(), "more": np.zeros(1)})
        with pytest.raises(ValueError, match="must have shape"):
            writer.write_parameters({**values(), "mask": np.zeros(4, bool)})
        with pytest.raises(ValueError, match="of object"):
            writer.write_parameters({**values(), "mask": np.array([None] * 3)})
    assert not RunReader(tmp_path).finished
    with pytest.raises(TypeError, match="only numbers"):
        RunWriter.create(tmp_path, {}, {}, 1, {"o": ((1,), object)}, True)
    assert os.listdir(tmp_path) == ["run.h5"]


# The folder


def test_a_run_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with create(folder) as writer:
        writer.append("steps", step_rows(1, 5))
    write_state(folder / "checkpoints" / "step-00000001.h5", values(), {})
    with pytest.raises(UsageError) as error:
        create(folder)
    assert str(error.value) == f"--output {folder}: holds a run already; choose another folder or add --overwrite"
    assert len(RunReader(folder).table("steps")) == 5
    create(folder, overwrite=True).close()
    assert os.listdir(folder) == ["run.h5"]
    assert len(RunReader(folder).table("steps")) == 0


def test_of_two_runs_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    code = """if 1:
        import sys
        from pathlib import Path
        from hpcdml.errors import UsageError
        from hpcdml.storage import RunWriter
        sys.stdin.readline()
        try:
            RunWriter.create(Path(sys.argv[1]), {}, {}, 1, {}, False).close()
            print("mine")
        except UsageError as error:
            print(error)
    """
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        processes = [python(code, folder, stdin=subprocess.PIPE) for _ in range(2)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = sorted(finish(process).strip() for process in processes)
        assert answers[1] == "mine" and "holds a run already" in answers[0]
        assert os.listdir(folder) == ["run.h5"]


def test_places_where_no_run_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, why in (
        (tmp_path / "file", "is a file; name a folder"),
        (tmp_path / "file" / "deep", "cannot be written: Not a directory"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
    ):
        with pytest.raises(UsageError) as error:
            create(folder)
        assert str(error.value) == f"--output {folder}: {why}"
    assert os.listdir(tmp_path) == ["file"]


def test_places_without_permission(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    create(folder).close()
    (folder / "run.h5").chmod(0)
    folder.chmod(0o555)
    (tmp_path / "closed").mkdir(mode=0)
    tmp_path.chmod(0o755)
    code = """if 1:
        import os, sys
        from pathlib import Path
        from hpcdml.errors import UsageError
        from hpcdml.storage import RunReader, RunWriter, read_state, write_state
        os.chdir(sys.argv[1])
        if os.geteuid() == 0:
            os.setuid(65534)  # root may do everything
        for action in (
            lambda: RunWriter.create(Path("new"), {}, {}, 1, {}, False),
            lambda: RunWriter.create(Path("run"), {}, {}, 1, {}, True),
            lambda: RunWriter.create(Path("closed/run"), {}, {}, 1, {}, True),
            lambda: write_state("run/a.h5", {}, {}),
            lambda: RunReader("run"),
            lambda: RunReader("closed/run"),
            lambda: read_state("run/run.h5"),
        ):
            try:
                action()
            except UsageError as error:
                print(error)
    """
    tmp_path.chmod(0o555)
    lines = finish(python(code, tmp_path)).splitlines()
    tmp_path.chmod(0o755)
    assert lines == [
        "--output new: cannot be written: Permission denied",
        "--output run: cannot be written: Permission denied",
        "--output closed/run: cannot be written: Permission denied",
        "run/a.h5: cannot be written: Permission denied",
        "run/run.h5: cannot be read: Permission denied",
        "closed/run: cannot be read: Permission denied",
        "run/run.h5: cannot be read: Permission denied",
    ]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Any]:
    """A function that mounts a small file system (options of mount -t tmpfs) and gives its folder."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system needs root and the permission to mount")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_file_system(disk: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written: Read-only file system"):
        create(disk("size=1m,ro") / "run")


# A full disk

FULL = """if 1:
    import sys
    from pathlib import Path
    import numpy as np
    from hpcdml.errors import MachineError
    from hpcdml.storage import RunWriter, write_state
    from hpcdml.storage.tables import STEPS
    folder, phase = Path(sys.argv[1]), sys.argv[2]
    big = {"w": np.ones((100, 1000), "f4"), "b": np.zeros(5)}
    writer = None
    def fill():
        global writer
        if phase == "state":
            for i in range(1000):
                write_state(folder / f"step-{i:03d}.h5", {"w": np.ones(5000 + i), "b": np.zeros(5)}, {"i": i})
        state = {name: (a.shape, a.dtype) for name, a in big.items()}
        with RunWriter.create(folder / "run", {"o": "x" * 99}, {}, 1, state, False) as writer:
            step = 1
            while True:
                rows = np.zeros(100, STEPS.dtype)
                rows["worker"], rows["step"] = 1, np.arange(step, step + 100)
                writer.append("steps", rows)
                step += 100
                if phase == "events":
                    for i in range(50):
                        writer.event(1, 0, "kind", "text" * 30)
                writer.flush(force=True)
                if phase == "parameters" and step > 300:
                    writer.write_parameters(big)
    try:
        fill()
    except MachineError as error:
        print(error)
    if writer is not None:
        for action in (lambda: writer.append("steps", np.zeros(1, STEPS.dtype)), lambda: writer.flush(force=True)):
            try:
                action()
            except MachineError as error:
                print(error)
        writer.close()
        writer.close()
"""


@pytest.mark.parametrize("phase", ["rows", "events", "parameters", "state"])
@pytest.mark.parametrize("size", ["4k", "48k", "200k"])
def test_a_full_disk_is_one_line_and_leaves_what_was_written(disk: Any, phase: str, size: str) -> None:
    folder = disk(f"size={size}")
    lines = finish(python(FULL, folder, phase)).splitlines()
    assert lines and all(line.endswith("cannot be written: No space left on device") for line in lines)
    names = os.listdir(folder)
    if phase == "state":
        assert all(name.startswith("step-") for name in names)  # no half-written file is left
        for name in names:
            assert read_state(folder / name)[1] == {"i": int(name[5:8])}
    elif size == "4k":
        assert lines == [f"--output {folder}/run: cannot be written: No space left on device"]
        assert os.listdir(folder / "run") == []
    else:
        assert lines == [f"{folder}/run/run.h5: cannot be written: No space left on device"] * 3
        run = RunReader(folder / "run")
        steps = run.table("steps")
        assert steps["step"].tolist() == list(range(1, len(steps) + 1))
        assert size == "48k" or len(steps) > 0
        assert not run.finished and run.parameters() is None
        assert all(event == (1.0, 0, "kind", "text" * 30) for event in run.events())


def test_an_error_on_its_way_is_not_replaced_by_a_full_disk(disk: Any) -> None:
    folder = disk("size=100k")
    with pytest.raises(ZeroDivisionError), create(folder / "run") as writer:
        writer.append("steps", step_rows(1, 10000))
        raise ZeroDivisionError
    with pytest.raises(MachineError, match="No space left"):
        writer.flush(force=True)


# Killed writers and live readers

WRITE = """if 1:
    import sys, time
    from pathlib import Path
    import numpy as np
    from hpcdml.storage import RunWriter
    from hpcdml.storage.tables import STEPS, PUSHES
    folder, ending = Path(sys.argv[1]), sys.argv[2]
    writer = RunWriter.create(folder, {"a": None}, {}, 1, {"w": ((500, 100), "float32")}, True)
    step, end = 0, time.monotonic() + 1.0
    while ending == "never" or time.monotonic() < end:
        count = 1 + 37 * step % 211
        for table in (STEPS, PUSHES):
            rows = np.zeros(count, table.dtype)
            rows["worker"] = 1
            rows["step" if table is STEPS else "push"] = np.arange(step + 1, step + count + 1)
            writer.append(table.name, rows)
        step += count
        writer.flush(force=True)
        print(step, flush=True)
        time.sleep(0.002)
    writer.write_parameters({"w": np.full((500, 100), 7.0)})
    print("written", flush=True)
    if ending == "wait":
        time.sleep(60)
    writer.close()
"""


def test_a_killed_run_has_all_that_was_flushed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        writer = python(WRITE, tmp_path, "never")
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        writer.kill()
        flushed = read_last(writer)
        run = RunReader(tmp_path)
        for name, column in (("steps", "step"), ("pushes", "push")):
            rows = run.table(name)
            assert rows[column].tolist() == list(range(1, len(rows) + 1))
            assert len(rows) >= flushed
        assert run.config == {"a": None} and not run.finished and run.parameters() is None
        # The facts that RunReader rests upon.
        with pytest.raises(OSError, match="already open for write"):
            h5py.File(tmp_path / "run.h5", "r")
        with h5py.File(tmp_path / "run.h5", "r", swmr=True) as file:
            assert len(file["steps"]) >= flushed


def test_a_run_killed_after_its_parameters_is_finished(tmp_path: Path) -> None:
    writer = python(WRITE, tmp_path, "wait")
    assert writer.stdout is not None
    for line in writer.stdout:
        if line == "written\n":
            break
    writer.kill()
    writer.communicate()
    run = RunReader(tmp_path)
    parameters = run.parameters()
    assert run.finished and parameters is not None and (parameters["w"] == 7).all()


FOLLOW = """if 1:
    import sys, time
    from hpcdml.storage import RunReader
    seen, openings = 0, 0
    while True:
        run = RunReader(sys.argv[1])
        steps, pushes = run.table("steps"), run.table("pushes")
        assert steps["step"].tolist() == list(range(1, len(steps) + 1))
        assert pushes["push"].tolist() == list(range(1, len(pushes) + 1))
        assert len(steps) >= seen
        openings += len(steps) > seen
        seen = len(steps)
        parameters = run.parameters()
        if parameters is not None:
            assert (parameters["w"] == 7).all()
            break
    print(openings)
"""


def test_a_reader_follows_a_live_run_to_its_end(tmp_path: Path) -> None:
    writer = python(WRITE, tmp_path, "soon")
    assert writer.stdout is not None
    writer.stdout.readline()
    reader = python(FOLLOW, tmp_path)
    finish(writer)
    assert int(finish(reader)) > 5  # it saw the table grow, again and again


def test_a_run_is_there_only_when_it_can_be_read(tmp_path: Path) -> None:
    code = "from hpcdml.storage import RunWriter; import sys; from pathlib import Path\n"
    code += "while True: RunWriter.create(Path(sys.argv[1]), {'a': 'x' * 5000}, {}, 1, {}, True).close()"
    writer = python(code, tmp_path)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "run.h5").exists() and time.monotonic() < end:
            time.sleep(0.01)
        for _ in range(200):
            assert RunReader(tmp_path).config["a"] == "x" * 5000
    finally:
        writer.kill()
        writer.communicate()


# Files that are not what they should be


def test_files_that_hold_no_run(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty.h5").write_text("")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    write_state(tmp_path / "state.h5", values(), {})
    create(tmp_path / "new").close()
    with h5py.File(tmp_path / "new" / "run.h5", "r+") as file:
        file.attrs["format_version"] = 5
    create(tmp_path / "bad").close()
    with h5py.File(tmp_path / "bad" / "run.h5", "r+") as file:
        del file["steps"]
        file["steps"] = np.zeros(3)
        del file["config"]
    for name, why in (
        ("missing", "there is no such file or folder"),
        (".", "there is no run here (no run.h5)"),
        ("text.h5", "is not an HDF5 file"),
        ("empty.h5", "is not an HDF5 file"),
        ("other.h5", "is not the record of a run by hpcdml"),
        ("state.h5", "is not the record of a run by hpcdml"),
        ("new/run.h5", "has format version 5; this hpcdml reads 4"),
        ("bad/run.h5", "damaged, or not one of ours: object 'config' doesn't exist"),
    ):
        with pytest.raises(UsageError) as error:
            RunReader(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {why}"
    with h5py.File(tmp_path / "bad" / "run.h5", "r+") as file:
        file.create_group("config")
    with pytest.raises(UsageError, match="table steps has other columns"):
        RunReader(tmp_path / "bad").table("steps")


def test_a_run_that_went_through_other_tools_is_read(tmp_path: Path) -> None:
    with create(tmp_path / "a") as writer:
        writer.append("steps", step_rows(1, 10))
        writer.write_parameters(values())
    # What h5repack does: an older format, without SWMR.
    with h5py.File(tmp_path / "a" / "run.h5") as old, h5py.File(tmp_path / "b.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        for name, value in old.attrs.items():
            new.attrs[name] = value
    run = RunReader(tmp_path / "b.h5")
    assert len(run.table("steps")) == 10 and run.parameters() is not None


def test_arrays_of_objects_and_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(3)
    for kind in ("external", "raw", "objects", "text"):
        path = tmp_path / f"{kind}.h5"
        write_state(path, {"w": np.zeros(3)}, {})
        with h5py.File(path, "r+") as file:
            group = file["parameters"]
            del group["w"]
            if kind == "external":
                group["w"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
            elif kind == "raw":
                group.create_dataset("w", (3,), "f8", external=[(str(tmp_path / "secret.h5"), 0, 24)])
            elif kind == "objects":
                group.create_dataset("w", (3,), h5py.vlen_dtype(np.int32))
            else:
                group["w"] = ["text"]
        with open(path, "r+b") as raw:
            append_seal(raw.fileno(), {})
        with pytest.raises(UsageError, match="w is not an array|w does not hold numbers"):
            read_state(path)


# Files of parameters


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    attributes = {
        "version": 3,
        "lr": 0.1,
        "none": None,
        "text": "none",
        "list": [1, [2]],
        "dict": {"a": None},
        "b": True,
    }
    path = tmp_path / "checkpoints" / "step-00000003.h5"
    write_state(path, values(), {**attributes, "numpy": np.float32(0.5)})
    state, found = read_state(path)
    assert found == {**attributes, "numpy": 0.5} and list(state) == list(values())
    for name, value in values().items():
        np.testing.assert_array_equal(state[name], value, strict=True)
    write_state(path, {"w": np.arange(3, dtype=">i2")}, {})
    assert read_state(path)[0]["w"].dtype == np.dtype(">i2")
    assert os.listdir(path.parent) == ["step-00000003.h5"]


def test_what_a_checkpoint_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="parameters: w must hold numbers, not object"):
        write_state(tmp_path / "a.h5", {"w": np.array([{}])}, {})
    with pytest.raises(ValueError, match="attribute format: the name is reserved"):
        write_state(tmp_path / "a.h5", {}, {"format": "x"})
    with pytest.raises(TypeError, match="attribute"):
        write_state(tmp_path / "a.h5", {}, {"x": [object()]})
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written: (Not a directory|File exists)"):
        write_state(tmp_path / "file" / "a.h5", {}, {})
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(UsageError, match="there is no such file"):
        read_state(tmp_path / "a.h5")


def test_a_flipped_bit_of_the_data_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_state(path, {"w": np.full(1000, 1.5)}, {})
    data = bytearray(path.read_bytes())
    at = data.index(np.full(10, 1.5).tobytes())
    data[at + 80] ^= 4
    path.write_bytes(data)
    with pytest.raises(UsageError, match="a.h5: damaged: bytes 0 to [0-9]+ do not match their checksum"):
        read_state(path)


def test_a_killed_checkpoint_leaves_the_last_one_whole(tmp_path: Path) -> None:
    code = """if 1:
        import sys
        import numpy as np
        from hpcdml.storage import write_state
        i = 0
        while True:
            i += 1
            write_state(sys.argv[1], {"w": np.full((300, 300), i), "b": np.full(3, i)}, {"i": i})
            print(i, flush=True)
    """
    path, last = tmp_path / "a.h5", 0
    rng = np.random.default_rng(2)
    for _ in range(5):
        writer = python(code, path)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        last = read_last(writer, at_least=1)
        state, attributes = read_state(path)
        assert (
            attributes["i"] >= last and (state["w"] == attributes["i"]).all() and (state["b"] == attributes["i"]).all()
        )
    assert set(os.listdir(tmp_path)) <= {"a.h5", ".a.h5.tmp"}


def read_last(process: subprocess.Popen[str], at_least: int = 0) -> int:
    """The last number that a killed process said, or ``at_least``."""
    words = process.communicate()[0].split()
    return int(words[-1]) if words else at_least


# The package


def test_storage_imports_nothing_from_above_it() -> None:
    names = finish(python("import sys, hpcdml.storage; print(*sys.modules)")).split()
    names = [name for name in names if name.startswith(("hpcdml.", "torch", "mpi4py"))]
    assert all(name.startswith(("hpcdml.storage", "hpcdml.errors", "hpcdml.config")) for name in names), names


def test_errors_of_writing_are_errors_of_hpcdml() -> None:
    assert issubclass(MachineError, HpcdmlError) and EVENTS.dtype.itemsize == 284
