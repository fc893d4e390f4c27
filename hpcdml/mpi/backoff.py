"""How a rank waits: it sleeps for a small part of the time between two events, so that ranks can share cores."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

from hpcdml.mpi.tempo import Tempo

SHORTEST = 5e-6
"""Sleeps below this cost more than they save, in seconds; the core is offered to others instead."""

_SET_TIMER_SLACK = 29  # PR_SET_TIMERSLACK of <linux/prctl.h>


class Backoff:
    """Sleeps between polls: for a part of the usual time between two events, or of the time since the last one.

    MPI's own blocking calls spin. Here a rank that waits leaves its core to others, reacts at once where events come
    quickly, as through shared memory, and polls seldom where they come slowly, as over a network.

    Args:
        longest: longest sleep in seconds.
    """

    def __init__(self, longest: float = 500e-6) -> None:
        self._tempo = Tempo(0.0, longest, time.perf_counter())

    def reset(self) -> None:
        """Something happened."""
        self._tempo.event(time.perf_counter())

    def wait(self) -> None:
        """Nothing happened: give the core away for a while."""
        pause = self._tempo.pause(time.perf_counter())
        if pause < SHORTEST:
            # Not time.sleep(0), which on Linux sleeps for the timer's slack since Python 3.11.
            os.sched_yield()
        else:
            time.sleep(pause)


def sleep_exactly() -> None:
    """Let this thread, and those that it starts, sleep no longer than asked for; without Linux nothing happens.

    By default Linux wakes a thread up to 50 us late, so that a sleep of 10 us takes 66 us.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, ctypes.c_ulong(1000), 0, 0, 0)
