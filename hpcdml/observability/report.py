"""The summary of a run as text: for a person in a terminal of 80 columns, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hpcdml.observability.advice import Advice
from hpcdml.observability.units import bytes_text, percent, seconds_text

WIDTH = 80
_LABEL = 12


def format_report(summary: Mapping[str, Any], most_workers: int = 40) -> str:
    """The report of ``summarise``'s figures, without a newline at its end.

    Args:
        summary: from ``summarise``.
        most_workers: with more workers than these, the lines of the others are replaced by one that gives their range.
    """
    lines = [_line(label, text) for label, text in _facts(summary) if text]
    table = _workers(summary, most_workers)
    return "\n".join([*lines, "", *table]) if table else "\n".join(lines)


def format_advice(advice: Advice) -> str:
    """What bounds the run and what would help, as the end of the report; without a newline at its end."""
    option = f"{advice.option}: {advice.because}" if advice.option else advice.because
    return "\n".join([_line("bound by", f"{advice.name}: {advice.why}"), _line("advice", option)])


def format_json(summary: Mapping[str, Any]) -> str:
    """The figures as JSON, one key per line, without a newline at the end."""
    # allow_nan=False: a NaN would be no JSON, and most programs would refuse the whole text.
    parts = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in summary.items()]
    return "{\n" + ",\n".join(parts) + "\n}"


def _facts(s: Mapping[str, Any]) -> list[tuple[str, str]]:
    workers = _count(s["workers"], "worker")
    what = _join(f"{s['policy']}, {workers}", f"{s['model']} on {s['dataset']}" if s["model"] else "")
    stale = f"staleness {s['staleness_mean']:.1f}, at most {s['staleness_max']}" if s["pushes"] else ""
    steps = s["local_steps_per_round"]
    rounds = _join(
        f"{s['rounds']:,}",
        f"median {seconds_text(s['round_seconds_median'])}" if s["round_seconds_median"] is not None else "",
        f"{steps:,.1f} local steps in each" if steps is not None else "",
    )
    samples = f"{s['samples']:,} in {seconds_text(s['wall_seconds'])}: {s['samples_per_second']:,.0f} per second"
    target = ""
    if s["target_accuracy"] is not None:
        reached = s["time_to_target_seconds"]
        target = f"accuracy {s['target_accuracy']:g} " + (
            "not reached" if reached is None else f"reached after {seconds_text(reached)}"
        )
    refused = f"{s['refused_pushes']:,} refused" if s["refused_pushes"] else ""
    return [
        ("run", s["path"]),
        ("what", what),
        ("started", _join(s["created"] or "", f"on {s['host']}" if s["host"] else "")),
        ("status", _status(s)),
        ("samples", samples if s["samples"] else "none yet"),
        ("rounds", rounds),
        ("pushes", _join(f"{s['pushes']:,}", f"{bytes_text(s['bytes_received'])} received", stale, refused)),
        ("held-out", _held_out(s)),
        ("target", target),
        ("training", f"loss {s['training_loss']:.4g}" if s["training_loss"] is not None else ""),
    ]


def _status(s: Mapping[str, Any]) -> str:
    if s["finished"]:
        return _join("finished", s["stop_reason"] or "")
    return _join("not finished: it is going on, or was killed", f"last event {s['status']}" if s["status"] else "")


def _held_out(s: Mapping[str, Any]) -> str:
    if not s["evaluations"]:
        return "not evaluated yet"
    parts = []
    for name in ("accuracy", "loss"):
        final, best = s[f"final_{name}"], s[f"best_{name}"]
        if final is not None:
            parts.append(f"{name} {final:.4g}" + (f" (best {best:.4g})" if best is not None and best != final else ""))
    return _join(*parts, _count(s["evaluations"], "evaluation"))


def _workers(s: Mapping[str, Any], most: int) -> list[str]:
    header = ("worker", "steps", "samples", "samples/s", "compute", "data", "idle")
    rows = [
        (
            str(rank),
            f"{s['local_steps'][i]:,}",
            f"{s['samples_per_worker'][i]:,}",
            f"{s['samples_per_second_per_worker'][i]:,.0f}",
            percent(s["compute_fraction"][i]),
            percent(s["data_fraction"][i]),
            percent(s["idle_fraction"][i]),
        )
        for i, rank in enumerate(s["worker_ranks"])
    ]
    if not rows:
        return []
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    if len(rows) <= most:
        return lines
    idle = [value for value in s["idle_fraction"][most:] if value is not None]
    rest = [f"and {len(rows) - most:,} more: {_span([f'{n:,}' for n in _ends(s['local_steps'][most:])])} steps"]
    if idle:
        rest.append(f"idle {_span([percent(value) for value in _ends(idle)])}")
    return [*lines[: most + 1], ", ".join(rest)]


def _line(label: str, text: str) -> str:
    """One fact; what does not fit into the line goes on in the next one, under the text."""
    words, lines = text.split(" "), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > WIDTH - _LABEL:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return label.ljust(_LABEL) + ("\n" + " " * _LABEL).join(lines)


def _ends(values: Sequence[Any]) -> tuple[Any, Any]:
    return min(values), max(values)


def _span(ends: Sequence[str]) -> str:
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
