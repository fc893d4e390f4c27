"""What rank 0 does beside serving, so that no worker waits for it: evaluation, checkpoints, writing the run's file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from hpcdml.errors import HpcdmlError, MachineError


class Background:
    """A thread that runs one job at a time.

    Args:
        name: of the thread.
        niceness: how low its priority is: 10 for what may wait, as evaluation may; on a shared core nothing that a
            worker does must be slowed by it.
    """

    def __init__(self, name: str, niceness: int = 10) -> None:
        self.niceness = niceness
        self.error: HpcdmlError | None = None
        self._job: Callable[[], None] | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether a job can be given."""
        return self._job is None

    def give(self, job: Callable[[], None]) -> None:
        """Run a job in the thread. Call it only where ``idle``."""
        with self._wake:
            self._job = job
            self._wake.notify_all()

    def check(self) -> None:
        """Raise what a job raised.

        Raises:
            HpcdmlError: a job failed.
        """
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        """Wait for the job under way, end the thread, and raise what a job raised."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self.check()

    def _run(self) -> None:
        # On Linux the priority belongs to the thread.
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + self.niceness)
        while True:
            with self._wake:
                while self._job is None and not self._closing:
                    self._wake.wait()
                job = self._job
            if job is None:
                return
            try:
                job()
            except HpcdmlError as error:
                self.error = error
            except (Exception, SystemExit) as error:
                self.error = MachineError(f"{self._thread.name}: {type(error).__name__}: {error}")
            finally:
                with self._wake:
                    self._job = None
                    self._wake.notify_all()


class Every:
    """Says when a number of seconds has passed since it last said so.

    Args:
        seconds: the interval; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._last = time.perf_counter()

    @property
    def due(self) -> bool:
        return self.seconds is not None and time.perf_counter() - self._last >= self.seconds

    def reset(self) -> None:
        """The interval begins now."""
        self._last = time.perf_counter()
