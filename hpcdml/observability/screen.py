"""A run at one moment as lines of text that fit into a terminal of 60 columns or less."""

from __future__ import annotations

from collections.abc import Sequence

from hpcdml.observability.live import Now, WorkerNow
from hpcdml.observability.units import clock_text, percent, seconds_text

QUIET_SECONDS = 15.0
"""Seconds without a new row after which it is told that nothing comes any more."""
_LABEL = 10
_BLOCKS = "▁▂▃▄▅▆▇█"
_HEADER = ("worker", "samples/s", "step", "steps/push", "stale", "data", "idle")


def screen(now: Now, columns: int = 80, rows: int = 24, unicode: bool = True) -> list[str]:
    """The lines, none longer than ``columns``, and no more than ``rows``."""
    config = now.config
    what = f": {config.get('policy')}, {len(now.workers)} workers, {config.get('model')} on {config.get('dataset')}"
    lines = [
        _end(now.path, max(columns - len(what), 12)) + what,
        _state(now),
        *_bar(now, columns),
        "samples".ljust(_LABEL) + f"{now.samples:,}, {now.rate:,.0f}/s now, {now.rate_overall:,.0f}/s in all",
    ]
    if now.loss is not None:
        text = "loss".ljust(_LABEL) + f"{now.loss:.4g} in training"
        if now.evaluated_loss is not None:
            text += f", {now.evaluated_loss:.4g} held out"
        room = min(columns - len(text) - 2, 40)
        lines.append(text + ("  " + sparkline(now.losses, room) if unicode and room >= 8 else ""))
    if now.accuracy is not None:
        best = f", best {now.best_accuracy:.4f}" if now.best_accuracy != now.accuracy else ""
        at = clock_text(now.evaluated_at or 0.0)
        lines.append("accuracy".ljust(_LABEL) + f"{now.accuracy:.4f} at {at}{best}")
    table = _table(now.workers, columns, max(rows - len(lines) - 1, 3))
    return [_cut(line, columns) for line in [*lines, "", *table]][:rows]


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as blocks of eight heights, each the mean of its neighbours if there are more than fit."""
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    bounds = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def _state(now: Now) -> str:
    kind, text = now.state
    if now.finished:
        state = "finished"
    elif now.age > QUIET_SECONDS:
        state = f"nothing new for {seconds_text(now.age)}: it waits, or was killed"
    else:
        state = f"stopping: {text}" if kind == "stopping" else "running"
    return f"{clock_text(now.seconds)}, {now.rounds:,} rounds, {state}"


def _bar(now: Now, columns: int) -> list[str]:
    """How much is done, if the run's own limits tell."""
    limits = [(now.samples, now.config.get("max_samples")), (now.seconds, now.config.get("max_seconds"))]
    shares = [value / limit for value, limit in limits if limit]
    if not shares or now.finished:
        return []
    share = min(1.0, max(shares))
    width = min(columns - _LABEL - 7, 50)
    full = round(share * width)
    return ["done".ljust(_LABEL) + f"[{'#' * full}{'.' * (width - full)}] {share:.0%}"] if width >= 5 else []


def _table(workers: Sequence[WorkerNow], columns: int, rows: int) -> list[str]:
    """A line for each worker; where there are too many, the slowest ones."""
    shown = list(workers)
    if len(shown) > rows - 1:
        shown = sorted(workers, key=lambda w: w.rate if w.rate is not None else -1.0)[: max(rows - 2, 1)]
        shown.sort(key=lambda w: w.worker)
    cells = [_HEADER, *(_cells(worker) for worker in shown)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER))]
    # Of the less important columns those go that do not fit.
    kept = list(range(len(_HEADER)))
    for column in (5, 2, 4):
        if sum(widths[i] for i in kept) + 2 * (len(kept) - 1) > columns:
            kept.remove(column)
    lines = ["  ".join(row[i].rjust(widths[i]) for i in kept) for row in cells]
    if len(shown) < len(workers):
        lines.append(f"the {len(shown):,} slowest of {len(workers):,} workers")
    return lines


def _cells(worker: WorkerNow) -> tuple[str, ...]:
    return (
        str(worker.worker),
        "-" if worker.rate is None else f"{worker.rate:,.0f}",
        "-" if worker.step_seconds is None else seconds_text(worker.step_seconds),
        "-" if worker.steps_per_push is None else f"{worker.steps_per_push:,.1f}",
        "-" if worker.staleness is None else f"{worker.staleness:.1f}",
        percent(worker.data),
        percent(worker.idle),
    )


def _end(path: str, columns: int) -> str:
    return path if len(path) <= columns else "..." + path[3 - columns :]


def _cut(line: str, columns: int) -> str:
    return line if len(line) <= columns else line[: max(columns - 1, 0)] + ">"
