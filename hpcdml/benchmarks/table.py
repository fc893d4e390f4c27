"""Tables of a benchmark's results for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

Spread = dict[str, "float | None"]
"""Median, smallest and largest of several values, by the names median, min and max; None where one is not finite."""


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as an aligned table; floats have four significant digits."""
    if not rows:
        return "(nothing was measured)"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def spread(values: Sequence[float]) -> Spread | None:
    """Median with the smallest and the largest value; None for no values."""
    if not values:
        return None
    found = {"median": median(values), "min": min(values), "max": max(values)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def middle(values: Sequence[float]) -> float | None:
    """The median; None for no values, or where it is not finite."""
    found = spread(values)
    return None if found is None else found["median"]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return f"{_cell(value['median'])} [{_cell(value['min'])}, {_cell(value['max'])}]"
    return str(value)
