"""Signals upon which a run saves a checkpoint and ends: a scheduler's warning before its limit, Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from hpcdml.errors import UsageError
from hpcdml.signals import signal_numbers

SAME_SECONDS = 2.0
"""Signals that come within so many seconds count as one: launchers pass one on and send their own beside it."""


class StopSignals:
    """Notes a signal; a second one, later, ends the process at once.

    Processes that the run has forked, such as those of data loaders, end as if nothing had been set up.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._first = 0.0
        self._owner = os.getpid()
        self._before: dict[int, object] = {}

    def watch(self, names: str) -> None:
        """From now on, note the signals of these names; in place of those that were watched before.

        Args:
            names: as ``--signals`` has them.

        Raises:
            UsageError: there is no such signal, or it cannot be caught.
        """
        self.unwatch()
        for number in signal_numbers(names):
            try:
                self._before[number] = signal.signal(number, self._note)
            except (OSError, ValueError) as error:
                raise UsageError(f"--signals {names}: {signal.Signals(number).name}: {error}") from error

    def unwatch(self) -> None:
        """What was before holds again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and time.monotonic() - self._first > SAME_SECONDS
        if again or os.getpid() != self._owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.received is None:
            self.received, self._first = signal.Signals(number).name, time.monotonic()
