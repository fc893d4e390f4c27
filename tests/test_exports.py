"""Runs for other programs: traces, CSV, TensorBoard, figures; and what is said where that cannot be."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcdml.cli import main
from hpcdml.observability.trace import events, write_trace
from hpcdml.observability.view import views
from hpcdml.storage import TABLES, RunReader
from synthetic import write_run


def traced(run: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    assert main.main(["trace", str(run), str(out), *options]) == 0
    opened = gzip.open if out.suffix == ".gz" else open
    with opened(out, "rt") as file:
        return json.load(file, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["traceEvents"]


def test_a_trace_has_every_step_and_round_and_rows_without_overlap(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", idle=(0.001, 0.002), data=0.001, loss=(2.0, float("nan")))
    found = traced(run, tmp_path / "trace.json")
    reader, rows = RunReader(run), defaultdict(list)
    # Perfetto takes threads of one number for the same, and number 0 for Linux's idle one.
    told = [
        (event["name"], event["pid"], event["tid"], event["args"].get("name")) for event in found if event["ph"] == "M"
    ]
    threads = [tid for kind, _, tid, _ in told if kind == "thread_name"]
    assert len(set(threads)) == len(threads) == 7 and 0 not in threads
    named = {tid: name for kind, _, tid, name in told if kind == "thread_name"}
    named |= {pid: name for kind, pid, _, name in told if kind == "process_name"}
    for event in found:
        if event["ph"] == "X":
            rows[named[event["pid"]], named[event["tid"]]].append((event["ts"], event["dur"], event["name"]))
    for row in rows.values():
        row.sort()
        assert all(a + b <= c + 0.0015 for (a, b, _), (c, _, _) in zip(row, row[1:], strict=False))
    steps = reader.table("steps")
    for worker in (1, 2):
        own = steps[steps["worker"] == worker]
        computing = [(ts, dur) for ts, dur, name in rows[f"worker {worker}", "local steps"] if name == "compute"]
        assert len(computing) == len(own)
        assert [ts + dur for ts, dur in computing] == pytest.approx(1e6 * own["time"])
    rounds = [rows["rank 0, the server", f"rounds, {kind} versions"] for kind in ("even", "odd")]
    assert sum(map(len, rounds)) == len(reader.table("rounds"))
    arrows = defaultdict(list)
    for event in found:
        if event["ph"] in "sf":
            arrows[event["id"]].append(event)
    assert arrows and all([e["ph"] for e in pair] == ["s", "f"] for pair in arrows.values())
    assert all(start["ts"] <= end["ts"] for start, end in arrows.values())


def test_a_part_of_a_run_packed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    some = traced(run, tmp_path / "part.json.gz", "--from", "0.5", "--to", "1.0")
    steps = [event for event in some if event["name"] == "compute"]
    assert min(e["ts"] + e["dur"] for e in steps) >= 0.49e6 and max(e["ts"] for e in steps) <= 1.0e6
    assert 100 <= len(steps) <= 104


def test_a_run_without_anything_has_a_trace(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=0, accuracy=())
    assert all(event["ph"] == "M" for event in events(views([str(run)])[0]))


def test_a_trace_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = views([str(write_run(tmp_path / "run"))])[0]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trace.json").write_text("before")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpcdml.observability.trace.json.dumps", full)
    with pytest.raises(Exception, match="trace .*trace.json: cannot be written: no space left") as caught:
        write_trace(view, str(tmp_path / "out" / "trace.json"))
    assert caught.value.status == 1  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["trace.json"]
    assert (tmp_path / "out" / "trace.json").read_text() == "before"


def test_csv_holds_what_the_tables_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", idle=(0.1 / 3, 0.2), loss=(1.0, float("nan")))
    assert main.main(["report", str(run), "--csv", str(tmp_path / "csv")]) == 0
    assert "steps.csv, pushes.csv" in capsys.readouterr().out
    reader = RunReader(run)
    for table in TABLES:
        with open(tmp_path / "csv" / f"{table.name}.csv", newline="") as file:
            header, *lines = csv.reader(file)
        rows = reader.table(table.name)
        assert header == [column.name for column in table.columns] and len(lines) == len(rows)
        for index, column in enumerate(table.columns):
            cells = [line[index] for line in lines]
            if column.dtype.startswith("S"):
                assert cells == [value.decode() for value in rows[column.name]]
            else:
                assert np.array_equal(np.array(cells, float).astype(rows[column.name].dtype), rows[column.name], True)


def test_several_runs_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name / "run")) for name in ("a", "b")]
    assert main.main(["report", *runs, "--csv", str(tmp_path / "csv")]) == 0
    assert sorted(path.name for path in (tmp_path / "csv").iterdir()) == ["a_run", "b_run"]


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = write_run(tmp_path / "run", accuracy=(0.25, 0.5, 0.75))
    assert main.main(["report", str(run), "--tensorboard", str(tmp_path / "events")]) == 0
    found = accumulator.EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0})
    found.Reload()
    assert set(found.Tags()["tensors"]) == {
        "train/loss",
        "speed/samples_per_second",
        "speed/without_communication",
        "held-out/accuracy",
        "held-out/loss",
    }
    accuracy = found.Tensors("held-out/accuracy")
    assert [event.step for event in accuracy] == [1000, 2000, 3000]
    assert [event.tensor_proto.float_val[0] for event in accuracy] == [0.25, 0.5, 0.75]
    assert accuracy[2].wall_time - accuracy[0].wall_time == pytest.approx(2 / 3 * 2.0, abs=1e-3)


def test_tensorboard_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    monkeypatch.setattr("hpcdml.observability.tensorboard.importlib.util.find_spec", lambda name: None)
    assert main.main(["report", str(run), "--tensorboard", str(tmp_path / "events")]) == 2
    wanted = "hpcdml: --tensorboard: needs the tensorboard package: pip install 'hpcdml[tensorboard]'\n"
    assert capsys.readouterr().err == wanted and not (tmp_path / "events").exists()


@pytest.mark.parametrize("ending", ["pdf", "png", "svg"])
def test_figures(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        str(write_run(tmp_path / "a", idle=(0.001, 0.001), data=0.001)),
        str(write_run(tmp_path / "b", policy="bsp", accuracy=())),
    ]
    out = tmp_path / "new" / f"figure.{ending}"
    assert main.main(["plot", *runs, str(out), "--axis", "samples"]) == 0
    content = out.read_bytes()
    assert content.startswith({"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<?xml"}[ending])
    if ending == "png":
        width, height = struct.unpack(">II", content[16:24])
        assert width > 1000 and height > 800
    assert main.main(["plot", *runs, str(out), "--axis", "samples"]) == 0
    assert out.read_bytes() == content  # the same run gives the same file


MISTAKES = [
    (["trace"], "trace: which run, and to what file? as in hpcdml trace runs/latest trace.json"),
    (["trace", "RUN"], "trace: which run, and to what file? as in hpcdml trace runs/latest trace.json"),
    (["trace", "RUN", "RUN/run.h5"], "trace RUN/run.h5: must end with .json or .json.gz"),
    (["trace", "RUN", "x.json", "--from", "5", "--to", "2"], "--to 2: must be after --from, 5"),
    (["trace", "RUN", "x.json", "--from", "soon"], "--from soon: must be a number of seconds, 0 or more"),
    (["trace", "nothing", "x.json"], "nothing: there is no such file or folder"),
    (["trace", "RUN", "RUN/run.h5/x.json"], "trace RUN/run.h5/x.json: RUN/run.h5 is a file, not a folder"),
    (["plot", "RUN"], "plot: which run, and to what file? as in hpcdml plot runs/latest figures.pdf"),
    (["plot", "RUN", "RUN"], "plot RUN: must end with .pdf or .png or .svg"),
    (["plot", "RUN", "x.pdf", "--axis", "rounds"], "--axis rounds: must be one of seconds, samples"),
    (["report", "RUN", "--html", "RUN/run.h5"], "--html RUN/run.h5: must end with .html or .htm"),
    (["report", "RUN", "--html", "folder.html"], "--html folder.html: is a folder; name a file"),
    (["report", "RUN", "RUN", "--json"], "--json: is about one RUN; RUN is one argument too many"),
    (["report", "RUN", "RUN", "--compare", "RUN"], "--compare: is about one RUN; RUN is one argument too many"),
    (["report", "RUN", "--csv", "RUN/run.h5"], "--csv RUN/run.h5/steps.csv: RUN/run.h5 is a file, not a folder"),
    (["watch"], "watch: which run? as in hpcdml watch runs/latest"),
    (["watch", "RUN", "--every", "0"], "--every 0: must be a number of seconds, 0.1 or more"),
    (["watch", "nothing", "--once"], "nothing: there is no such file or folder"),
]


@pytest.mark.parametrize("arguments, line", MISTAKES)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("RUN"), steps=20)
    before = Path("RUN/run.h5").read_bytes()
    Path("folder.html").mkdir()
    assert main.main(arguments) == 2
    assert capsys.readouterr().err == f"hpcdml: {line}\n"
    assert Path("RUN/run.h5").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"RUN", "folder.html"}
