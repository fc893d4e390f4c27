"""What a benchmark tells while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Record = tuple[dict[str, Any], Sequence[Sequence[Any]]]
"""One run: its figures by name, and its curve, ``(seconds, samples, accuracy, loss)`` of every evaluation."""


class Log:
    """Lines for whoever watches, and every run for the file of results.

    Args:
        tell: is called with a line.
        record: is called with every run.
    """

    def __init__(self, tell: Callable[[str], None], record: Callable[[Record], None] = lambda record: None) -> None:
        self._tell = tell
        self._record = record

    def __call__(self, line: str) -> None:
        self._tell(line)

    def run(self, values: dict[str, Any], curve: Sequence[Sequence[Any]] = ()) -> None:
        """A run has ended."""
        self._record((values, curve))
