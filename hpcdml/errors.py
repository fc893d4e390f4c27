"""The two kinds of failure that a user can meet, and the exit status of each."""

from __future__ import annotations

PREEMPTED = 75
"""Exit status of a run that a signal has ended after a checkpoint: it is to be resumed (EX_TEMPFAIL of sysexits.h)."""


class HpcdmlError(Exception):
    """A failure that is told in one line. ``status`` is the exit status of the process."""

    status = 1


class UsageError(HpcdmlError):
    """A mistake of the user: the message names the option, the value and what would be right."""

    status = 2


class MachineError(HpcdmlError):
    """A failure of the machine: a full disk, an unwritable folder, a lost rank."""

    status = 1
