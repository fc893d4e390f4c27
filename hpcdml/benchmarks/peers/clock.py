"""When the ranks of a peer end, where seconds decide it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

LOOK_SECONDS = 0.1
"""Time between two looks at whether the seconds are over."""


class Clock:
    """Ends all ranks after the same step, by rank 0's time and without a wait for it.

    Rank 0 sends its word at a look, and all act on it at the next one, a tenth of a second later: then it has long been
    there. The word is the number of steps between the two looks after it; 0: the next look is the end.

    Args:
        seconds: time after which to end; None: never.
        coupled: False: each rank ends by its own time.
    """

    def __init__(self, seconds: float | None, coupled: bool) -> None:
        self._seconds = math.inf if seconds is None else seconds
        # A group of its own has threads of its own: hooks may hold those of the other.
        self._group = dist.new_group(backend="gloo") if coupled and seconds is not None else None
        self._word = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None
        self._next = 1

    def over(self, steps: int, seconds: float) -> bool:
        """Whether to stop; all ranks ask after every step."""
        if self._group is None:
            return seconds >= self._seconds
        if steps < self._next:
            return False
        gap = 1
        if self._work is not None:
            self._work.wait()
            gap = int(self._word)
            if gap == 0:
                return True
        self._word.fill_(0 if seconds >= self._seconds else max(1, int(LOOK_SECONDS * steps / seconds)))
        self._work = dist.broadcast(self._word, 0, group=self._group, async_op=True)
        self._next = steps + gap
        return False
