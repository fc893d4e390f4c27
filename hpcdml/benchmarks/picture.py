"""The picture of ``bench convergence``: accuracy against time."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.benchmarks.runs import time_to
from hpcdml.errors import UsageError
from hpcdml.observability.colours import COLOURS, GREY

ENDINGS = (".svg", ".png")
LEAST_GAP = 0.052
"""Least distance between two labels, as a share of the picture's width."""

Curve = Sequence[Sequence[Any]]


def check_picture(path: str) -> None:
    """Check that a picture of that name can be drawn.

    Raises:
        UsageError: it cannot.
    """
    if not path.endswith(ENDINGS):
        raise UsageError(f"--picture {path}: must end with .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"--picture {path}: needs matplotlib: pip install 'hpcdml[plot]'")


def draw_curves(sides: Mapping[str, tuple[Sequence[Curve], Curve]], target: float, path: str) -> None:
    """Draw one line a side and label it where it reaches the target; its single runs are faint, the median one bold.

    Args:
        sides: for each its curves, ``(seconds, samples, accuracy, loss)`` of each point, and the median one of them.

    Raises:
        UsageError: there is no matplotlib, or the file cannot be written.
    """
    check_picture(path)
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "hpcdml", "font.size": 10, "text.color": GREY, "axes.labelcolor": GREY}
    style |= {"axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY}
    with matplotlib.rc_context(style):
        figure = Figure((8, 4.9))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.075, right=0.985, bottom=0.11, top=0.765)
        axes.patch.set_alpha(0)
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("accuracy on held-out data", labelpad=2)
        axes.axhline(target, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(0.01, target, f"{target:g}", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
        for (curves, bold), colour in zip(sides.values(), _colours(len(sides)), strict=True):
            for curve in curves:
                axes.plot(*_points(curve), color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(*_points(bold), color=colour, linewidth=2.2)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_ylim(top=1.0)
        _label(axes, {side: bold for side, (_, bold) in sides.items()}, target)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            about = {"Date": None} if path.endswith(".svg") else {}
            figure.savefig(path, transparent=True, dpi=160, metadata=about)
        except OSError as error:
            raise UsageError(f"--picture {path}: {(error.strerror or str(error)).lower()}") from error


def _label(axes: Any, curves: Mapping[str, Curve], target: float) -> None:
    """Write each side's name above the axes, joined to the point at which it reaches the target, or else to its end."""
    low, high = (math.log(x) for x in axes.get_xlim())
    places, ends = [], []
    for curve in curves.values():
        reached = time_to(target, curve)
        seconds, accuracy = (curve[-1][0], curve[-1][2]) if reached is None else (reached, target)
        ends.append((seconds, accuracy))
        places.append((math.log(max(seconds, 1e-9)) - low) / (high - low))
    for place, end, side, colour in zip(spaced(places), ends, curves, _colours(len(curves)), strict=True):
        axes.annotate(
            side,
            xy=end,
            xytext=(place, 1.06),
            textcoords="axes fraction",
            rotation=35,
            rotation_mode="anchor",
            ha="left",
            va="bottom",
            color=colour,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.7, "shrinkA": 0, "shrinkB": 0},
        )


def spaced(places: Sequence[float], gap: float = LEAST_GAP) -> list[float]:
    """The places, moved as little as needed so that any two are at least ``gap`` apart; their order stays."""
    order = np.argsort(places, kind="stable")
    wanted = np.asarray(places, float)[order] - gap * np.arange(len(places))
    # The nearest rising sequence, by pooling neighbours that are out of order.
    blocks: list[list[float]] = []
    for value in wanted:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, count), (last, more) = blocks[-2], blocks.pop()
            blocks[-1] = [(mean * count + last * more) / (count + more), count + more]
    rising = np.concatenate([np.full(int(count), mean) for mean, count in blocks]) if blocks else np.empty(0)
    found = np.empty(len(places))
    found[order] = rising + gap * np.arange(len(places))
    return [float(place) for place in found]


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    points = [(point[0], point[2]) for point in curve if point[2] is not None and point[0] > 0]
    return [x for x, _ in points], [y for _, y in points]


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
