"""The progress of a run on streams that are a terminal, a file, and broken."""

from __future__ import annotations

import fcntl
import io
import math
import os
import struct
import termios
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from hpcdml.observability import Progress


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A pseudo-terminal of a given size; ``read`` gives what was written to it."""

    def __init__(self, rows: int, columns: int) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        os.set_blocking(self.master, False)
        self.output = b""

    def read(self) -> str:
        try:
            while True:
                self.output += os.read(self.master, 65536)
        except BlockingIOError:
            return self.output.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminals() -> Iterator[Any]:
    made: list[Terminal] = []

    def make(rows: int, columns: int) -> Terminal:
        made.append(Terminal(rows, columns))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


def state(progress: Progress, seconds: float, **changes: Any) -> None:
    figures = {"rounds": 7, "samples": 250, "samples_per_second": 1234.5, "loss": 0.5, "accuracy": 0.9, "idle": 0.01}
    progress.update(seconds, **{**figures, **changes})


def test_a_file_gets_a_line_every_two_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, None, stream, clock=clock)
    assert stream.getvalue() == ""
    for i in range(40):
        state(progress, i * 0.125, rounds=i)
        clock.now += 0.125
    progress.message("worker 2 is lost")
    progress.close()
    progress.close()
    lines = stream.getvalue().splitlines()
    figures = "1,234 samples/s, loss 0.5, accuracy 0.900, idle 1%"
    assert lines[0] == f"0.0 s (25%), 250 samples, round 0, {figures}"
    assert [line.split(" ")[0] for line in lines] == ["0.0", "2.0", "4.0", "worker", "4.9"]
    assert "\r" not in stream.getvalue()


def test_the_interval_is_an_argument() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(None, None, stream, interval=0.5, clock=clock)
    for _ in range(10):
        state(progress, clock.now - 100)
        clock.now += 0.25
    assert len(stream.getvalue().splitlines()) == 5
    assert "(" not in stream.getvalue()  # no limit: no share


def test_what_is_not_known_is_left_out() -> None:
    stream = io.StringIO()
    progress = Progress(None, 10.0, stream)
    state(progress, 5.0, loss=math.nan, accuracy=None, idle=math.nan)
    assert stream.getvalue() == "5.0 s (50%), 250 samples, round 7, 1,234 samples/s\n"


def test_the_nearer_limit_counts_and_nothing_is_above_100_percent() -> None:
    for samples, seconds, share in ((250, 9.0, "90%"), (800, 1.0, "80%"), (2000, 1.0, "100%")):
        stream = io.StringIO()
        state(Progress(1000, 10.0, stream), seconds, samples=samples)
        assert f"({share})" in stream.getvalue()


def test_nothing_is_shown_twice_at_the_end() -> None:
    stream = io.StringIO()
    progress = Progress(1000, None, stream)
    state(progress, 1.0)
    progress.close()
    assert len(stream.getvalue().splitlines()) == 1
    empty = io.StringIO()
    Progress(1000, None, empty).close()
    assert empty.getvalue() == ""


def test_fast_calls_return_at_once() -> None:
    class Counting(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Counting.writes += 1
            return super().write(text)

    clock = Clock()
    progress = Progress(1000, None, Counting(), clock=clock)
    for _ in range(10000):
        state(progress, 1.0)
        clock.now += 1e-5
    assert Counting.writes == 1


def test_a_terminal_gets_one_bar(terminals: Any) -> None:
    terminal = terminals(24, 80)
    clock = Clock()
    threads = threading.active_count()
    progress = Progress(1000, None, terminal.stream, clock=clock)
    for i in range(20):
        state(progress, 60 + i, samples=50 * i)
        clock.now += 0.05
    progress.message("worker 2 is lost")
    progress.close()
    text = terminal.read()
    assert "\x1b" not in text
    lines = text.split("\r\n")
    assert len(lines) == 3 and lines[2] == ""  # the message, the bar, and nothing after it
    drawn = lines[0].split("\r")
    assert drawn[-1] == "worker 2 is lost"
    bars = [line for line in drawn if "%" in line]
    assert 9 <= len(bars) <= 11  # 20 states in a second
    assert bars[0].startswith("  0%|") and all(len(line) <= 79 for line in bars)
    last = lines[1].split("\r")[-1]
    assert last.startswith(" 95%|") and "01:19 round 7 1,234 samples/s loss 0.5" in last
    assert threading.active_count() == threads


@pytest.mark.parametrize("columns", [0, 1, 20, 300])
def test_terminals_of_any_width(terminals: Any, columns: int) -> None:
    terminal = terminals(24, columns)
    progress = Progress(1000, None, terminal.stream)
    state(progress, 3661.0)
    progress.close()
    text = terminal.read().strip("\r\n").split("\r")[-1]
    assert len(text) <= (columns or 80) and text
    assert columns in (1, 20) or "1:01:01 round 7" in text


def test_a_terminal_without_a_limit(terminals: Any) -> None:
    terminal = terminals(24, 80)
    progress = Progress(None, None, terminal.stream)
    state(progress, 1.0)
    progress.message("hello")
    progress.close()
    text = terminal.read()
    assert "00:01 round 7" in text and "hello\r\n" in text and "|" not in text


def test_a_broken_stream_never_stops_a_run(terminals: Any) -> None:
    read, write = os.pipe()
    os.close(read)
    pipe = os.fdopen(write, "w", buffering=1)
    closed = io.StringIO()
    closed.close()
    terminal = terminals(24, 80)
    for stream in (pipe, closed, terminal.stream):
        clock = Clock()
        progress = Progress(1000, None, stream, clock=clock)
        if stream is terminal.stream:
            state(progress, 0.0)
            terminal.stream.close()
        for i in range(5):
            state(progress, float(i))
            progress.message("hello")
            clock.now += 10
        progress.close()
        progress.message("after the end")
    with pytest.raises(BrokenPipeError):
        pipe.close()


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(None, None)
    state(progress, 1.0)
    progress.close()
    progress.message("done")
    assert capsys.readouterr().err.splitlines()[1:] == ["done"]
