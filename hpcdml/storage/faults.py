"""Failures on request: tests kill the writer of a file, or fail its disk, at any chosen step of the writing.

The environment variable ``HPCDML_FAULT`` says what happens and when: ``kill:7`` ends the process by SIGKILL at the
seventh step that it comes to, ``full:7`` and ``io:7`` fail that step as a full and as a broken disk do. With
``count:FILE`` the names of the steps are appended to a file, one a line, so that a test knows how many there are.
"""

from __future__ import annotations

import errno
import os
import signal
import threading

VARIABLE = "HPCDML_FAULT"

_ERRORS = {"full": errno.ENOSPC, "io": errno.EIO}
_lock = threading.Lock()
_passed = 0


def point(step: str) -> None:
    """Come to a step of writing a file; does nothing unless a test asked for a failure here.

    Raises:
        OSError: the failure that was asked for.
    """
    wish = os.environ.get(VARIABLE)
    if not wish:
        return
    global _passed
    with _lock:
        _passed += 1
        number = _passed
    what, _, argument = wish.partition(":")
    if what == "count":
        with open(argument, "a") as file:
            file.write(f"{step}\n")
    elif number == int(argument):
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(_ERRORS[what], os.strerror(_ERRORS[what]))
