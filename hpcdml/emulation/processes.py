"""Finds and kills processes by the namespace that they are in, or by a mark in their environment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

KILL_SECONDS = 10.0  # a killed process may still be freeing its memory
NAMESPACES = Path("/run/netns")


def in_namespaces(names: Iterable[str]) -> list[int]:
    """The numbers of all processes in the named network namespaces, this process left out."""
    wanted = set()
    for name in names:
        with suppress(OSError):
            wanted.add(_identity(NAMESPACES / name))
    return [pid for pid in _all() if _is_in(pid, wanted)]


def with_mark(name: str, value: str) -> list[int]:
    """The numbers of all processes that were started with an environment variable of that value, this one left out."""
    needle = f"{name}={value}".encode()
    found = []
    for pid in _all():
        with suppress(OSError):  # gone meanwhile
            if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def wait_for_none(find: Callable[[], list[int]], seconds: float) -> list[int]:
    """Wait until ``find`` finds no process, at most so many seconds; returns those that are left."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def kill_all(find: Callable[[], list[int]]) -> list[int]:
    """Kill what ``find`` finds until it finds no more, new ones included; returns those that cannot be killed."""

    def kill() -> list[int]:
        found = find()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    return wait_for_none(kill, KILL_SECONDS)


def _all() -> list[int]:
    own = os.getpid()
    return [pid for entry in os.listdir("/proc") if entry.isdigit() and (pid := int(entry)) != own]


def _is_in(pid: int, wanted: set[tuple[int, int]]) -> bool:
    with suppress(OSError):  # gone meanwhile, or a zombie, which is in none
        return _identity(Path(f"/proc/{pid}/ns/net")) in wanted
    return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
