"""Charts of curves and of counts, each with its numbers in a table for those who do not see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hpcdml.observability.page.svg import Scale, drawing, line_path, numbers, text, tick_texts, ticks

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 40
TABLE_ROWS = 12
RUN_COLOURS = 8
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Series:
    """One curve: its name, its points, the number of its colour, and whether it is an ideal one, drawn dashed."""

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    ideal: bool = False

    @property
    def stroke(self) -> str:
        # Runs differ in their dashes as well once there are more than two: not everybody tells the colours apart.
        dash = "5 3" if self.ideal else _DASHES[self.colour // 2 % len(_DASHES)]
        look = f' stroke-dasharray="{dash}"' if dash else ""
        return f'style="stroke:var(--r{self.colour % RUN_COLOURS})"{look}'


def line_chart(title: str, series: Sequence[Series], x_name: str, y_name: str, zero: bool = False) -> str:
    """A figure with one line for each series; ``zero``: the vertical axis begins at 0."""
    drawn = [s for s in series if len(s.x) and np.isfinite(s.y).any()]
    if not drawn:
        return _figure(title, f'<p class="soft">Nothing was recorded for it: {escape(y_name)}.</p>')
    x = _scale([s.x for s in drawn], LEFT, WIDTH - RIGHT, zero=True, tight=True)
    y = _scale([s.y for s in drawn], HEIGHT - BOTTOM, TOP, zero)
    body = _axes(x, y, x_name)
    for s in drawn:
        body.append(f'<path class="curve" {s.stroke} d="{line_path(x(s.x), y(s.y))}"/>')
    named = _described(title, drawn, y_name)
    keys = [(s.name, f'<path class="curve" {s.stroke} d="M0 6 24 6"/>') for s in drawn]
    return _figure(title, key(keys) + drawing(WIDTH, HEIGHT, named, body) + _values(drawn, x_name, y_name))


def histogram(title: str, counts: dict[str, np.ndarray], x_name: str, y_name: str, colour: int = 0) -> str:
    """A figure with one bar for each group; groups are ``name: how many`` in their order."""
    total = sum(int(c) for c in counts.values())
    if not total:
        return _figure(title, '<p class="soft">There was none.</p>')
    shares = {name: int(c) / total for name, c in counts.items()}
    y = Scale(0.0, max(shares.values()), HEIGHT - BOTTOM, TOP)
    body = [_rule(y.place(v), t) for v, t in zip(*_percents(y.high), strict=True)]
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    every = math.ceil(len(counts) * 30 / (WIDTH - LEFT - RIGHT))
    for i, (name, share) in enumerate(shares.items()):
        left, top = LEFT + i * width, y.place(share)
        height = HEIGHT - BOTTOM - top
        body.append(
            f'<rect x="{left + 0.1 * width:.1f}" y="{top:.1f}" width="{0.8 * width:.1f}" height="{height:.1f}" '
            f'style="fill:var(--r{colour % RUN_COLOURS})"/>'
        )
        if i % every == 0:
            body.append(text(left + width / 2, HEIGHT - BOTTOM + 14, name, "middle"))
    body.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    body.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle", "soft"))
    most = max(shares, key=lambda name: shares[name])
    told = f"{title}: {total:,} {y_name}; most often {most}, {shares[most]:.0%}"
    rows = [(name, f"{int(c):,}", f"{shares[name]:.1%}") for name, c in counts.items()]
    return _figure(title, drawing(WIDTH, HEIGHT, told, body) + values_table((x_name, y_name, "share"), rows))


def key(entries: Sequence[tuple[str, str]]) -> str:
    """What colours and dashes mean: names with a small drawing of 24 by 12 before each."""
    items = (
        f'<li><svg viewBox="0 0 24 12" aria-hidden="true">{mark}</svg>{escape(name)}</li>' for name, mark in entries
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def values_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers that unfold below a figure; the first column names the row."""
    return f"<details><summary>Values</summary>{table(header, rows)}</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True) -> str:
    """A table whose first column heads each row; it scrolls by itself where it is too wide."""
    kind = ' class="number"' if numeric else ""
    head = "".join(f'<th scope="col"{kind if i else ""}>{escape(h)}</th>' for i, h in enumerate(header))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return scrolling(inner, "table: " + ", ".join(header))


def scrolling(inner: str, name: str) -> str:
    """What may be wider than the window; the keyboard reaches it, so that arrow keys move it."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{escape(name)}">{inner}</div>'


def value_text(value: float) -> str:
    """A number of a table; a dash where there is none."""
    return f"{value:,.4g}" if math.isfinite(value) and abs(value) < 1e4 else _large(value)


def _large(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _scale(values: Sequence[np.ndarray], begin: float, end: float, zero: bool, tight: bool = False) -> Scale:
    finite = np.concatenate([np.asarray(v, float)[np.isfinite(v)] for v in values])
    low, high = float(finite.min()), float(finite.max())
    low = min(0.0, low) if zero else low
    if high <= low:
        high = low + (abs(low) or 1.0)
    gap = 0.0 if tight else 0.05 * (high - low)
    return Scale(low if zero else low - gap, high + gap, begin, end)


def _axes(x: Scale, y: Scale, x_name: str) -> list[str]:
    marks = ticks(y.low, y.high)
    body = [_rule(y.place(v), t) for v, t in zip(marks, tick_texts(marks), strict=True)]
    marks = ticks(x.low, x.high)
    for value, words in zip(marks, tick_texts(marks), strict=True):
        place = x.place(value)
        body.append(f'<path class="axis" d="M{numbers([place, HEIGHT - BOTTOM])}v4"/>')
        body.append(text(place, HEIGHT - BOTTOM + 16, words, "middle"))
    body.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    body.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle", "soft"))
    return body


def _rule(y: float, words: str) -> str:
    return f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' + text(LEFT - 6, y + 4, words, "end")


def _percents(high: float) -> tuple[list[float], list[str]]:
    marks = ticks(0.0, 100 * high, 4)
    return [m / 100 for m in marks], [f"{t}%" for t in tick_texts(marks)]


def _described(title: str, series: Sequence[Series], y_name: str) -> str:
    ends = []
    for s in series:
        good = np.flatnonzero(np.isfinite(s.y))
        ends.append(f"{s.name} from {value_text(float(s.y[good[0]]))} to {value_text(float(s.y[good[-1]]))}")
    return f"{title}: {y_name}: " + "; ".join(ends)


def _values(series: Sequence[Series], x_name: str, y_name: str) -> str:
    if len(series) == 2 and len(series[0].x) == len(series[1].x) and (series[0].x == series[1].x).all():
        chosen = _some(len(series[0].x))
        rows = [tuple(value_text(float(v[i])) for v in (series[0].x, series[0].y, series[1].y)) for i in chosen]
        return values_table((x_name, series[0].name, series[1].name), rows)
    found = []
    for s in series:
        found += [(s.name, value_text(float(s.x[i])), value_text(float(s.y[i]))) for i in _some(len(s.x))]
    return values_table(("", x_name, y_name), found)


def _some(count: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, TABLE_ROWS)).round().astype(int).tolist()))


def _figure(title: str, inner: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{inner}</figure>'
