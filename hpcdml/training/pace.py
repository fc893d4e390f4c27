"""Keeps the host close to its GPU, so that what it decides between two steps is about the present."""

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
