"""The ranges of a benchmark's options."""

from __future__ import annotations

from typing import Any

from hpcdml.config import flag
from hpcdml.errors import UsageError


def need(options: Any, name: str, right: bool, what: str) -> None:
    """Make sure that an option's value is right.

    Args:
        options: the options, a dataclass; ``name`` is one of its numbers.
        what: what the value must be, for the message.

    Raises:
        UsageError: it is not.
    """
    if not right:
        raise UsageError(f"{flag(name)} {getattr(options, name):g}: must be {what}")


def need_counts(options: Any, *names: str) -> None:
    """Make sure that options are at least 1.

    Raises:
        UsageError: one is not.
    """
    for name in names:
        need(options, name, getattr(options, name) >= 1, "at least 1")
