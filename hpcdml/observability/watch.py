"""A run watched in a terminal: the same lines drawn again and again in their place."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TextIO

from hpcdml.errors import UsageError
from hpcdml.observability.live import Live
from hpcdml.observability.screen import screen
from hpcdml.storage.run_file import FILE_NAME

_PATIENCE = 3  # looks in a row that may fail while another run takes the place of the one that is watched


def show_once(path: str, stream: TextIO) -> None:
    """Write how the run stands, once.

    Raises:
        UsageError: there is no run, or its file is damaged.
    """
    stream.write("\n".join(_lines(Live(path), stream, None)) + "\n")
    stream.flush()


def watch(path: str, stream: TextIO, seconds: float) -> None:
    """Draw the run every so many seconds until it has finished; wait for it where it has not begun.

    Raises:
        UsageError: its file is damaged.
    """
    live, drawn, failed = Live(path), 0, 0
    while True:
        finished = False
        if not _there(path):
            lines = [f"waiting for a run in {path}; Ctrl-C stops watching"]
        else:
            try:
                now = live.look(time.time())
                finished, failed = now.finished, 0
                lines = screen(now, *_size(), _unicode(stream))
                lines += [] if finished else ["Ctrl-C stops watching, not the run"]
            except UsageError:
                failed += 1
                if failed >= _PATIENCE:
                    raise
                time.sleep(seconds)
                continue
        # Back to the first line of the last time; each line is cleared to its end, and what is left below it.
        up = f"\x1b[{drawn}F" if drawn else ""
        stream.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        stream.flush()
        drawn = len(lines)
        if finished:
            return
        time.sleep(seconds)


def _lines(live: Live, stream: TextIO, size: tuple[int, int] | None) -> list[str]:
    columns, _ = size or _size()
    return screen(live.look(time.time()), columns, 10_000, _unicode(stream))


def _there(path: str) -> bool:
    given = Path(path)
    return (given / FILE_NAME).exists() if given.is_dir() else given.exists()


def _size() -> tuple[int, int]:
    """Columns and lines that may be used: one less each, so that nothing wraps or scrolls."""
    size = shutil.get_terminal_size((80, 24))
    return max(size.columns - 1, 20), max(size.lines - 2, 5)


def _unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"
