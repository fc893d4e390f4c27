"""What is derived from the tables: the workers' lines, their updates under way, curves, names of runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hpcdml.observability.curves import busy_share, curves, free_rate, shares
from hpcdml.observability.lines import extent, worker_lines
from hpcdml.observability.measurements import measure
from hpcdml.observability.view import names, views
from hpcdml.storage import RunReader, RunWriter
from hpcdml.storage.tables import PUSHES, STEPS
from synthetic import write_run


def small(folder: Path) -> RunReader:
    """One worker: steps that end at 1 to 4; it pushes after the first and the third, and adopts v1 in the fourth."""
    with RunWriter.create(folder, {"policy": "losp"}, {}, 1, {}, True) as writer:
        for step, version, since, idle in ((1, 0, 1, 0.0), (2, 0, 1, 0.0), (3, 0, 2, 0.0), (4, 1, 1, 0.25)):
            row = (1, step, float(step), 10 * step, 1.0 / step, version, since, 0.25, 0.75 - idle, idle)
            writer.append("steps", STEPS.rows(row))
        writer.append("pushes", PUSHES.rows((1, 1, 1.1, 0, 1, 0, 1, 10, 1, 0), (1, 2, 3.1, 0, 2, 1, 2, 20, 3, 0)))
    return RunReader(folder)


def test_when_an_update_left_and_came_back(tmp_path: Path) -> None:
    (line,) = worker_lines(small(tmp_path))
    assert line.begin.tolist() == [0, 1, 2, 3] and line.ready.tolist() == [0, 1, 2, 3.25]
    flights = line.flights
    assert flights.round.tolist() == [1, 2] and flights.left.tolist() == [1.0, 3.0]
    # The first step on v1 could begin at 3.25; v2 was never taken in.
    assert flights.back[0] == 3.25 and math.isnan(flights.back[1])
    assert line.fresh.tolist() == [True, False, False, True]


def test_an_update_whose_steps_are_not_recorded_yet(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, {}, {}, 1, {}, True) as writer:
        writer.append("pushes", PUSHES.rows((1, 1, 1.1, 0, 1, 0, 3, 30, 3, 0)))
    (line,) = worker_lines(RunReader(tmp_path))
    assert np.isnan(line.flights.left).all() and np.isnan(line.flights.back).all()
    assert extent([line]) == (0.0, 0.0) and free_rate([line]) is None
    assert len(curves([line]).rate) == 0
    assert math.isnan(measure(RunReader(tmp_path)).final_loss)


def test_shares_of_time_and_samples_between_any_two_times(tmp_path: Path) -> None:
    (line,) = worker_lines(small(tmp_path))
    sums = line.cumulated(np.array([0.0, 0.5, 4.0, 9.0]))
    assert sums["samples"].tolist() == [0, 5, 40, 40]
    assert sums["compute"].tolist() == [0, 0.375, 2.75, 2.75] and sums["idle"].tolist() == [0, 0, 0.25, 0.25]
    share = shares(line, np.array([2.0, 3.0, 4.0]))
    assert {part: values.tolist() for part, values in share.items()} == {
        "compute": [0.75, 0.5],
        "data": [0.25, 0.25],
        "idle": [0, 0.25],
    }


def test_the_limit_is_the_speed_without_what_blocked(tmp_path: Path) -> None:
    run = RunReader(write_run(tmp_path, compute=(0.01, 0.02), idle=(0.03, 0.02), steps=400))
    lines = worker_lines(run)
    c = curves(lines, 50)
    assert len(c.seconds) == 50 and c.samples[-1] == 2 * 400 * 32
    assert c.rate == pytest.approx(2 * 32 / 0.04, rel=1e-6)
    assert c.limit == pytest.approx(32 / 0.01 + 32 / 0.02, rel=1e-5) and free_rate(lines) == pytest.approx(c.limit[0])
    assert views([str(tmp_path)])[0].free_share == pytest.approx(1600 / 4800, rel=1e-3)


def test_a_loss_that_is_no_number_is_a_gap_and_no_more(tmp_path: Path) -> None:
    loss = [1.0] * 10 + [math.nan] + [1.0] * 10
    c = curves(worker_lines(RunReader(write_run(tmp_path, steps=1000, loss=loss))), 20)
    lost = np.isnan(c.loss)
    assert 1 <= lost.sum() <= 3 and (c.loss[~lost] == 1.0).all()


def test_rounds_that_overlap_count_once() -> None:
    begin, end = np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 6.0])
    assert busy_share(begin, end, np.array([0.0, 4.0, 8.0])).tolist() == [0.75, 0.25]
    inside = busy_share(np.array([0.0, 1.0]), np.array([4.0, 2.0]), np.array([0.0, 8.0]))
    assert inside.tolist() == [0.5]
    assert busy_share(begin[:0], end[:0], np.array([0.0, 1.0])).tolist() == [0.0]


def test_names_tell_runs_apart() -> None:
    paths = [Path(p) for p in ("/x/one/digits", "/x/two/digits", "/y/iris", "/y/iris")]
    assert names(paths) == ["one/digits", "two/digits", "iris (1)", "iris (2)"]
    assert names([Path("/x/a")]) == ["a"]
