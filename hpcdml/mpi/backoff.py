"""How a rank waits: it yields first, then sleeps longer and longer, so that ranks can share cores."""

from __future__ import annotations

import time


class Backoff:
    """Sleeps of growing length between polls.

    MPI's own blocking calls spin. Here a rank that waits leaves its core to others, and still reacts within
    ``longest``.

    Args:
        longest: longest sleep in seconds.
        yields: polls before the first sleep.
    """

    def __init__(self, longest: float = 500e-6, yields: int = 20) -> None:
        self.longest = longest
        self.yields = yields
        self._idle = 0
        self._sleep = 0.0

    def reset(self) -> None:
        """Something happened: begin anew."""
        self._idle = 0
        self._sleep = 10e-6

    def wait(self) -> None:
        """Nothing happened: give the core away for a while."""
        self._idle += 1
        if self._idle <= self.yields:
            time.sleep(0)
            return
        self._sleep = min(max(self._sleep, 10e-6) * 1.3, self.longest)
        time.sleep(self._sleep)
