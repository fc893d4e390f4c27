"""Where a run can be written, and what happens on a disk that is full or must not be written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcdml.errors import MachineError, UsageError
from hpcdml.storage import RunReader, read_state, write_state
from storage_cases import create, finish, python, step_rows, values

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
