"""The progress of a run while it lasts: a bar in a terminal, now and then a line in a file."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from hpcdml.observability.units import clock_text

_BAR_SECONDS = 0.1


class _Bar(tqdm):
    """tqdm without its watching thread: the bar is drawn by ``Progress.update`` and by nothing else."""

    monitor_interval = 0


# tqdm's own lock is one between processes as well, for which newer Pythons start a further process.
_Bar.set_lock(threading.RLock())


class Progress:
    """One bar where the stream is a terminal, else a line at most every ``interval`` seconds.

    A stream that can no longer be written (a closed pipe) silences the progress and never stops the run.
    """

    def __init__(
        self,
        total_samples: int | None,
        total_seconds: float | None,
        stream: TextIO | None = None,
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            total_samples: samples of all workers at which the run stops; None: no such limit.
            total_seconds: seconds at which it stops; None: no such limit. The limit that is nearer counts.
            stream: where to write; None: the standard error of this moment.
            interval: least seconds between two lines where the stream is no terminal.
            clock: monotonic seconds.
        """
        self._totals = (total_samples, total_seconds)
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._clock = clock
        self._bar: _Bar | None = None
        self._terminal = _is_terminal(self._stream)
        self._interval = _BAR_SECONDS if self._terminal else interval
        self._due = -math.inf
        self._latest: tuple[float, int, int, float, float | None, float | None, float | None] | None = None
        self._shown = True
        self._closed = False

    def update(
        self,
        seconds: float,
        rounds: int,
        samples: int,
        samples_per_second: float,
        loss: float | None = None,
        accuracy: float | None = None,
        idle: float | None = None,
    ) -> None:
        """Tell where the run is; may be called as often as one likes, and shows at most ten states per second.

        Args:
            seconds: since the start of training.
            rounds: versions of the global parameters made.
            samples: of all workers.
            samples_per_second: of all workers.
            loss: of the last local steps; None or nan: not known.
            accuracy: of the last evaluation; None or nan: there is none.
            idle: share of the workers' time that they were blocked, from 0 to 1, or None or nan.
        """
        self._latest = (seconds, rounds, samples, samples_per_second, loss, accuracy, idle)
        self._shown = False
        now = self._clock()
        if now >= self._due and not self._closed:
            self._due = now + self._interval
            self._show()

    def message(self, text: str) -> None:
        """Write one line that stays, above the bar where there is one."""
        with self._writing() as stream:
            if self._bar is not None:
                self._bar.clear()
            stream.write(text + "\n")
            stream.flush()
            if self._bar is not None:
                self._bar.refresh()

    def close(self) -> None:
        """Show the last state, where it was not shown, and leave the line."""
        if not self._closed:
            if not self._shown:
                self._show()
            with self._writing():
                if self._bar is not None:
                    self._bar.close()
            self._closed = True
            self._bar = None

    def _show(self) -> None:
        assert self._latest is not None
        self._shown = True
        seconds, rounds, samples, rate, loss, accuracy, idle = self._latest
        share = self._share(seconds, samples)
        facts = [f"round {rounds:,}", f"{rate:,.0f} samples/s"]
        if loss is not None and not math.isnan(loss):
            facts.append(f"loss {loss:.3g}")
        if accuracy is not None and not math.isnan(accuracy):
            facts.append(f"accuracy {accuracy:.3f}")
        if idle is not None and not math.isnan(idle):
            facts.append(f"idle {idle:.0%}")
        with self._writing() as stream:
            if self._terminal:
                self._draw(share, clock_text(seconds), facts)
            else:
                done = f" ({share:.0%})" if share is not None else ""
                stream.write(", ".join([f"{seconds:.1f} s{done}", f"{samples:,} samples", *facts]) + "\n")
                stream.flush()

    def _draw(self, share: float | None, elapsed: str, facts: list[str]) -> None:
        if self._bar is None:
            form = "{percentage:3.0f}%|{bar}| {desc}" if share is not None else "{desc}"
            # The delay keeps the constructor from drawing an empty bar; a given size keeps tqdm from looking for one.
            self._bar = _Bar(total=1.0, file=self._stream, bar_format=form, ncols=80, nrows=24, delay=math.inf)
            self._bar.delay = 0
        self._bar.ncols = _columns(self._stream)
        if share is not None:
            self._bar.n = share
        self._bar.set_description_str(f"{elapsed} " + " ".join(facts), refresh=False)
        self._bar.refresh()

    def _share(self, seconds: float, samples: int) -> float | None:
        """How much of the run is done, from 0 to 1: by the limit that will be met first."""
        total_samples, total_seconds = self._totals
        shares = []
        if total_samples:
            shares.append(samples / total_samples)
        if total_seconds:
            shares.append(seconds / total_seconds)
        return min(1.0, max(shares)) if shares else None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[TextIO]:
        """The stream; a failure of it ends the progress, and what comes later goes nowhere."""
        try:
            yield self._stream
        except (OSError, ValueError):
            self._stream, self._terminal, self._bar = io.StringIO(), False, None
            self._due = math.inf


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _columns(stream: TextIO) -> int:
    """The width of the terminal, less one for the cursor; tqdm would draw nothing where it says that it has none."""
    try:
        return max(1, (os.get_terminal_size(stream.fileno()).columns or 80) - 1)
    except (OSError, ValueError, AttributeError):
        return 79
