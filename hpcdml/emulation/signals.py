"""Signals that end a process: turned into exceptions, so that ``with`` blocks clean up, and held back meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_ALL = (signal.SIGINT, *_ENDING)


class EndingSignals:
    """Makes SIGTERM and SIGHUP raise ``SystemExit`` with status 128 + signal, where nobody else handles them.

    Python does as much for SIGINT by itself. Outside the main thread, which alone may set handlers, nothing changes.
    """

    def __init__(self) -> None:
        self._replaced: list[signal.Signals] = []

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _end)
                self._replaced.append(number)

    def restore(self) -> None:
        for number in self._replaced:
            signal.signal(number, signal.SIG_DFL)
        self._replaced.clear()


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back ending signals until the block is done: a clean-up must not be broken off by a second Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers: dict[signal.Signals, Any] = {}
    for each in _ALL:
        if signal.getsignal(each) not in (None, signal.SIG_IGN):
            handlers[each] = signal.signal(each, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for held, handler in handlers.items():
            signal.signal(held, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
