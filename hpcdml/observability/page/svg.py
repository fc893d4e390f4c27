"""Pieces of SVG: axes with round numbers, lines with gaps, areas, and the frame that names a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Scale:
    """A linear map from values to places."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        share = (np.asarray(values, float) - self.low) / ((self.high - self.low) or 1.0)
        return np.asarray(self.begin + share * (self.end - self.begin))

    def place(self, value: float) -> float:
        return float(self(value))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, some ``about`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """The numbers with no more digits than tell them apart; large ones with k, M or G."""
    most = max((abs(v) for v in values), default=0.0)
    unit, sign = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if most >= u), (1.0, ""))
    unit = 1e3 if sign == "k" else unit
    step = min((abs(b - a) for a, b in zip(values, values[1:], strict=False)), default=1.0) / unit
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    return [f"{v / unit:.{digits}f}{sign if v else ''}" for v in values]


def numbers(values: Iterable[float]) -> str:
    """Places in a path, to a tenth."""
    return " ".join(f"{value:.1f}".removesuffix(".0") for value in values)


def line_path(x: np.ndarray, y: np.ndarray) -> str:
    """A line through the points, broken where one of them is not finite; a point alone is a short dash."""
    good = np.isfinite(x) & np.isfinite(y)
    parts = []
    for piece in np.split(np.arange(len(x)), np.flatnonzero(np.diff(good)) + 1):
        if not len(piece) or not good[piece[0]]:
            continue
        points = np.stack([x[piece], y[piece]], axis=1)
        if len(points) == 1:
            points = np.array([points[0] - [2.0, 0.0], points[0] + [2.0, 0.0]])
        parts.append("M" + numbers(points.ravel()))
    return "".join(parts)


def stair_path(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """The area between two stairs; ``x`` has the edges, one more than there are steps."""
    top = np.stack([np.repeat(x, 2)[1:-1], np.repeat(high, 2)], axis=1)
    bottom = np.stack([np.repeat(x, 2)[1:-1], np.repeat(low, 2)], axis=1)[::-1]
    return "M" + numbers(np.concatenate([top, bottom]).ravel()) + "z" if len(high) else ""


def bars_path(x0: np.ndarray, x1: np.ndarray, y: float, height: float, least: float = 0.15) -> str:
    """Bars of one height beside one another; those narrower than ``least`` are left out."""
    wide = x1 - x0 >= least
    return "".join(f"M{a:.2f} {y:g}H{b:.2f}v{height:g}H{a:.2f}z" for a, b in zip(x0[wide], x1[wide], strict=True))


def drawing(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """An SVG element that a screen reader takes for one picture and reads the title of."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">' + "".join(body) + "</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """A line of text; ``anchor`` is start, middle or end."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(words)}</text>'
