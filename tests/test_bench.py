"""The side-by-side benchmarks, with tiny jobs: what they measure, how they choose, what they leave, and wrong use."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcdml.benchmarks import convergence, overlap, runs
from hpcdml.benchmarks.convergence import ConvergenceOptions, best_rate, summarise
from hpcdml.benchmarks.launch import Site, open_site
from hpcdml.benchmarks.log import Log, Record
from hpcdml.benchmarks.overlap import OverlapOptions
from hpcdml.benchmarks.picture import spaced
from hpcdml.benchmarks.runner import FAILURES, Runner
from hpcdml.benchmarks.table import format_table, spread
from hpcdml.cli.main import main
from hpcdml.config import TrainConfig
from hpcdml.emulation import Cluster, jobs
from hpcdml.errors import HpcdmlError, MachineError, UsageError
from hpcdml.storage.bench_file import BenchFile, read_results

with_mpirun = pytest.mark.usefixtures("_needs_mpirun")
pytestmark = pytest.mark.timeout(300)
SMALL = {"model_args": {"hidden": 32, "layers": 1}, "repeats": 1}


@with_mpirun
def test_overlap_compares_with_the_same_ranks_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "overlap.h5"
    words = ["--sides", "losp,bsp,ddp", "--rates", "none", "--seconds", "1", "--repeats", "1", "--straggler", "3"]
    words += ["--step-seconds", "0.01"]
    assert main(["bench", "overlap", *words, "--model-args", "hidden=32", "--json", "--output", str(file)]) == 0
    rows = {row["side"]: row for row in json.loads(capsys.readouterr().out)}

    assert list(rows) == ["losp", "bsp", "ddp"]
    for row in rows.values():
        assert row["rate"] == "none" and row["M/C"] == 0 and row["runs"] == 1
        assert 0 < row["share"]["median"] < 2 and 0 < row["fast_share"]["median"] < 2
        # The slow worker holds up those that wait for it; each pair takes as many steps, of which the slow one's count.
        assert row["bound"] > 1.2
    assert rows["bsp"]["over_bsp"] == {"median": 1, "min": 1, "max": 1}
    assert rows["losp"]["fast_share"]["median"] > 1.5 * rows["bsp"]["fast_share"]["median"]
    assert rows["losp"]["fast_share"]["median"] > 1.5 * rows["ddp"]["fast_share"]["median"]

    runs = read_results(file, "overlap").runs
    assert [values["side"] for values, _ in runs] == ["alone", "losp", "bsp", "ddp"]
    fast, slow = runs[0][0]["step_seconds"]
    assert slow > 2 * fast  # 3, but for what others do on the machine's cores
    assert main(["bench", "overlap", "--results", str(file)]) == 0
    assert format_table(list(rows.values())).split() == capsys.readouterr().out.split()


SMALL_WORDS = {
    "accuracy": "--policies losp --seeds 1 --epochs 1 --model-args hidden=8",
    "checkpoint": "--megabytes 1 --tensors 3 --repeats 2",
    "polls": "--models mlp --blocks 2",
    "straggler": "--policies losp --repeats 1 --seconds 1 --model-args hidden=8",
}


@with_mpirun
@pytest.mark.parametrize("name", sorted(SMALL_WORDS))
def test_every_run_is_kept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "results.h5"
    assert main(["bench", name, *SMALL_WORDS[name].split(), "--json", "--output", str(file)]) == 0
    found = read_results(file, name)
    assert found.rows and len(found.runs) == {"straggler": 1}.get(name, 2)
    assert json.loads(capsys.readouterr().out) == found.rows


@with_mpirun
def test_convergence_compares_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "results.h5", tmp_path / "picture.svg"
    words = ["--sides", "losp,ddp", "--rate", "none", "--lrs", "0.4", "--samples", "8000", "--target", "0.6"]
    words += ["--eval-seconds", "0.02", "--repeats", "1", "--model-args", "hidden=64"]
    words += ["--optimizer-args", "momentum=0.5"]
    asked = ["bench", "convergence", *words, "--json", "--output", str(file), "--picture", str(picture)]
    assert main(asked) == 0
    rows = {row["side"]: row for row in json.loads(capsys.readouterr().out)}

    for row in rows.values():
        assert row["lr"] == 0.4 and row["runs"] == row["reached"] == 1
        assert row["accuracy"]["median"] > 0.6
        assert row["seconds_to_target"]["median"] > 0
    assert rows["losp"]["over_losp"] == 1
    found = read_results(file, "convergence")
    for values, curve in found.runs[1:]:
        assert values["samples"] >= 0.9 * 8000  # with overlap the end is met to about a round
        assert curve == sorted(curve) and curve[-1][1] == values["samples"]
    assert summarise(found.runs, 0.6) == list(rows.values())
    text = picture.read_text()
    assert "<svg" in text

    again = tmp_path / "again.svg"
    assert main(["bench", "convergence", "--results", str(file), "--picture", str(again)]) == 0
    assert again.read_text() == text


def test_each_side_repeats_at_its_own_best_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(site: Site, workers: int, side: str, options: dict[str, Any]) -> dict[str, Any]:
        reached = {"alone": 1, "losp": 10 * options.get("lr", 1), "ddp": 1 / options.get("lr", 1)}[side]
        points = [(reached / 2, 10, 0.5, 1.0), (reached, 20, 0.95, 0.2)]
        figures = {"samples_per_second": 1.0, "wall_seconds": reached, "step_seconds": [0.1, 0.1], "payload_bytes": 8}
        return {**figures, "curve": points}

    monkeypatch.setattr("hpcdml.benchmarks.runner.run_side", train)
    lines: list[str] = []
    records: list[Record] = []
    options = ConvergenceOptions(sides="losp,ddp", rate="none", lrs=[0.1, 0.2, 0.4], repeats=2, target=0.9)
    rows = convergence.run(options, Log(lines.append, records.append))

    done = [(v["phase"], v["side"], v.get("lr"), v.get("seed")) for v, _ in records]
    grid = [("grid", side, lr, 0) for lr in (0.1, 0.2, 0.4) for side in ("losp", "ddp")]
    repeats = [("repeat", side, lr, seed) for seed in (1, 2) for side, lr in (("losp", 0.1), ("ddp", 0.4))]
    assert done == [("probe", "alone", None, None), *grid, *repeats]
    assert [(row["side"], row["lr"], row["over_losp"]) for row in rows] == [("losp", 0.1, 1.0), ("ddp", 0.4, 2.5)]
    assert "losp: best at lr 0.1, an end of the grid: a wider one might do it better" in lines


@with_mpirun
def test_overlap_on_emulated_hosts(tmp_path: Path) -> None:
    try:
        with Cluster(1, "1gbit", "tbench"):
            pass
    except HpcdmlError as problem:
        pytest.skip(str(problem))
    lines: list[str] = []
    options = OverlapOptions(**SMALL, sides="losp", rates="1gbit,20mbit", step_seconds=[0.01], seconds=1.5)
    rows = overlap.run(options, Log(lines.append))

    payload = 4 * (64 * 32 + 32 + 32 * 10 + 10)
    assert [(row["rate"], row["side"]) for row in rows] == [("1gbit", "losp"), ("20mbit", "losp")]
    for row, bits in zip(rows, (1e9, 2e7), strict=True):
        assert row["M/C"] * row["free_ms"] == pytest.approx(1e3 * 2 * payload * 8 / (0.956 * bits))
        assert row["free_ms"] == pytest.approx(10, rel=0.5)
    assert len(lines) == 2


def record(side: str, phase: str, lr: float, curve: Sequence[Sequence[Any]]) -> Record:
    return {"side": side, "phase": phase, "lr": lr, "M/C": 1.0, "samples_per_second": 10.0}, curve


def curve(*accuracies: float) -> list[tuple[float, int, float, float]]:
    return [(float(second), 100 * second, accuracy, 0.0) for second, accuracy in enumerate(accuracies, 1)]


def test_the_best_rate_reaches_the_target_first_or_comes_nearest_to_it() -> None:
    runs = [
        record("a", "grid", 0.1, curve(0.2, 0.5, 0.9, 0.99)),
        record("a", "grid", 0.2, curve(0.2, 0.91, 0.5, 0.6)),
        record("a", "grid", 0.4, curve(0.1, 0.1, 0.1, 0.1)),
        record("b", "grid", 0.1, curve(0.2, 0.3)),
        record("b", "grid", 0.2, curve(0.5, 0.1)),
        record("a", "repeat", 0.4, curve(0.9)),
    ]
    assert best_rate(runs, "a", 0.9) == 0.2
    assert best_rate(runs, "a", 0.95) == 0.1
    assert best_rate(runs, "b", 0.9) == 0.1
    assert best_rate(runs, "c", 0.9) is None


def test_a_run_that_misses_the_target_counts_as_infinite() -> None:
    runs = [
        record("ddp", "repeat", 0.2, curve(0.1, 0.9)),
        record("ddp", "repeat", 0.2, curve(0.1, 0.2, 0.3, 0.9)),
        record("ddp", "repeat", 0.2, curve(0.1, 0.2)),
        record("losp", "repeat", 0.1, curve(0.9)),
        record("bsp", "repeat", 0.1, curve(0.1)),
    ]
    rows = {row["side"]: row for row in summarise(runs, 0.9)}
    assert rows["ddp"]["seconds_to_target"] == {"median": 4.0, "min": 2.0, "max": None}
    assert (rows["ddp"]["reached"], rows["ddp"]["over_losp"]) == (2, 4.0)
    assert (rows["bsp"]["reached"], rows["bsp"]["over_losp"]) == (0, None)
    assert "4 [2, -]" in format_table(list(rows.values()))


class Failing(Site):
    """A place where jobs fail as told."""

    def __init__(self, failures: list[bool]) -> None:
        super().__init__()
        self.failures = failures

    def run(self, ranks: int, command: Sequence[str]) -> str:
        if self.failures.pop(0):
            raise MachineError("status 1: a host is lost")
        Path(json.loads(command[-1])["result"]).write_text('{"curve": [[1.0, 2, 0.5, 0.1]]}')
        return ""


def test_a_failed_run_is_told_and_too_many_end_the_benchmark() -> None:
    lines: list[str] = []
    records: list[Record] = []
    runner = Runner(Failing([True, True, False, True, True, True]), 2, Log(lines.append, records.append))
    found = [runner.run("ddp", {}, {"repeat": i}) for i in range(5)]
    assert [run is None for run in found] == [True, True, False, True, True]
    assert lines[0] == "repeat 0, ddp: failed: status 1: a host is lost"
    assert records == [({"side": "ddp", "rate": "none", "repeat": 2}, [[1.0, 2, 0.5, 0.1]])]
    with pytest.raises(
        MachineError, match=f"^{FAILURES} runs in a row failed; the last: ddp: status 1: a host is lost$"
    ):
        runner.run("ddp", {}, {"repeat": 5})


@with_mpirun
@pytest.mark.parametrize(("status", "kind"), [(1, MachineError), (2, UsageError)])
def test_a_jobs_first_line_is_its_error(status: int, kind: type[HpcdmlError]) -> None:
    program = f"import sys; print('hpcdml: so it is', file=sys.stderr); sys.exit({status})"
    with pytest.raises(kind, match=r"^(status 1: )?so it is$"):
        Site().run(1, [sys.executable, "-c", program])


@with_mpirun
@pytest.mark.parametrize(
    ("variable", "program", "told"),
    [
        ("UNUSED", "raise ValueError('no such thing')", "status 1: ValueError: no such thing"),
        ("PMIX_MCA_ptl_base_if_include", "pass", "status 213: You requested support for tool connections"),
    ],
)
def test_without_such_a_line_the_program_or_the_launcher_is_quoted(
    variable: str, program: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OF_ANOTHER_JOB", ())
    monkeypatch.setenv(variable, "nosuchdevice")
    with pytest.raises(MachineError, match=f"^{told}"):
        Site().run(1, [sys.executable, "-c", program])


@pytest.mark.parametrize(("statuses", "seen"), [("213 0", 0), ("213 213", 213), ("213 7", 7), ("7 0", 7)])
def test_a_launcher_that_fails_at_its_own_start_is_started_once_more(tmp_path: Path, statuses: str, seen: int) -> None:
    times = tmp_path / "times"
    program = f'echo >> {times}; shift $(wc -l < {times}); exit "$1"'
    assert jobs.run(["sh", "-c", program, "sh", "unused", *statuses.split()], {}).returncode == seen


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["overlap", "--sides", "losp,horovod"], "--sides losp,horovod: must be of bsp,local-sgd,"),
        (["overlap", "--sides", "alone"], "--sides alone: must be of"),
        (["overlap", "--batch-sizes", "8,0"], "--batch-sizes 0: must be whole numbers of at least 1"),
        (["overlap", "--step-seconds", "0.1,0"], "--step-seconds 0.0: must be a finite number above 0"),
        (["overlap", "--straggler", "0.5"], "--straggler 0.5: must be from 1 to 1000"),
        (["overlap", "--workers", "0"], "--workers 0: must be at least 1"),
        (["overlap", "--rates", "fast"], "--rates fast: must be from 1mbit to 100gbit"),
        (["overlap", "--rates", "none,1gbit"], "--rates none,1gbit: none stands alone"),
        (["overlap", "--lr", "-1"], "--lr -1.0: must be a finite number above 0"),
        (["overlap", "--output", "/dev/null/x.h5"], "--output /dev/null/x.h5: cannot be written"),
        (["overlap", "--output", "a.h5", "--results", "b.h5"], "--results: does not go with --output"),
        (["overlap", "--results", "nothing.h5"], "--results nothing.h5: there is no such file"),
        (["accuracy", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["accuracy", "--workers", "2,0"], "--workers [2.0, 0.0]: must be numbers from 1"),
        (["checkpoint", "--repeats", "0"], "--repeats 0: must be at least 1"),
        (["checkpoint", "--folder", "/nowhere"], "--folder /nowhere: is no folder"),
        (["polls", "--blocks", "0"], "--blocks 0: must be at least 1"),
        (["straggler", "--policies", "losp,fast"], "--policies losp,fast: must be of bsp,local-sgd,"),
        (["straggler", "--seconds", "0"], "--seconds 0: must be above 0"),
        (["convergence", "--target", "97"], "--target 97: must be above 0 and at most 1"),
        (["convergence", "--lrs", "0.1,0"], "--lr 0.0: must be a finite number above 0"),
        (["convergence", "--samples", "0"], "--samples 0: must be at least 1"),
        (["convergence", "--picture", "a.gif"], "--picture a.gif: must end with .svg or .png"),
    ],
)
def test_wrong_use_takes_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"hpcdml: {text}") and told.err.count("\n") == 1


def test_a_picture_without_matplotlib_takes_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["bench", "convergence", "--picture", "a.svg"]) == 2
    assert capsys.readouterr().err == "hpcdml: --picture a.svg: needs matplotlib: pip install 'hpcdml[plot]'\n"


def test_a_file_of_results_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.h5"
    options = {"lrs": [0.1, 0.2], "model_args": {"hidden": 8}, "max_seconds": None, "target": 0.9}
    file = BenchFile(str(path), "overlap", options, {"host": "here"})
    assert read_results(path, "overlap").rows == []
    points = [(0.5, 10, 0.25, 2.0), (1.5, 20, None, 1.0)]
    file.add(({"side": "losp", "step_seconds": [0.1, 0.2], "M/C": None}, points))
    file.add(({"side": "alone"}, []))
    rows = [
        {"side": "losp", "runs": 3, "M/C": 1.5, "share": spread([1.0, 3.0, 2.0]), "bound": None},
        {"side": "ö", "runs": 0, "M/C": None, "share": None, "bound": None},
    ]
    file.finish(rows)

    found = read_results(path, "overlap")
    assert found.options == options and found.environment == {"host": "here"}
    assert found.runs == [({"side": "losp", "step_seconds": [0.1, 0.2], "M/C": None}, points), ({"side": "alone"}, [])]
    rows[1]["share"] = {"median": None, "min": None, "max": None}
    assert found.rows == rows
    assert list(found.rows[0]) == list(rows[0])
    assert [entry.name for entry in path.parent.iterdir()] == ["results.h5"]


def test_files_that_are_none_of_results_are_refused(tmp_path: Path) -> None:
    BenchFile(str(tmp_path / "other.h5"), "overlap", {}, {})
    with pytest.raises(UsageError, match="is of the benchmark overlap, not convergence"):
        read_results(tmp_path / "other.h5", "convergence")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(UsageError, match=r"text\.h5: damaged, or not one of ours"):
        read_results(tmp_path / "text.h5", "overlap")


def test_labels_keep_their_order_and_their_distance() -> None:
    assert spaced([0.1, 0.9], 0.2) == pytest.approx([0.1, 0.9])
    found = spaced([0.5, 0.5, 0.1, 0.52], 0.1)
    assert found == pytest.approx([0.5067 - 0.1, 0.5067, 0.1, 0.5067 + 0.1], abs=1e-3)
    assert spaced([]) == []


def test_the_place_of_jobs_without_a_rate_is_this_machine() -> None:
    with open_site(3, ["none"]) as site:
        assert site.rate == "none" and site.transfer_seconds(1e9) == 0.0


def test_a_policy_with_a_narrow_wire_is_a_side(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict[str, object]] = []
    monkeypatch.setattr(runs, "train_job", lambda site, workers, options: taken.append(options) or {})
    runs.run_side(Site(), 2, "losp-bf16", {"lr": 0.1})
    assert taken == [{"lr": 0.1, "policy": "losp", "wire_dtype": "bf16"}]
    assert {"losp-bf16", "bsp-fp16", "losp"} <= set(runs.all_sides())
    TrainConfig.from_flat(taken[0])


@with_mpirun
def test_tracing_is_measured_in_turns_within_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tracing", "--hidden", "16", "--seconds", "2", "--repeats", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["step_ms"]["median"] > 0 and 0 < row["sending"]["median"] < 0.2
    assert row["cost"]["median"] == pytest.approx(row["keeping"]["median"] + row["sending"]["median"])
