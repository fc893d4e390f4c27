"""Keeps Open MPI from giving the core away in every poll.

Where a host has more ranks than cores, Open MPI calls ``sched_yield`` in each test that finds nothing, whatever
``mpi_yield_when_idle`` says. A poll in the middle of a step then lasts a whole time slice of another rank: on two cores
with three ranks workers spent half of their time in polls, and trained 1.4 to 1.8 times as fast without it. Our own
waits sleep (``Backoff``), so nothing is lost.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

_MAPPED = re.compile(r"(/\S*libopen-pal\S*)$", re.MULTILINE)


def keep_the_core() -> bool:
    """Switch yielding off in this process; returns whether it was on and could be switched off.

    Call it after MPI is initialised. Under another MPI, or an Open MPI without that switch, it does nothing.
    """
    with suppress(OSError, AttributeError):
        found = _MAPPED.search(Path("/proc/self/maps").read_text())
        if found is not None:
            switch = ctypes.CDLL(found.group(1)).opal_progress_set_yield_when_idle
            switch.argtypes, switch.restype = [ctypes.c_bool], ctypes.c_bool
            return bool(switch(False))
    return False
