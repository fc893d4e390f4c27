"""The figures of runs for a paper: accuracy, loss, speed and a piece of the time line, by matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcdml.errors import UsageError
from hpcdml.observability.colours import COLOURS
from hpcdml.observability.output import check_ending, replacing
from hpcdml.observability.page.time_line import choose, server_line, windows
from hpcdml.observability.view import RunView

ENDINGS = (".pdf", ".png", ".svg")
_MOST_LANES = 8
_PART_COLOURS = {"idle": "#e0423f", "data": "#d98a12", "compute": "#2f8fd8"}
_NAMES = {"idle": "blocked", "data": "data", "compute": "computing"}
_ROUND_COLOURS = ("#2aa15c", "#d85b9e", "#8a8f2a")


def check_figure(path: str) -> None:
    """Check that a figure of that name can be drawn.

    Raises:
        UsageError: it cannot.
    """
    check_ending("plot", path, ENDINGS)
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("plot: needs matplotlib: pip install 'hpcdml[plot]'")


def draw(runs: Sequence[RunView], path: str, axis: str = "seconds") -> None:
    """Draw accuracy, training loss and speed of all runs, and some rounds of the first one, into a file.

    Args:
        axis: ``seconds`` or ``samples``, what accuracy and loss are drawn against.

    Raises:
        UsageError: there is no matplotlib, the file cannot be written, or a run file is damaged.
        MachineError: the disk is full or fails.
    """
    check_figure(path)
    import matplotlib
    from matplotlib.figure import Figure

    # TrueType fonts, which journals ask for; no date, so that the same run gives the same file.
    style: Any = {"font.size": 9, "pdf.fonttype": 42, "svg.hashsalt": "hpcdml", "axes.spines.top": False}
    with matplotlib.rc_context({**style, "axes.spines.right": False, "lines.linewidth": 1.4}):
        figure = Figure((8.2, 5.8), layout="constrained")
        (scores, losses), (speed, rounds) = figure.subplots(2, 2)
        _scores(scores, runs, axis)
        _losses(losses, runs, axis)
        _speed(speed, runs)
        _rounds(rounds, runs[0])
        if len(runs) > 1:
            figure.legend(*scores.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(runs), 4))
        kind = path.rsplit(".", 1)[1]
        about = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
        with replacing("plot", path) as place:
            figure.savefig(place, dpi=200, format=kind, metadata=about)


def _scores(axes: Any, runs: Sequence[RunView], axis: str) -> None:
    column = "accuracy" if any(np.isfinite(r.evaluations["accuracy"]).any() for r in runs) else "loss"
    for i, r in enumerate(runs):
        at = r.evaluations["time" if axis == "seconds" else "samples"]
        axes.plot(at, r.evaluations[column], color=_colour(i), label=r.name, marker="." if len(at) < 30 else "")
    axes.set(xlabel=_axis_name(axis), ylabel=f"{column} on held-out data")


def _losses(axes: Any, runs: Sequence[RunView], axis: str) -> None:
    for i, r in enumerate(runs):
        axes.plot(r.curves.seconds if axis == "seconds" else r.curves.samples, r.curves.loss, color=_colour(i))
    axes.set(xlabel=_axis_name(axis), ylabel="training loss")


def _speed(axes: Any, runs: Sequence[RunView]) -> None:
    for i, r in enumerate(runs):
        axes.plot(r.curves.seconds, r.curves.rate, color=_colour(i))
        axes.plot(r.curves.seconds, r.curves.limit, color=_colour(i), linestyle="--", linewidth=1.0)
    axes.set(xlabel="seconds of training", ylabel="samples / s (dashed: without communication)")
    axes.set_ylim(bottom=0)


def _rounds(axes: Any, r: RunView) -> None:
    """Some rounds in the middle of a run: a lane for each rank, with updates under way below the steps."""
    lines, server = choose(r.lines, _MOST_LANES), server_line(r.rounds, r.evaluations)
    axes.set(xlabel=f"seconds of training ({r.name})")
    if not any(len(line.rows) for line in lines):
        return
    begin = min(float(line.begin[0]) for line in lines if len(line.rows))
    end = max(float(line.end[-1]) for line in lines if len(line.rows))
    views = windows(lines, server, begin, end)
    _, low, high = views[min(1, len(views) - 1)]
    _bars(axes, server.begin, server.end, server.versions, 0.0, 0.35)
    for lane, line in enumerate(lines, 1):
        seen = (line.end >= low) & (line.begin <= high)
        at = line.ready[seen]
        data = at + line.parts["data"][seen]
        pieces = {"idle": (line.begin[seen], at), "data": (at, data), "compute": (data, line.end[seen])}
        for part, (left, right) in pieces.items():
            spans = np.stack([left, np.maximum(right - left, 0.0)], axis=1)
            label = _NAMES[part] if lane == 1 else None
            axes.broken_barh(spans, (-lane - 0.1, 0.45), color=_PART_COLOURS[part], linewidth=0, label=label)
        f = line.flights
        some = (f.left <= high) & ~(f.back < low)
        back = np.where(np.isnan(f.back[some]), high, f.back[some])
        _bars(axes, f.left[some], back, f.round[some], -lane - 0.3, 0.16)
    axes.set_yticks([0.17, *(-i + 0.1 for i in range(1, len(lines) + 1))])
    axes.set_yticklabels(["rank 0", *(f"worker {line.worker}" for line in lines)])
    axes.set_xlim(low, high)
    axes.set_ylim(-len(lines) - 0.5, 0.5)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, handlelength=1.0)


def _bars(axes: Any, begin: np.ndarray, end: np.ndarray, versions: np.ndarray, place: float, height: float) -> None:
    for hue, colour in enumerate(_ROUND_COLOURS):
        some = versions % len(_ROUND_COLOURS) == hue
        spans = np.stack([begin[some], np.maximum(end[some] - begin[some], 0.0)], axis=1)
        axes.broken_barh(spans, (place, height), color=colour, linewidth=0)


def _axis_name(axis: str) -> str:
    return "seconds of training" if axis == "seconds" else "samples of all workers"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
