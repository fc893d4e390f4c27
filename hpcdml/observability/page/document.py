"""The page: its sections in order, for one run or for several beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from hpcdml.observability.page.charts import Series, line_chart, scrolling
from hpcdml.observability.page.counts import pushes_section
from hpcdml.observability.page.style import STYLE
from hpcdml.observability.page.time_line import server_line, time_lines
from hpcdml.observability.units import bytes_text, percent, seconds_text
from hpcdml.observability.view import RunView

# Nothing may be fetched, not even by a value of the run that found its way into the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_SECTIONS = (
    ("figures", "Figures"),
    ("curves", "Loss and accuracy"),
    ("speed", "Speed"),
    ("time-line", "Time line"),
    ("updates", "Updates"),
    ("options", "Options"),
    ("environment", "Environment"),
    ("advice", "What bounds it"),
)


def page(runs: Sequence[RunView]) -> str:
    """The whole page as HTML.

    Raises:
        UsageError: a run file is damaged.
    """
    contents = {
        "figures": _figures(runs),
        "curves": _curves(runs),
        "speed": _speed(runs),
        "time-line": _time_lines(runs),
        "updates": pushes_section(runs),
        "options": _settings(runs, [{k: str(v) for k, v in r.run.config.items()} for r in runs], "option"),
        "environment": _settings(runs, [r.run.environment for r in runs], "of"),
        "advice": _advice(runs),
    }
    title = " and ".join(r.name for r in runs) if len(runs) < 4 else f"{len(runs)} runs"
    links = "".join(f'<li><a href="#{name}">{words}</a></li>' for name, words in _SECTIONS)
    sections = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{words}</h2>'
        f"{contents[name]}</section>"
        for name, words in _SECTIONS
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="hpcdml">\n<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#main">To the figures</a>\n<header><h1>{escape(title)}</h1>'
        f'{_heads(runs)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main id="main">{sections}</main>\n</body>\n</html>\n'
    )


def _heads(runs: Sequence[RunView]) -> str:
    lines = []
    for r in runs:
        s = r.summary
        what = f"{s['policy']}, {s['workers']} workers, {s['model']} on {s['dataset']}"
        where = f"started {s['created']}" + (f" on {s['host']}" if s["host"] else "")
        state = "finished" if s["finished"] else "not finished: it is going on, or was killed"
        lines.append(f'<p class="soft">{escape(f"{r.name}: {what}; {where}; {state}")}')
        lines.append(f'; bounded by <a href="#advice">{escape(r.advice.name)}</a></p>')
    return "".join(lines)


def _figures(runs: Sequence[RunView]) -> str:
    rows = [("", *(r.name for r in runs))]
    rows += [(label, *(text(r) for r in runs)) for label, text in _FIGURES]
    head = "".join(f'<th scope="col" class="number">{escape(cell)}</th>' for cell in rows[0][1:])
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for label, *cells in rows[1:]
    )
    corner = '<td><span class="hidden">figure</span></td>'
    return scrolling(f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{body}</tbody></table>", "table of figures")


def _number(value: Any, form: str = ",.4g") -> str:
    return "–" if value is None else format(value, form)


def _span(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    low, high = percent(min(known)), percent(max(known))
    return low if low == high else f"{low} to {high}"


_FIGURES = (
    ("policy", lambda r: str(r.summary["policy"])),
    ("workers", lambda r: str(r.summary["workers"])),
    ("held-out accuracy at the end", lambda r: _number(r.summary["final_accuracy"])),
    ("held-out loss at the end", lambda r: _number(r.summary["final_loss"])),
    ("best held-out accuracy", lambda r: _number(r.summary["best_accuracy"])),
    ("time to the target accuracy", lambda r: _seconds(r.summary["time_to_target_seconds"])),
    ("time", lambda r: _seconds(r.summary["wall_seconds"])),
    ("samples", lambda r: f"{r.summary['samples']:,}"),
    ("samples a second", lambda r: _number(r.summary["samples_per_second"], ",.0f")),
    ("share of the communication-free limit", lambda r: percent(r.free_share)),
    ("workers blocked", lambda r: _span(r.summary["idle_fraction"])),
    ("workers waiting for data", lambda r: _span(r.summary["data_fraction"])),
    ("rounds", lambda r: f"{r.summary['rounds']:,}"),
    ("a round, median", lambda r: _seconds(r.summary["round_seconds_median"])),
    ("local steps in a round, mean", lambda r: _number(r.summary["local_steps_per_round"], ",.1f")),
    ("received by rank 0", lambda r: bytes_text(r.summary["bytes_received"])),
    ("peak memory of rank 0", lambda r: _bytes(r.summary["server_peak_bytes"])),
)


def _seconds(value: float | None) -> str:
    return "–" if value is None else seconds_text(value)


def _bytes(value: float | None) -> str:
    return "–" if value is None else bytes_text(value)


def _curves(runs: Sequence[RunView]) -> str:
    """Two sets of the same charts, against time and against samples, to choose from."""
    panels = []
    for axis, name in (("time", "seconds of training"), ("samples", "samples of all workers")):
        accuracy, loss, training = [], [], []
        for i, r in enumerate(runs):
            at, column = r.evaluations[axis].astype(float), r.evaluations
            accuracy.append(Series(r.name, at, column["accuracy"], i))
            loss.append(Series(r.name, at, column["loss"], i))
            training.append(Series(r.name, r.curves.seconds if axis == "time" else r.curves.samples, r.curves.loss, i))
        panels.append(
            '<div class="grid">'
            + line_chart("Accuracy on the held-out data", accuracy, name, "accuracy")
            + line_chart("Loss on the held-out data", loss, name, "loss")
            + line_chart("Training loss", training, name, "mean loss of the local steps")
            + "</div>"
        )
    return (
        "<fieldset><legend>Horizontal axis</legend>"
        '<input type="radio" name="axis" id="axis-t" checked><label for="axis-t">time</label>'
        '<input type="radio" name="axis" id="axis-s"><label for="axis-s">samples</label>'
        f'<div class="views">{"".join(panels)}</div></fieldset>'
    )


def _speed(runs: Sequence[RunView]) -> str:
    charts = []
    for i, r in enumerate(runs):
        c = r.curves
        series = [
            Series("reached", c.seconds, c.rate, i),
            Series("without communication", c.seconds, c.limit, i, ideal=True),
        ]
        title = f"Samples a second: {r.name}" if len(runs) > 1 else "Samples a second, all workers"
        charts.append(line_chart(title, series, "seconds of training", "samples a second", zero=True))
    return (
        '<p class="soft">Without communication: what the workers would do if nothing blocked them, from the time that '
        "their steps computed and waited for data. Where ranks share cores, communication also makes computing slower, "
        "and the true limit is higher.</p>" + f'<div class="grid">{"".join(charts)}</div>'
    )


def _time_lines(runs: Sequence[RunView]) -> str:
    parts = []
    for i, r in enumerate(runs):
        server = server_line(r.rounds, r.evaluations)
        parts.append(time_lines(r.name, i, r.lines, server, r.measurements.overlaps))
    return "".join(parts)


def _settings(runs: Sequence[RunView], settings: Sequence[dict[str, str]], what: str) -> str:
    """A table of names and values, one column a run; rows that differ come first and are marked."""
    names = list(dict.fromkeys(name for values in settings for name in values))
    rows: list[tuple[bool, str]] = []
    for name in names:
        cells = [values.get(name, "–") for values in settings]
        differs = len(set(cells)) > 1
        mark = ' class="differs"' if differs else ""
        hidden = '<span class="hidden"> (differs)</span>' if differs else ""
        tds = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        rows.append((not differs, f'<tr{mark}><th scope="row">{escape(name)}{hidden}</th>{tds}</tr>'))
    if len(runs) > 1:
        rows.sort(key=lambda row: row[0])
    head = f'<th scope="col">{what}</th>' + "".join(f'<th scope="col">{escape(r.name)}</th>' for r in runs)
    body = "".join(row for _, row in rows)
    count = sum(not same for same, _ in rows)
    differ = f", {count} of which differ" if len(runs) > 1 else ""
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return (
        f"<details{' open' if count else ''}><summary>{len(rows)} entries{differ}</summary>"
        + scrolling(inner, f"table: {what}")
        + "</details>"
    )


def _advice(runs: Sequence[RunView]) -> str:
    parts = []
    for r in runs:
        a = r.advice
        option = f"<p>What would help most: <code>{escape(a.option)}</code>: {escape(a.because)}.</p>"
        parts.append(
            f'<div class="card verdict"><h3>{escape(r.name)} is bounded by {escape(a.name)}</h3>'
            f"<p>{escape(a.why[:1].upper() + a.why[1:])}.</p>{option}</div>"
        )
    return "".join(parts)
