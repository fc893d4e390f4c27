"""The summary of a run, its report for a person and for programs, and the machine that it names."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcdml.config import TrainConfig
from hpcdml.observability import environment, format_json, format_report, summarise
from hpcdml.storage import RunReader, RunWriter
from hpcdml.storage.tables import EVALUATIONS, PUSHES, ROUNDS, STEPS


def make(folder: Path, workers: int = 2, **config: Any) -> RunWriter:
    flat = TrainConfig.from_flat(config).flat()
    return RunWriter.create(folder, flat, {"host": "node7"}, workers, {}, True)


def figures(folder: Path) -> dict[str, Any]:
    return summarise(RunReader(folder))


def fill(writer: RunWriter) -> None:
    """Worker 1: 4 steps of 1 s, a quarter of it idle; worker 2: 2 steps of 2 s, all computing, from 0.5 s on."""
    for i in range(1, 5):
        writer.append("steps", STEPS.rows((1, i, float(i), 32 * i, 1.0 / i, 0, i, 0.25, 0.5, 0.25)))
    for i in range(1, 3):
        writer.append("steps", STEPS.rows((2, i, 0.5 + 2 * i, 32 * i, 2.0, 0, i, 0.0, 2.0, 0.0)))
    writer.append("pushes", PUSHES.rows((1, 1, 1.0, 0, 1, 0, 1, 32, 1, 0), (2, 1, 2.5, 0, 1, 0, 1, 32, 1, 0)))
    writer.append("pushes", PUSHES.rows((1, 2, 3.0, 0, 2, 1, 2, 64, 3, 0)))
    writer.append(
        "rounds", ROUNDS.rows((1, 2.6, 2, 2, 64, 1.6, 1000, 1.25, 0, 1), (2, 4.0, 2, 4, 192, 0.4, 1500, math.nan, 0, 2))
    )
    writer.append("evaluations", EVALUATIONS.rows((0, 0.0, 0, 0.1, 2.3, 0.1), (1, 2.6, 64, 0.9, 0.5, 0.1)))
    writer.append("evaluations", EVALUATIONS.rows((2, 4.0, 192, 0.85, 0.6, 0.1)))
    writer.event(4.6, 0, "stopping", "4 s of training")


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    with make(tmp_path, target_accuracy=0.88) as writer:
        fill(writer)
        writer.write_parameters({}, 4.7)
    summary = figures(tmp_path)
    expected = {
        "policy": "losp",
        "workers": 2,
        "samples": 192,
        "wall_seconds": 4.5,
        "samples_per_second": 192 / 4.5,
        "rounds": 2,
        "local_steps": [4, 2],
        "idle_fraction": [0.25, 0.0],
        "data_fraction": [0.25, 0.0],
        "compute_fraction": [0.5, 1.0],
        "samples_per_worker": [128, 64],
        "samples_per_second_per_worker": [32.0, 16.0],
        "wall_seconds_per_worker": [4.0, 4.0],
        "worker_ranks": [1, 2],
        "final_accuracy": 0.85,
        "final_loss": 0.6,
        "best_accuracy": 0.9,
        "best_loss": 0.5,
        "time_to_target_seconds": 2.6,
        "target_accuracy": 0.88,
        "training_loss": 1.25,
        "evaluations": 3,
        "pushes": 3,
        "refused_pushes": 0,
        "staleness_mean": 1 / 3,
        "staleness_max": 1,
        "local_steps_per_round": 3.0,
        "members_per_round": 2.0,
        "round_seconds_median": 1.0,
        "bytes_received": 2500,
        "server_peak_bytes": None,
        "finished": True,
        "status": "finished",
        "stop_reason": "4 s of training",
        "host": "node7",
        "dataset": "digits",
        "model": "mlp",
        "path": str(tmp_path / "run.h5"),
        "created": summary["created"],
    }
    assert summary == expected
    assert json.loads(format_json(summary)) == summary


def test_a_run_without_steps(tmp_path: Path) -> None:
    with make(tmp_path, target_accuracy=0.5):
        summary = figures(tmp_path)  # while it is open
    assert summary["samples"] == 0 and summary["samples_per_second"] == 0 and summary["wall_seconds"] == 0
    assert summary["local_steps"] == [0, 0] and summary["idle_fraction"] == [None, None]
    assert summary["final_accuracy"] is None and summary["time_to_target_seconds"] is None
    assert summary["finished"] is False and summary["status"] is None
    assert json.loads(format_json(summary)) == summary
    report = format_report(summary)
    assert "none yet" in report and "not evaluated yet" in report and "accuracy 0.5 not reached" in report
    assert "not finished" in report


def test_regression_and_divergence_are_clean_json(tmp_path: Path) -> None:
    with make(tmp_path, target_accuracy=0.5) as writer:
        writer.append("steps", STEPS.rows((1, 1, 1.0, 32, math.nan, 0, 1, 0.0, 1.0, 0.0)))
        writer.append("rounds", ROUNDS.rows((1, 1.0, 1, 1, 32, 0.1, 10, math.nan, 0, 1)))
        writer.append(
            "evaluations", EVALUATIONS.rows((1, 1.0, 32, math.nan, 3.5, 0.1), (2, 2.0, 64, math.nan, math.inf, 0.1))
        )
    summary = figures(tmp_path)
    assert summary["final_accuracy"] is None and summary["best_accuracy"] is None and summary["final_loss"] is None
    assert summary["best_loss"] == 3.5 and summary["training_loss"] is None
    assert summary["time_to_target_seconds"] is None
    json.loads(format_json(summary), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "nan" not in format_report(summary)


def test_workers_that_join_later_and_rows_in_any_order(tmp_path: Path) -> None:
    with make(tmp_path, workers=2) as writer:
        for i in range(1, 4):
            for worker in (5, 2):
                writer.append("steps", STEPS.rows((worker, i, float(i), 10 * i, 1.0, 0, i, 0.0, 0.5, 0.5)))
    summary = figures(tmp_path)
    assert summary["worker_ranks"] == [1, 2, 5] and summary["local_steps"] == [0, 3, 3]
    assert summary["samples_per_worker"] == [0, 30, 30] and summary["workers"] == 2
    assert summary["idle_fraction"] == [None, 0.5, 0.5]


def test_damaged_figures_do_not_stop_the_summary(tmp_path: Path) -> None:
    with make(tmp_path) as writer:
        writer.append("steps", STEPS.rows((-7, 1, math.inf, 3, 1.0, 0, 1, math.nan, 1.0, 1.0)))
        writer.append("steps", STEPS.rows((2**31 - 1, 1, math.nan, 3, 1.0, 0, 1, 0.1, 1.0, 1.0)))
    json.loads(format_json(figures(tmp_path)))


def test_the_report_reads_well(tmp_path: Path) -> None:
    with make(tmp_path, target_accuracy=0.88) as writer:
        fill(writer)
    summary = {**figures(tmp_path), "path": "runs/latest/run.h5", "created": "2026-11-23T23:05:31+00:00"}
    assert format_report(summary).splitlines() == [
        "run         runs/latest/run.h5",
        "what        losp, 2 workers, mlp on digits",
        "started     2026-11-23T23:05:31+00:00, on node7",
        "status      not finished: it is going on, or was killed, last event stopping: 4",
        "            s of training",
        "samples     192 in 4.5 s: 43 per second",
        "rounds      2, median 1 s, 3.0 local steps in each",
        "pushes      3, 2.5 kB received, staleness 0.3, at most 1",
        "held-out    accuracy 0.85 (best 0.9), loss 0.6 (best 0.5), 3 evaluations",
        "target      accuracy 0.88 reached after 2.6 s",
        "training    loss 1.25",
        "",
        "worker  steps  samples  samples/s  compute   data   idle",
        "     1      4      128         32    50.0%  25.0%  25.0%",
        "     2      2       64         16   100.0%   0.0%   0.0%",
    ]


def test_many_workers_and_large_numbers_stay_in_columns(tmp_path: Path) -> None:
    with make(tmp_path, workers=1000) as writer:
        rows = np.zeros(1000, STEPS.dtype)
        rows["worker"] = np.arange(1, 1001)
        rows["step"] = rows["version"] = 1
        rows["time"] = 10.0
        rows["compute_seconds"] = 9
        rows["idle_seconds"] = np.linspace(0, 1, 1000)
        rows["samples"] = 10 ** np.linspace(0, 12, 1000)
        writer.append("steps", rows)
        writer.append("rounds", ROUNDS.rows((1, 1e6, 1000, 10**9, 10**15, 1e5, 10**18, 1.0, 0, 1)))
    summary = figures(tmp_path)
    for most in (40, 2000):
        lines = format_report(summary, most_workers=most).splitlines()
        assert all(len(line) <= 80 for line in lines if not line.startswith("run "))
        table = lines[lines.index("") + 1 :]
        assert len({len(line) for line in table[: most + 1]}) == 1
        assert len(table) == (42 if most == 40 else 1001)
    assert format_report(summary).splitlines()[-1].startswith("and 960 more: 1 steps, idle 0.4% to 10.0%")


# The environment


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "init.defaultBranch=main", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_the_environment_names_versions_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    found = environment()
    assert all(isinstance(key, str) and isinstance(value, str) and value for key, value in found.items())
    assert found["numpy"] == np.__version__ and found["torch"].startswith("2.") and found["slurm_job_id"] == "4711"
    assert {"hpcdml", "python", "h5py", "hdf5", "platform", "host", "cpu", "cpus", "command", "folder"} <= set(found)
    assert "git" not in found
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "slurm_job_id" not in environment()


def test_the_environment_names_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init")
    assert "git" not in environment()  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = environment()["git"]
    assert len(clean) == 40
    (tmp_path / "untracked").write_text("1")
    assert environment()["git"] == clean
    (tmp_path / "a").write_text("2")
    assert environment()["git"] == clean + "+dirty"


def test_the_environment_without_git_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    folder.rmdir()
    found = environment()
    assert "git" not in found and found["folder"] == "unknown"
    os.chdir(tmp_path)
