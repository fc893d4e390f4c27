"""Which updates may enter the global parameters: decided from a push's header, before any of its chunks is added."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

from hpcdml.protocol.messages import Push

RECENT = 64
"""Norms of taken updates, of all workers, that a new one is compared with."""

LEAST = 16
"""So many of them must be known before one is refused for its norm."""

IN_A_ROW = 10
"""A worker of which so many updates in a row are refused is dropped."""


class Gate:
    """Refuses updates that are not finite, or far larger than recent ones.

    What it says depends on the headers and their order alone, so that a replay refuses what the run did.

    Args:
        workers: ranks of the workers.
        max_update_norm: how many times the median of the recent norms for each local step the norm of an update for
            each of its local steps may be; None: any finite norm will do.
    """

    def __init__(self, workers: Iterable[int], max_update_norm: float | None = None) -> None:
        self.max_update_norm = max_update_norm
        self._in_a_row = dict.fromkeys(workers, 0)
        self._recent: deque[float] = deque(maxlen=RECENT)

    def judge(self, push: Push) -> str | None:
        """Take note of a push with a payload.

        Returns:
            Why it is refused; None: it is not.
        """
        why = self._reason(push)
        if why is None:
            self._in_a_row[push.worker] = 0
            self._recent.append(push.norm / push.local_steps)
        else:
            self._in_a_row[push.worker] += 1
        return why

    def refused_last(self, worker: int) -> bool:
        """Whether the worker's last push with a payload was refused."""
        return self._in_a_row[worker] > 0

    def gives_up(self, worker: int) -> bool:
        """Whether too many of the worker's pushes were refused in a row."""
        return self._in_a_row[worker] >= IN_A_ROW

    def state(self) -> dict[str, Any]:
        """What it knows."""
        return {"in_a_row": dict(self._in_a_row), "recent": [float(norm) for norm in self._recent]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``; nothing is known of workers that are not in it."""
        mine = self._in_a_row
        mine.update({int(w): int(count) for w, count in state["in_a_row"].items() if int(w) in mine})
        self._recent = deque((float(norm) for norm in state["recent"]), maxlen=RECENT)

    def forgive(self, workers: Iterable[int]) -> None:
        """These workers begin anew."""
        self._in_a_row.update(dict.fromkeys(workers, 0))

    def _reason(self, push: Push) -> str | None:
        if not math.isfinite(push.norm):
            return "its update is not finite"
        if self.max_update_norm is None or len(self._recent) < LEAST:
            return None
        norm, usual = push.norm / push.local_steps, statistics.median(self._recent)
        # A median of zero, as with a learning rate of zero, says nothing of what is to be expected.
        if 0 < self.max_update_norm * usual < norm:
            return f"its norm for each local step, {norm:.4g}, is {norm / usual:.3g} times the recent {usual:.4g}"
        return None
