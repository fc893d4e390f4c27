"""Workers that are left out while they keep silent, and come back: both state machines, at random moments."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import POLICIES, PolicyOptions
from hpcdml.protocol.messages import AFRESH, BACK, LOST, Global, Push
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Action, Back, Join, Seal
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import Adopt, SendPush, Train, Wait, Worker


@dataclass
class Cluster:
    """A server and its workers with messages between them, but no payload."""

    policy: str
    count: int
    staleness: int = 2
    up: dict[int, deque[Push]] = field(default_factory=dict)
    down: dict[int, deque[Global]] = field(default_factory=dict)
    trains: dict[int, bool] = field(default_factory=dict)
    back: list[int] = field(default_factory=list)
    afresh: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = make_policy(PolicyOptions(policy=self.policy, staleness=self.staleness))  # type: ignore[arg-type]
        self.server = Server(policy, range(1, self.count + 1))
        self.workers = {rank: Worker(rank, policy, self.count) for rank in range(1, self.count + 1)}
        for rank in self.workers:
            self.up[rank], self.down[rank], self.trains[rank] = deque(), deque(), True

    def act(self, rank: int) -> None:
        """Let a worker take what has arrived, and its next step if it trains."""
        worker = self.workers[rank]
        if worker.stopped:
            return
        if worker.awaiting and not worker.holds and self.down[rank]:
            worker.arrived(self.down[rank].popleft())
        elif self.trains[rank]:
            worker.stepped(16)
        else:
            return
        for action in worker.decide():
            if isinstance(action, SendPush):
                self.up[rank].append(action.push)
            elif isinstance(action, Adopt):
                assert action.version == worker.version
            elif isinstance(action, (Train, Wait)):
                self.trains[rank] = isinstance(action, Train)

    def deliver(self, rank: int) -> None:
        """The server looks at a worker's next push."""
        if self.up[rank]:
            self.carry_out(self.server.pushed(self.up[rank].popleft()))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Back):
                self.back.append(action.worker)
                assert self.server.membership(action.worker).flags == BACK
            elif isinstance(action, Join):
                assert action.push.worker in action.round.pushes
            elif isinstance(action, Seal):
                for rank in action.round.recipients:
                    message = self.server.message(action.round, rank)
                    self.down[rank].append(message)
                    if message.flags & AFRESH:
                        self.afresh.append(rank)

    def leave_out(self, rank: int) -> None:
        self.carry_out(self.server.leave_out(rank))
        assert self.server.membership(rank).flags == LOST

    def replace(self, rank: int) -> None:
        """A worker dies with all that is under way, and a new process takes its place."""
        self.up[rank].clear()
        self.down[rank].clear()
        self.carry_out(self.server.lost(rank))
        old, server = self.workers[rank], self.server
        new = self.workers[rank] = Worker(rank, old.policy, self.count)
        new.restart(server.version, server.samples, max(old.clock, server.clock[rank]), 0, server.sequence[rank])
        server.join(rank)
        self.up[rank].append(new.join())
        self.trains[rank] = False

    def finish(self) -> None:
        """Everybody speaks again; the run is stopped and must come to its end."""
        for _ in range(60 * self.count):
            for rank in self.workers:
                self.act(rank)
                self.deliver(rank)
        self.carry_out(self.server.request_stop())
        for _ in range(60 * self.count):
            for rank in self.workers:
                self.act(rank)
                self.deliver(rank)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(POLICIES), st.integers(2, 4), st.integers(0, 10**9))
def test_workers_that_fall_silent_at_any_moment_come_back_and_all_end(policy: str, count: int, seed: int) -> None:
    chance = random.Random(seed)
    cluster = Cluster(policy, count)
    server = cluster.server
    asleep: dict[int, int] = {}
    versions = 0
    for now in range(400):
        awake = [rank for rank in cluster.workers if asleep.get(rank, 0) <= now]
        rank = chance.choice(awake)
        (cluster.act if chance.random() < 0.6 else cluster.deliver)(rank)
        if chance.random() < 0.05 and len(server.live) > 1:
            victim = chance.choice(sorted(server.active))
            if chance.random() < 0.3:
                cluster.replace(victim)
            elif victim in server.awaited:
                asleep[victim] = now + chance.randrange(1, 60)
                versions = server.version
                cluster.leave_out(victim)
    cluster.finish()
    assert server.finished and not server.silent | server.joining
    assert all(worker.stopped for worker in cluster.workers.values())
    assert server.version >= versions
    # Whoever was let back in was told to go on afresh from the version that it was given.
    assert sorted(cluster.afresh) == sorted(cluster.back)


@pytest.mark.parametrize("policy", ["bsp", "losp"])
def test_a_worker_that_was_away_returns_between_two_rounds(policy: str) -> None:
    cluster = Cluster(policy, 3)
    for rank in (1, 2):
        cluster.act(rank)
        cluster.deliver(rank)
    assert cluster.server.version == 0
    cluster.leave_out(3)
    assert cluster.server.version == 1
    # It speaks while the others' next round is open, and has no part in it.
    cluster.act(1)
    cluster.act(1)
    cluster.deliver(1)
    cluster.act(3)
    cluster.deliver(3)
    assert cluster.server.silent == {3} and not cluster.back
    cluster.act(2)
    cluster.act(2)
    cluster.deliver(2)
    assert cluster.back == [3] and cluster.server.version == 2 and cluster.server.live == {1, 2, 3}
    assert cluster.down[3][0].flags == AFRESH and cluster.down[3][0].version == 2


def test_nobody_waits_for_a_worker_to_catch_up_that_was_away() -> None:
    cluster = Cluster("ssp", 2)
    cluster.leave_out(2)
    for _ in range(200):
        cluster.act(1)
        cluster.deliver(1)
    assert cluster.server.clock[1] > 50
    cluster.act(2)
    cluster.deliver(2)
    assert cluster.back == [2]
    before = cluster.server.clock[1]
    for _ in range(20):
        cluster.act(1)
        cluster.deliver(1)
    # It may be so far ahead of the other one, and no further.
    assert 0 < cluster.server.clock[1] - before <= cluster.staleness + 1
    assert cluster.server.clock[2] == 1
    # And so far the other one may be ahead of it, counted from where they were together.
    ahead = cluster.workers[1].clock - before
    for _ in range(60):
        cluster.act(2)
        cluster.deliver(2)
    assert ahead < cluster.workers[2].clock <= ahead + cluster.staleness + 2


def test_a_worker_that_hangs_after_its_last_push_is_waited_for_no_longer() -> None:
    cluster = Cluster("losp", 2)
    cluster.finish()
    assert cluster.server.ending == {1, 2} and cluster.server.finished
    cluster.leave_out(2)
    assert cluster.server.ending == {1} and cluster.server.silent == {2} and cluster.server.finished
    # It is not answered when the rest of what it has to send comes after all.
    cluster.carry_out(cluster.server.spoke(2))
    assert cluster.server.ending == {1, 2} and not cluster.server.silent and not cluster.back
