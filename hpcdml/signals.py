"""Signals by their names in options."""

from __future__ import annotations

import signal

from hpcdml.errors import UsageError


def signal_numbers(names: str) -> list[int]:
    """The signals in a list such as ``TERM,USR1``; ``none``: none.

    Raises:
        UsageError: there is no such signal.
    """
    found = []
    for name in [] if names == "none" else names.split(","):
        full = "SIG" + name.strip().upper().removeprefix("SIG")
        if full not in signal.Signals.__members__:
            raise UsageError(f"--signals {names}: must be names of signals, as in TERM,USR1, or none")
        if full in ("SIGKILL", "SIGSTOP"):
            raise UsageError(f"--signals {names}: no process can act on {full}")
        found.append(int(signal.Signals[full]))
    return found
