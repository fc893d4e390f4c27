"""What the server took of its machine, kept as an event of the run."""

from __future__ import annotations

import re
import resource
import sys
import time
from dataclasses import dataclass

EVENT = "resources"
_TEXT = "CPU {cpu:.3f} s while serving, peak memory {memory:.3f} MB"
_PATTERN = re.compile(r"CPU (\S+) s while serving, peak memory (\S+) MB")


@dataclass(frozen=True)
class Resources:
    """CPU time of all threads of the process in seconds, and its peak resident memory in bytes since it began."""

    cpu_seconds: float
    peak_bytes: int

    def text(self) -> str:
        """The text of the event."""
        return _TEXT.format(cpu=self.cpu_seconds, memory=self.peak_bytes / 1e6)

    @classmethod
    def find(cls, events: list[tuple[float, int, str, str]]) -> Resources | None:
        """What the events of a run say; None if nothing."""
        for _, _, kind, text in reversed(events):
            match = _PATTERN.fullmatch(text) if kind == EVENT else None
            if match is not None:
                return cls(float(match[1]), round(float(match[2]) * 1e6))
        return None


def cpu_seconds() -> float:
    """CPU time of all threads of this process since it began, in seconds."""
    return time.process_time()


def peak_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
