"""Who is left out for keeping silent, and who is not: the server's own parts without MPI, by a clock of its own."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest

from hpcdml.config import PolicyOptions
from hpcdml.mpi.peer import WINDOW
from hpcdml.protocol.chunks import Add, ChunkSchedule, Close, Discard, Done
from hpcdml.protocol.messages import BACK, Global, Push
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Action, Back, Join, Round, Seal
from hpcdml.protocol.server import Server
from hpcdml.training import membership
from hpcdml.training.membership import Membership

CHUNKS = 20
TICK, LOOK = 0.001, 0.01


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Link:
    """The server's end of the connection to one worker: ``to_come`` chunks are to come from it, ``sends`` go to it."""

    def __init__(self) -> None:
        self.heard = 0.0
        self.arrived = self.released = self.to_come = 0
        self.sends: deque[float] = deque()
        self.hangs = False


class Run:
    """The server of a run whose workers do what the test says; it is also its channel."""

    def __init__(self, clock: Clock, policy: str, workers: int, least: int = 1, chunk_seconds: float = 0.0005) -> None:
        self.clock = clock
        self.chunk_seconds = chunk_seconds
        ranks = range(1, workers + 1)
        options = PolicyOptions(policy=policy, staleness=1)  # type: ignore[arg-type]
        self.machine = Server(make_policy(options), ranks)
        self.schedule = ChunkSchedule(CHUNKS)
        self.links = {rank: Link() for rank in ranks}
        self.sequence = dict.fromkeys(ranks, 0)
        self.told: list[tuple[int, str]] = []
        self.ended: list[str] = []
        self.words: list[tuple[int, Global]] = []
        self.owes: float | None = None
        self.pending = 0
        self._looked = 0.0
        nothing = SimpleNamespace(lost=lambda worker: None, joined=lambda worker: None)
        self.membership = Membership(
            self.machine,
            self.schedule,
            self,  # type: ignore[arg-type]
            nothing,  # type: ignore[arg-type]
            self.carry_out,
            lambda worker, kind, text: self.told.append((worker, kind)),
            self.ended.append,
            lambda worker: self.owes,
            lambda worker: None,
            lambda: self.pending,
            dict.fromkeys(range(workers + 1), "host"),
            least,
            1.0,
        )

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Join):
                self.schedule.join(action.round, action.push.worker)
            elif isinstance(action, Seal):
                self.schedule.seal(action.round)
            elif isinstance(action, Back):
                self.membership.back(action.worker)

    def push(self, worker: int, clock: int = 1, steps: int = 1, chunks: int = CHUNKS) -> None:
        """A worker pushes, and sends so many chunks of it before it hangs, if it does."""
        self.sequence[worker] += 1
        self.links[worker].heard = self.clock.now
        self.links[worker].to_come += chunks
        self.carry_out(self.machine.pushed(Push(worker, 0, self.sequence[worker], 0, steps, 16, clock)))

    def go_on(self, seconds: float, *heard: int) -> None:
        """Let time pass, in which records come from some workers."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += TICK
            for worker in heard:
                self.links[worker].heard = self.clock.now
            for worker, link in self.links.items():
                self._move(worker, link)
            self._work()
            if self.clock.now >= self._looked + LOOK:
                self._looked = self.clock.now
                if self.membership.check():
                    self._work()

    def has_room(self, worker: int) -> bool:
        return len(self.links[worker].sends) < WINDOW

    def receives(self, worker: int) -> bool:
        return self.links[worker].arrived < self.links[worker].released + WINDOW

    def heard(self, worker: int) -> float:
        return self.links[worker].heard

    def send_word(self, worker: int, message: Global) -> None:
        self.words.append((worker, message))

    def _move(self, worker: int, link: Link) -> None:
        if link.hangs:
            return
        if link.to_come and self.receives(worker):
            link.to_come, link.arrived, link.heard = link.to_come - 1, link.arrived + 1, self.clock.now
            self.schedule.received(worker)
            self.membership.heard(worker)
        if link.sends and self.clock.now - max(link.sends[0], link.heard) >= self.chunk_seconds:
            link.sends.popleft()
            link.heard = self.clock.now

    def _room(self, round_: Round, chunk: int) -> bool:
        return round_.settled or all(w in self.machine.silent or self.has_room(w) for w in round_.recipients)

    def _work(self) -> None:
        for operation in self.schedule.operations(self._room):
            if isinstance(operation, Add) and not operation.alone:
                for worker in operation.workers:
                    self._release(worker)
            elif isinstance(operation, Discard):
                self._release(operation.worker)
            elif isinstance(operation, Close):
                if operation.alone and operation.contributors:
                    self._release(operation.contributors[0])
                for worker in operation.round.recipients if not operation.round.stop else ():
                    if not self.links[worker].sends:
                        self.links[worker].heard = self.clock.now
                    self.links[worker].sends.append(self.clock.now)
            elif isinstance(operation, Done):
                self.membership.asked(operation.round.recipients)

    def _release(self, worker: int) -> None:
        if not self.receives(worker):
            self.links[worker].heard = self.clock.now
        self.links[worker].released += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(membership, "time", clock)
    return clock


@pytest.mark.parametrize("policy", ["bsp", "asp", "local-sgd", "losp"])
def test_whoever_waits_for_one_that_hangs_in_the_midst_of_its_push_is_not_silent(policy: str, clock: Clock) -> None:
    run = Run(clock, policy, 3)
    run.push(1, chunks=7)
    run.push(2)
    run.push(3)
    run.go_on(1.5)
    assert run.told == [(1, "silent")] and run.machine.live == {2, 3}


def test_whoever_waits_for_a_slow_one_is_not_silent_and_hears_that_the_server_lives(clock: Clock) -> None:
    run = Run(clock, "local-sgd", 2, least=2)
    run.push(2, steps=8)
    run.go_on(5.0, 1)
    assert not run.told and not run.ended
    assert {worker for worker, _ in run.words} == {2} and len(run.words) >= 4
    assert all(message.flags == BACK and message.answers == worker for worker, message in run.words)


def test_whoever_was_kept_waiting_has_its_time_to_take_the_answer(clock: Clock) -> None:
    run = Run(clock, "ssp", 3, chunk_seconds=0.017)
    for worker in (1, 2, 3):
        run.push(worker)
    run.go_on(0.6)
    run.push(1, clock=4)
    run.go_on(1.7, 2, 3)
    assert run.machine.awaited == {2, 3}
    run.push(2, clock=4)
    run.push(3, clock=4)
    run.go_on(0.9)
    assert not run.told
    # One that does not take it is found out.
    run.push(1, clock=5)
    run.go_on(0.03, 2, 3)
    assert run.schedule.answering(1) and not run.has_room(1)
    run.links[1].hangs = True
    run.go_on(1.5, 2, 3)
    assert run.told == [(1, "silent")]


def test_a_new_process_counts_from_its_start_to_its_first_round(clock: Clock) -> None:
    run = Run(clock, "bsp", 3, least=3)
    run.pending = 1
    run.membership.lost(1)
    assert run.told == [(1, "lost")] and not run.ended
    run.pending, run.links[1] = 0, Link()
    run.membership.joined(1)
    run.push(2)
    run.go_on(0.1, 3)
    run.push(1, steps=0, chunks=0)
    run.go_on(0.5, 3)  # the round of the others is still open
    assert not run.ended
    run.push(3)
    run.go_on(0.1)
    assert run.told[1:] == [(1, "back")] and not run.ended


def test_a_new_process_that_does_not_come_counts_no_longer(clock: Clock) -> None:
    run = Run(clock, "losp", 3, least=3)
    run.pending = 1
    run.membership.lost(1)
    run.go_on(0.5, 2, 3)
    assert not run.ended
    run.pending = 0
    run.go_on(0.1, 2, 3)
    assert run.ended and set(run.ended) == {"2 workers are left, fewer than --min-workers 3"}


def test_a_server_that_was_stopped_itself_blames_nobody(clock: Clock) -> None:
    run = Run(clock, "bsp", 3)
    run.go_on(0.5)
    clock.now += 100.0
    run.go_on(0.4)
    assert not run.told
    run.push(1)
    run.push(2)
    run.go_on(0.5)
    assert run.told == [(3, "silent")]


def test_a_worker_that_is_ending_has_more_time_for_its_state(clock: Clock) -> None:
    run = Run(clock, "losp", 2)
    for worker in (1, 2):
        run.push(worker)
    run.go_on(0.1)
    run.carry_out(run.machine.request_stop())
    for worker in (1, 2):
        run.carry_out(run.machine.pushed(Push(worker, 1, 2, 1, 0, 0, 1)))
    assert run.machine.ending == {1, 2}
    run.owes = 3.0
    run.go_on(2.5)
    assert not run.told
    run.go_on(1.0)
    assert sorted(run.told) == [(1, "silent"), (2, "silent")]
