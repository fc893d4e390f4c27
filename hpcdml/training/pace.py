"""The time of a local step: the host kept close to its GPU, and steps made longer for experiments."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

POLL_SECONDS = 5e-5


class Pace:
    """Lets the host be at most one step ahead of the device; on the CPU there is nothing to keep.

    Without it the host would queue steps far ahead, adopt global parameters long before the GPU gets there, and have
    nothing to do but wait in the driver, where it cannot poll.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: torch.cuda.Event | None = None

    def keep(self, poll: Callable[[], None]) -> None:
        """The step has been given to the device: poll until the step before it is done."""
        if self.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        while self._last is not None and not self._last.query():
            poll()
            time.sleep(POLL_SECONDS)
        self._last = event


class Stretch:
    """Makes a step, from here on, as long as it would be on another device.

    Args:
        factor: the step lasts so many times longer, 1 or more.
        seconds: the step lasts so long on an emulated device, times ``factor``, while the host is free; None: there is
            none. On the CPU the time counts that this thread computes, not the time that others take from it: several
            emulated hosts may share a core.
    """

    def __init__(self, factor: float, seconds: float | None, device: torch.device) -> None:
        self.factor = factor
        self.seconds = seconds
        self._clock = time.thread_time if device.type == "cpu" and seconds is None else time.perf_counter
        self._begin = self._clock()

    def missing(self, polled: float) -> float:
        """Seconds that the step is still to last, of which so far ``polled`` seconds were polls.

        An emulated device computes during the polls as well.
        """
        passed = self._clock() - self._begin
        if self.seconds is not None:
            return max(0.0, self.factor * self.seconds - passed)
        return max(0.0, (self.factor - 1.0) * (passed - polled))
