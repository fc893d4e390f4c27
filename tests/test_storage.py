"""Storage: what a run and a file of parameters hold, and what they refuse to."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

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
from hpcdml.storage.tables import EVENTS, PUSHES, STEPS
from storage_cases import STATE, create, finish, python, read_last, step_rows, values

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


# The package


def test_storage_imports_nothing_from_above_it() -> None:
    names = finish(python("import sys, hpcdml.storage; print(*sys.modules)")).split()
    names = [name for name in names if name.startswith(("hpcdml.", "torch", "mpi4py"))]
    assert all(name.startswith(("hpcdml.storage", "hpcdml.errors", "hpcdml.config")) for name in names), names


def test_errors_of_writing_are_errors_of_hpcdml() -> None:
    assert issubclass(MachineError, HpcdmlError) and EVENTS.dtype.itemsize == 284
