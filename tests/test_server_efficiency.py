"""What makes the server cheap: how it waits, the order of its work, and the memory of its sums."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from hpcdml.mpi import backoff
from hpcdml.mpi.backoff import Backoff
from hpcdml.mpi.tempo import SHARE
from hpcdml.observability.resources import EVENT, Resources, peak_bytes
from hpcdml.parameters import FlatModel
from hpcdml.protocol.chunks import Add, ChunkSchedule, Close, Done, Operation
from hpcdml.protocol.messages import Push
from hpcdml.protocol.rounds import Round
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.outer import OuterSgd


class Clock:
    """In place of ``time`` in ``backoff``: time passes by sleeping and by ``advance``."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(backoff, "time", clock)

    def yielded() -> None:
        clock.now += 1e-6

    monkeypatch.setattr(backoff.os, "sched_yield", yielded)
    return clock


@pytest.mark.parametrize("interval", [1e-5, 3e-4, 2e-3])
def test_a_wait_adds_at_most_an_eighth_to_the_time_between_two_events(clock: Clock, interval: float) -> None:
    waiting = Backoff()
    late: list[float] = []
    for _ in range(200):
        event = clock.now + interval
        clock.sleeps.clear()
        while clock.now < event:
            waiting.wait()
        late.append(clock.now - event)
        waiting.reset()
    assert max(late[100:]) <= 1.2 * SHARE * interval + 1e-6
    # Few polls where events are slow, and none but yields where they are quick.
    assert len(clock.sleeps) <= 12
    assert bool(clock.sleeps) == (interval > 1e-4)


def test_a_silence_makes_sleeps_longer_to_a_bound_and_is_forgotten(clock: Clock) -> None:
    waiting = Backoff(longest=1e-3)
    for _ in range(1000):
        waiting.wait()
    assert clock.sleeps[-1] == 1e-3 and clock.sleeps == sorted(clock.sleeps)
    for _ in range(40):  # chunk after chunk
        waiting.reset()
        clock.now += 1e-5
    clock.sleeps.clear()
    waiting.reset()
    waiting.wait()
    assert all(pause < 1e-4 for pause in clock.sleeps)


def test_a_sleep_is_as_long_as_asked_for() -> None:
    backoff.sleep_exactly()
    begin = time.perf_counter()
    took = [0.0] * 200
    for i in range(200):
        time.sleep(1e-5)
        took[i], begin = time.perf_counter() - begin, time.perf_counter()
    # Without it the timer's slack alone makes it 60 us.
    assert min(took) < 5e-5


def two_workers(chunks: int) -> tuple[ChunkSchedule, Round]:
    schedule, round_ = ChunkSchedule(chunks), Round((1, 2))
    for worker in (1, 2):
        round_.pushes[worker] = Push(worker, 0, 1, 0, 1, 1, 1)
        schedule.join(round_, worker)
    round_.sealed, round_.recipients = True, (1, 2)
    schedule.seal(round_)
    return schedule, round_


def words(operations: list[Operation]) -> list[str]:
    names = {Add: lambda o: f"add {o.workers} {o.chunk}", Close: lambda o: f"close {o.chunk}", Done: lambda o: "done"}
    return [names[type(operation)](operation) for operation in operations]


def test_a_chunk_is_finished_before_the_next_one_is_begun() -> None:
    schedule, _ = two_workers(3)
    for worker in (2, 2, 1, 1):
        schedule.received(worker)
    assert words(list(schedule.operations(lambda r, c: True))) == [
        *("add (1, 2) 0", "close 0"),
        *("add (1, 2) 1", "close 1"),
    ]
    schedule.received(1)
    assert words(list(schedule.operations(lambda r, c: True))) == ["add (1,) 2"]
    schedule.received(2)
    assert words(list(schedule.operations(lambda r, c: True))) == ["add (2,) 2", "close 2", "done"]
    assert schedule.idle


def test_without_room_chunks_are_added_and_closed_later() -> None:
    schedule, _ = two_workers(2)
    for worker in (1, 1, 2, 2):
        schedule.received(worker)
    assert words(list(schedule.operations(lambda r, c: False))) == ["add (1, 2) 0", "add (1, 2) 1"]
    assert words(list(schedule.operations(lambda r, c: c == 0))) == ["close 0"]
    assert words(list(schedule.operations(lambda r, c: True))) == ["close 1", "done"]


def test_sums_take_the_memory_of_chunks_under_way_and_not_of_a_model() -> None:
    flat = FlatModel(nn.Linear(64, 64), 1024)
    aggregator = Aggregator(flat.layout, OuterSgd(1.0))
    sizes = [piece.numel() for piece in aggregator.x.chunks]
    assert len(sizes) > 10
    places = set()
    for _ in range(2):
        for chunk, size in enumerate(sizes):
            aggregator.add(chunk, [(torch.ones(size), 1.0)], first=True)
            aggregator.add(chunk, [(torch.ones(size), 1.0)], first=False)
            places.add(aggregator._sums[chunk].data_ptr())
            aggregator.close(chunk, 2.0, 1.0)
    assert len(places) == len(set(sizes))  # one for whole chunks, one for a last one that is shorter
    for segment in aggregator.x.segments:
        torch.testing.assert_close(segment, torch.full_like(segment, -2.0))


def test_resources_are_found_in_what_they_tell() -> None:
    used = Resources(1.25, 1_234_000_000)
    events = [(0.0, 0, "started", ""), (2.0, 0, EVENT, used.text()), (2.0, 0, "finished", "")]
    assert Resources.find(events) == used
    assert Resources.find(events[:1]) is None
    # At least this process, and less than any machine of today has.
    assert 20e6 < peak_bytes() < 1e14
