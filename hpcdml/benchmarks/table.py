"""Tables of a benchmark's results for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as an aligned table; floats have four significant digits."""
    if not rows:
        return "(nothing was measured)"
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def spread(values: Sequence[float]) -> str:
    """Median with the smallest and the largest value."""
    return f"{median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
