"""What is on the disk when a writer is killed, what a live reader sees, and files that are not what they should be."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdml.errors import UsageError
from hpcdml.storage import RunReader, read_state, write_state
from hpcdml.storage.seal import append_seal
from storage_cases import create, finish, python, read_last, step_rows, values

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
