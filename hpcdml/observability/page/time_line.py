"""The time line: what every rank did, with the rounds drawn across all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from hpcdml.observability.curves import busy_share, shares
from hpcdml.observability.lines import PARTS, WorkerLine, extent
from hpcdml.observability.page.charts import key, scrolling, table
from hpcdml.observability.page.svg import Scale, bars_path, drawing, stair_path, text, tick_texts, ticks

WIDTH, LEFT, RIGHT = 1000, 74, 8
MOST_WORKERS = 16
MOST_STEPS = 260
"""Steps of a lane that are drawn one by one; of more only the shares are."""
PIECES = 440
ROUNDS_SEEN = 6
HUES = 3
"""Colours of rounds, in turn by the version that they make."""


@dataclass(frozen=True)
class Server:
    """What rank 0 did: rounds (versions, begin, end) and evaluations (begin, end), each in order of time."""

    versions: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    evaluations: tuple[np.ndarray, np.ndarray]


def server_line(rounds: np.ndarray, evaluations: np.ndarray) -> Server:
    """From rows of the tables. An evaluation is taken to begin when its version was made."""
    begin = evaluations["time"], evaluations["time"] + evaluations["seconds"]
    return Server(rounds["round"], rounds["time"] - rounds["seconds"], rounds["time"], begin)


def time_lines(name: str, number: int, lines: Sequence[WorkerLine], server: Server, overlaps: bool) -> str:
    """The whole run in shares of time, then a few rounds step by step at four places to choose from.

    Args:
        name: of the run.
        number: of the run on the page, for names of its buttons.
        lines: of all workers.
        server: of rank 0.
        overlaps: whether workers train while a round is under way.
    """
    begin, end = extent(list(lines))
    if end <= begin:
        return '<p class="soft">No local step was recorded.</p>'
    chosen = choose(lines)
    left_out = len(lines) - len(chosen)
    note = (
        f'<p class="soft">{left_out:,} more workers are not drawn; those that are range from the least idle to '
        "the most idle one.</p>"
        if left_out
        else ""
    )
    views = windows(chosen, server, begin, end)
    buttons, panels = [], []
    for i, (title, low, high) in enumerate(views):
        at = f"w{number}-{i}"
        checked = " checked" if i == min(1, len(views) - 1) else ""
        buttons.append(f'<input type="radio" name="w{number}" id="{at}"{checked}><label for="{at}">{title}</label>')
        panels.append(f"<div>{_detail(f'{name}, {title}', chosen, server, low, high)}</div>")
    blocked = (
        "taking parameters in, sending, polls" if overlaps else "waiting for the round, taking parameters in, sending"
    )
    keys = [
        ("computing", _swatch("--compute")),
        ("waiting for data", _swatch("--data")),
        (f"blocked: {blocked}", _swatch("--idle")),
        ("rank 0 in a round", _swatch("--serve")),
        ("evaluating", _swatch("--evaluate")),
    ]
    rounds = "".join(f'<path d="M{8 * i} 3h8v6h-8z" style="fill:var(--v{i})"/>' for i in range(HUES))
    return (
        f"<h3>{escape(name)}: the whole run</h3>{key(keys)}{_overview(name, chosen, server, begin, end)}{note}"
        f"<h3>{escape(name)}: some rounds, step by step</h3>"
        + key([*keys[:3], keys[4], ("a round, from the push to the new version; one colour for each version", rounds)])
        + f"<fieldset><legend>Which part of the run</legend>{''.join(buttons)}"
        f'<div class="views">{"".join(panels)}</div></fieldset>' + _spent(lines, begin, end)
    )


def choose(lines: Sequence[WorkerLine], most: int = MOST_WORKERS) -> list[WorkerLine]:
    """At most so many workers, evenly from the least to the most idle one, by rank."""
    if len(lines) <= most:
        return list(lines)
    idle = [float(line.parts["idle"].sum()) for line in lines]
    order = np.argsort(idle, kind="stable")[np.linspace(0, len(lines) - 1, most).round().astype(int)]
    return [lines[i] for i in sorted(order.tolist())]


def windows(lines: Sequence[WorkerLine], server: Server, begin: float, end: float) -> list[tuple[str, float, float]]:
    """Parts of the run that are worth a closer look: title, begin, end."""
    steps = max(len(line.rows) for line in lines)
    length = MOST_STEPS * (end - begin) / max(steps, 1)
    if len(server.end) > 1:
        length = min(length, ROUNDS_SEEN * float(np.median(np.diff(server.end))))
    if length <= 0 or length >= 0.6 * (end - begin):
        return [("all of it", begin, end)]
    found = [("the beginning", begin), ("the middle", (begin + end - length) / 2), ("the end", end - length)]
    if len(server.end) > 2:
        slow = int(np.argmax(server.end - server.begin))
        middle = (server.end[slow] + server.begin[slow]) / 2
        length = max(length, min(1.2 * float(server.end[slow] - server.begin[slow]), 0.5 * (end - begin)))
        found.append(("around the longest round", min(max(begin, middle - length / 2), end - length)))
    return [(title, low, min(end, low + length)) for title, low in found]


def _overview(name: str, lines: Sequence[WorkerLine], server: Server, begin: float, end: float) -> str:
    edges = np.linspace(begin, end, PIECES + 1)
    x = Scale(begin, end, LEFT, WIDTH - RIGHT)
    lane, gap = (26, 6) if len(lines) <= 8 else (18, 4)
    body: list[str] = []
    place = 4.0
    zero = np.zeros(PIECES)
    serving = busy_share(server.begin, server.end, edges)
    body.append(_lane_name(place, lane, "rank 0"))
    body.append(_area(stair_path(x(edges), zero + place + lane, place + lane * (1 - serving)), "--serve"))
    place += lane + 2
    body.append(_area(bars_path(x(server.evaluations[0]), x(server.evaluations[1]), place, 4), "--evaluate"))
    place += 4 + gap
    for line in lines:
        body.append(_lane_name(place, lane, f"worker {line.worker}"))
        share, low = shares(line, edges), zero
        for part in PARTS:
            high = np.minimum(low + share[part], 1.0)
            body.append(_area(stair_path(x(edges), place + lane * (1 - low), place + lane * (1 - high)), f"--{part}"))
            low = high
        body.append(f'<path class="rule" d="M{LEFT} {place + lane:.1f}H{WIDTH - RIGHT}"/>')
        place += lane + gap
    told = f"{name}: of each piece of time the share that each rank spent on what; the table below has the sums"
    return scrolling(drawing(WIDTH, place + 24, told, [*body, *_clock(x, place)]), f"time line of {name}")


def _detail(name: str, lines: Sequence[WorkerLine], server: Server, low: float, high: float) -> str:
    x = Scale(low, high, LEFT, WIDTH - RIGHT)
    seen = (server.end >= low) & (server.begin <= high)
    few = np.count_nonzero(seen) <= 4 * MOST_STEPS
    versions, begin, end = server.versions[seen], server.begin[seen], server.end[seen]
    body: list[str] = []
    place = 16.0
    body.append(_lane_name(place, 18, "rank 0"))
    # Two rows: a round may begin before the one before it has ended.
    body += _rounds(x, versions, begin, end, place, 9, 2) if few else []
    place += 20
    done = (server.evaluations[1] >= low) & (server.evaluations[0] <= high)
    first, last = (np.clip(x(side[done]), LEFT, WIDTH - RIGHT) for side in server.evaluations)
    body.append(_area(bars_path(first, last, place, 4), "--evaluate"))
    place += 4 + 8
    top = 16.0
    for line in lines:
        body.append(_lane_name(place, 24, f"worker {line.worker}"))
        body += _steps(line, x, place, 18)
        flights = line.flights
        flying = (flights.left <= high) & ~(flights.back < low)
        back = np.where(np.isnan(flights.back[flying]), high, flights.back[flying])
        if few:
            body += _rounds(x, flights.round[flying], flights.left[flying], back, place + 19, 9, 1)
        place += 28 + 10
    if few and len(end):
        inside = (end >= low) & (end <= high)
        marks = "".join(f"M{v:.1f} {top:g}V{place - 10:g}" for v in x(end[inside]))
        body.append(f'<path class="rule" stroke-dasharray="2 3" d="{marks}"/>')
        body += _version_names(x, versions[inside], end[inside])
    told = (
        f"{name}, from {low:.4g} to {high:.4g} seconds: the local steps of {len(lines)} workers and the "
        f"{len(versions)} rounds of that time"
    )
    return scrolling(drawing(WIDTH, place + 20, told, [*body, *_clock(x, place - 5)]), f"time line of {name}")


def _steps(line: WorkerLine, x: Scale, place: float, height: float) -> list[str]:
    low, high = x.low, x.high
    seen = slice(int(np.searchsorted(line.end, low)), int(np.searchsorted(line.begin, high)))
    end, ready, data, begin = line.end[seen], line.ready[seen], line.parts["data"][seen], line.begin[seen]
    if len(end) > 2 * MOST_STEPS:
        edges = np.linspace(low, high, PIECES + 1)
        share, under = shares(line, edges), np.zeros(PIECES)
        areas = []
        for part in PARTS:
            over = np.minimum(under + share[part], 1.0)
            path = stair_path(x(edges), place + height * (1 - under), place + height * (1 - over))
            areas.append(_area(path, f"--{part}"))
            under = over
        return areas

    def bars(from_: np.ndarray, to: np.ndarray) -> str:
        return bars_path(x(np.clip(from_, low, high)), x(np.clip(to, low, high)), place, height)

    # A hair of background between two steps shows where one ends, where there is room for it.
    hair = np.minimum(0.12 * (end - ready - data), (high - low) / (WIDTH - LEFT - RIGHT))
    return [
        _area(bars(ready + data, end - hair), "--compute"),
        _area(bars(ready, ready + data), "--data"),
        _area(bars(begin, ready), "--idle"),
    ]


def _rounds(
    x: Scale, versions: np.ndarray, begin: np.ndarray, end: np.ndarray, place: float, height: float, rows: int
) -> list[str]:
    """Bars of rounds: their colours by version, and in as many rows in turn."""
    left, right = np.clip(x(begin), LEFT, WIDTH - RIGHT), np.clip(x(end), LEFT, WIDTH - RIGHT)
    body = []
    for hue in range(HUES):
        for row in range(rows):
            some = (versions % HUES == hue) & (versions % rows == row)
            body.append(_area(bars_path(left[some], right[some] - 0.6, place + row * height, height - 1), f"--v{hue}"))
    return body


def _version_names(x: Scale, versions: np.ndarray, end: np.ndarray) -> list[str]:
    names, free = [], -np.inf
    for version, place in zip(versions.tolist(), x(end).tolist(), strict=True):
        half = 3.5 * len(f"v{version}")
        if place - half > free and place - half > LEFT and place + half < WIDTH:
            names.append(text(place, 11, f"v{version}", "middle", "soft"))
            free = place + half + 6
    return names


def _clock(x: Scale, place: float) -> list[str]:
    marks = ticks(x.low, x.high, 8)
    body = [f'<path class="axis" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>']
    for i, (value, words) in enumerate(zip(marks, tick_texts(marks), strict=True)):
        at = x.place(value)
        anchor = "end" if at > WIDTH - RIGHT - 20 else "middle"
        body.append(f'<path class="axis" d="M{at:.1f} {place:.1f}v4"/>')
        body.append(text(at, place + 16, words + (" s" if i == len(marks) - 1 else ""), anchor))
    return body


def _spent(lines: Sequence[WorkerLine], begin: float, end: float) -> str:
    rows = []
    for line in lines[:200]:
        whole = sum(float(seconds.sum()) for seconds in line.parts.values()) or 1.0
        spent = [float(line.parts[part].sum()) for part in PARTS]
        cells = [f"{seconds:,.2f} s ({seconds / whole:.1%})" for seconds in spent]
        rows.append((f"worker {line.worker}", f"{len(line.rows):,}", f"{len(line.pushes):,}", *cells))
    header = ("rank", "local steps", "updates", "computing", "waiting for data", "blocked")
    shown = "" if len(rows) == len(lines) else f" of the first {len(rows)}"
    return (
        f"<details><summary>What the workers{shown} spent their time on, from {begin:.2f} to {end:.2f} s</summary>"
        + table(header, rows)
        + "</details>"
    )


def _area(path: str, colour: str) -> str:
    return f'<path style="fill:var({colour})" d="{path}"/>' if path else ""


def _lane_name(place: float, height: float, name: str) -> str:
    return text(LEFT - 8, place + height / 2 + 4, name, "end")


def _swatch(colour: str) -> str:
    return f'<path d="M0 1h24v10h-24z" style="fill:var({colour})"/>'
