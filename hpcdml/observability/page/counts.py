"""How old updates were, and how much was in them: histograms of the pushes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcdml.observability.page.charts import histogram
from hpcdml.observability.view import RunView

GROUPS = 20


def pushes_section(runs: Sequence[RunView]) -> str:
    """Two histograms for each run."""
    parts = []
    for i, r in enumerate(runs):
        end = f": {r.name}" if len(runs) > 1 else ""
        stale, steps = grouped(r.pushes["staleness"]), grouped(r.pushes["local_steps"])
        parts.append(histogram(f"Staleness{end}", stale, "versions made between an update's base and it", "updates", i))
        parts.append(histogram(f"Local steps in an update{end}", steps, "local steps", "updates", i))
    return (
        '<p class="soft">With overlap an update is formed when new parameters arrive and does not know them: a '
        "staleness of 1 is then the rule. How many local steps lie in an update tells how far workers drift apart.</p>"
        f'<div class="grid">{"".join(parts)}</div>'
    )


def grouped(values: np.ndarray, most: int = GROUPS) -> dict[str, np.ndarray]:
    """How often each whole number occurs, in at most so many groups of equal width."""
    if not len(values):
        return {}
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // most)
    counts = np.bincount((values.astype(np.int64) - low) // width)
    starts = low + width * np.arange(len(counts))
    return {str(a) if width == 1 else f"{a}–{a + width - 1}": n for a, n in zip(starts.tolist(), counts, strict=True)}
