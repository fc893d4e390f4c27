"""How long to pause between two looks at what moves at a pace of its own."""

from __future__ import annotations

SHARE = 1 / 8
"""A pause as a part of the time between two events: what pauses add to their latency."""

_MEMORY = 1 / 8


class Tempo:
    """A part of the usual time between two events, or of the time since the last one if that is longer.

    So looks are many where events come quickly, as through shared memory, and few where they come slowly, as over a
    network.

    Args:
        shortest, longest: bounds of a pause, in seconds.
        now: when the waiting begins, in seconds; as in all calls.
    """

    def __init__(self, shortest: float, longest: float, now: float) -> None:
        self.shortest = shortest
        self.longest = longest
        self._last = now
        self._mean = 0.0

    def event(self, now: float) -> None:
        """Something happened."""
        # A long silence says nothing about the events that follow it.
        interval = min(now - self._last, self.longest / SHARE)
        self._mean += _MEMORY * (interval - self._mean)
        self._last = now

    def nothing_due(self, now: float) -> None:
        """Nothing could happen until now."""
        self._last = now

    def pause(self, now: float) -> float:
        """Seconds until the next look."""
        return min(max(SHARE * max(now - self._last, self._mean), self.shortest), self.longest)
