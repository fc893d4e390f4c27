"""A run followed while it trains: what is read at each look, and how it looks in terminals of several sizes."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcdml.cli import main
from hpcdml.observability.live import Live, Now, WorkerNow
from hpcdml.observability.screen import screen, sparkline
from hpcdml.observability.watch import show_once
from hpcdml.storage import RunWriter
from hpcdml.storage.tables import EVALUATIONS, PUSHES, ROUNDS, STEPS
from synthetic import write_run

NOW = Now(
    path="runs/latest",
    config={"policy": "losp", "model": "mlp", "dataset": "digits", "max_samples": 400_000},
    workers=(
        WorkerNow(1, 1234, 2345.6, 0.0136, 0.031, 0.002, 12.5, 1.0),
        WorkerNow(2, 1200, 2300.4, 0.0139, 0.25, 0.002, 12.0, 1.0),
        WorkerNow(3),
    ),
    seconds=75.2,
    rounds=1200,
    samples=123_456,
    rate=4646.0,
    rate_overall=4500.1,
    losses=tuple(2.0 / (1 + i) for i in range(100)),
    loss=0.02,
    accuracy=0.95,
    best_accuracy=0.96,
    evaluated_loss=0.2,
    evaluated_at=74.0,
    state=("started", ""),
)


def writer(folder: Path) -> RunWriter:
    config = {"policy": "losp", "model": "mlp", "dataset": "digits", "max_seconds": 100.0, "max_samples": None}
    return RunWriter.create(folder, config, {}, 2, {}, True)


def step(worker: int, number: int, idle: float = 0.0) -> np.ndarray:
    return STEPS.rows((worker, number, 0.1 * number, 32 * number, 1.0, 0, 1, 0.0, 0.1 - idle, idle))


def test_each_look_takes_in_what_is_new(tmp_path: Path) -> None:
    live = Live(str(tmp_path))
    with writer(tmp_path) as run:
        first = live.look(time.time())
        assert first.samples == 0 and [w.worker for w in first.workers] == [1, 2] and first.workers[0].rate is None
        for number in range(1, 101):
            run.append("steps", step(1, number, 0.05))
        run.append("pushes", PUSHES.rows((1, 1, 5.0, 0, 1, 0, 4, 128, 4, 0), (1, 2, 9.0, 0, 2, 1, 8, 128, 12, 0)))
        run.append(
            "rounds", ROUNDS.rows((1, 5.0, 1, 4, 128, 0.1, 10, 2.0, 0, 1), (2, 9.0, 1, 8, 256, 0.1, 10, 1.5, 0, 2))
        )
        run.append("evaluations", EVALUATIONS.rows((1, 5.0, 128, 0.9, 0.5, 0.1), (2, 9.0, 256, 0.8, 0.6, 0.1)))
        run.flush(force=True)
        now = live.look(time.time())
        assert (now.samples, now.rounds, now.loss, now.finished) == (3200, 2, 1.5, False)
        assert now.seconds == pytest.approx(10.0) and now.rate == pytest.approx(320.0)
        worker = now.workers[0]
        assert worker.steps == 100 and worker.step_seconds == pytest.approx(0.1)
        assert worker.idle == pytest.approx(0.5) and worker.steps_per_push == 6 and worker.staleness == 0.5
        assert (now.accuracy, now.best_accuracy, now.evaluated_at) == (0.8, 0.9, 9.0)
        for number in range(101, 401):
            run.append("steps", step(1, number))
            run.append("steps", step(2, number))
        run.flush(force=True)
        now = live.look(time.time())
        assert [w.steps for w in now.workers] == [400, 300]
        # Only the last ten seconds are kept, and only they count.
        assert len(live._tails[1].steps) <= 102 and now.workers[0].idle == 0
        assert now.workers[0].steps_per_push == 8
        run.write_parameters({}, 40.0)
        assert live.look(time.time()).finished


def test_a_new_run_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    live = Live(str(tmp_path))
    write_run(tmp_path)
    assert live.look(time.time()).finished
    with writer(tmp_path) as run:
        run.append("steps", step(2, 1))
        run.flush(force=True)
        now = live.look(time.time())
        assert not now.finished and now.samples == 32 and now.rounds == 0 and now.accuracy is None


def test_many_losses_are_thinned_out(tmp_path: Path) -> None:
    live = Live(str(write_run(tmp_path, steps=20_000, every=2)))
    assert 256 <= len(live.look(time.time()).losses) <= 512


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 200])
@pytest.mark.parametrize("workers", [1, 3, 200])
def test_it_fits(columns: int, workers: int) -> None:
    many = tuple(replace(NOW.workers[i % 3], worker=i + 1) for i in range(workers))
    for rows in (8, 24):
        lines = screen(replace(NOW, workers=many), columns, rows)
        assert len(lines) <= rows and all(len(line) <= columns for line in lines)


def test_sixty_columns_read_well() -> None:
    assert screen(NOW, 60, 24) == [
        "runs/latest: losp, 3 workers, mlp on digits",
        "01:15, 1,200 rounds, running",
        "done      [#############..............................] 31%",
        "samples   123,456, 4,646/s now, 4,500/s in all",
        "loss      0.02 in training, 0.2 held out  █▃▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "accuracy  0.9500 at 01:14, best 0.9600",
        "",
        "worker  samples/s     step  steps/push  stale  data   idle",
        "     1      2,346  13.6 ms        12.5    1.0  0.2%   3.1%",
        "     2      2,300  13.9 ms        12.0    1.0  0.2%  25.0%",
        "     3          -        -           -      -     -      -",
    ]


def test_states() -> None:
    def state(**changes: object) -> str:
        return screen(replace(NOW, **changes))[1]  # type: ignore[arg-type]

    assert state(finished=True).endswith("finished")
    assert state(age=60.0).endswith("nothing new for 60 s: it waits, or was killed")
    assert state(state=("stopping", "--max-seconds 5 reached")).endswith("stopping: --max-seconds 5 reached")


def test_of_a_long_path_the_end_is_shown() -> None:
    line = screen(replace(NOW, path="/scratch/project/somebody/experiments/runs/latest"), 60)[0]
    assert line == "...y/experiments/runs/latest: losp, 3 workers, mlp on digits" and len(line) == 60
    assert screen(replace(NOW, path="/" + 60 * "x"), 30)[0].startswith("...")


def test_without_unicode_there_is_none() -> None:
    assert all(line.isascii() for line in screen(NOW, 80, unicode=False))


def test_sparklines() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0] * 5, 3) == "▁▁▁" and sparkline([], 5) == "" and len(sparkline(range(1000), 20)) == 20


def test_once_for_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, accuracy=(0.5, 0.9))
    assert main.main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "finished" in out and "accuracy  0.9000" in out
    stream = io.StringIO()
    show_once(str(tmp_path), stream)
    assert "100 rounds" in stream.getvalue()


def test_in_a_terminal_it_waits_for_the_run_and_ends_with_it(tmp_path: Path) -> None:
    """Under a pseudo-terminal of 60 columns: first there is no run, then it trains, then it has finished."""
    master, slave = pty.openpty()
    folder = tmp_path / "run"
    environment = {**os.environ, "COLUMNS": "60", "LINES": "24", "PYTHONIOENCODING": "utf-8", "TERM": "xterm"}
    command = [sys.executable, "-m", "hpcdml", "watch", str(folder), "--every", "0.1"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as child:
        os.close(slave)
        try:
            seen = _read_until(master, "waiting for a run in")
            with writer(folder) as run:
                for number in range(1, 11):
                    run.append("steps", step(1, number))
                run.flush(force=True)
                seen += _read_until(master, "320, 320/s now")
                run.write_parameters({}, 2.0)
            seen += _read_until(master, "finished")
            assert child.wait(10) == 0
        finally:
            child.kill()
            os.close(master)
    lines = re.sub(r"\x1b\[\d*[A-Za-z]", "", seen).replace("\r", "").split("\n")
    assert all(len(line) < 60 for line in lines if str(tmp_path)[:10] not in line)
    assert "Ctrl-C stops watching, not the run" in seen


def test_an_interrupt_ends_it_quietly(tmp_path: Path) -> None:
    with writer(tmp_path) as run:
        run.append("steps", step(1, 1))
        run.flush(force=True)
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "hpcdml", "watch", str(tmp_path), "--every", "0.1"]
        with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave) as child:
            os.close(slave)
            try:
                _read_until(master, "Ctrl-C stops watching")
                child.send_signal(2)
                assert child.wait(10) == 0
            finally:
                child.kill()
                os.close(master)


def test_the_size_is_that_of_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    stream = io.StringIO()
    show_once(str(write_run(tmp_path)), stream)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 43


def _read_until(master: int, text: str, seconds: float = 20.0) -> str:
    found, end = b"", time.monotonic() + seconds
    while text.encode() not in found:
        assert time.monotonic() < end, found.decode(errors="replace")
        try:
            found += os.read(master, 65536)
        except OSError:  # the other end is closed
            assert text.encode() in found, found.decode(errors="replace")
    return found.decode(errors="replace")
