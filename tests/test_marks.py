"""A consistent state of all machines, taken while messages are under way, and runs that go on from it.

Every local step is a token. Wherever the mark meets a worker, each of its steps so far must be in exactly one place:
in the server's parameters, in the push that is under way, or among the worker's unsent steps.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import POLICIES, PolicyOptions
from hpcdml.protocol.messages import Global, Push
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Seal
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import Adopt, Exchange, SendPush, Stop, TakeUpdate, Train, Wait, Worker

Token = tuple[int, int]
Action = Any


@dataclass
class Node:
    """A worker with its steps that no push has taken yet, and the payload of its last push."""

    machine: Worker
    unsent: list[Token] = field(default_factory=list)
    payload: list[Token] = field(default_factory=list)
    mark: Global | None = None
    next: Action = field(default_factory=Wait)


@dataclass
class Saved:
    """A worker's part of the consistent state."""

    machine: dict[str, int]
    unsent: list[Token]
    push: Push | None
    payload: list[Token]


class Cluster:
    """Machines joined by queues in which messages keep their order, driven by a random schedule."""

    def __init__(self, policy: str, workers: int, schedule: random.Random) -> None:
        self.policy = make_policy(PolicyOptions(policy=policy, staleness=2))  # type: ignore[arg-type]
        self.random = schedule
        self.server = Server(self.policy, range(1, workers + 1))
        self.nodes = {rank: Node(Worker(rank, self.policy, workers)) for rank in self.server.live}
        self.up: dict[int, deque[tuple[Push, list[Token]]]] = {rank: deque() for rank in self.nodes}
        self.down: dict[int, deque[Global]] = {rank: deque() for rank in self.nodes}
        self.x: list[Token] = []
        self.saved: dict[int, Saved] = {}
        self.kept: tuple[dict[str, Any], list[Token]] | None = None

    def start(self) -> None:
        for rank in self.nodes:
            self._decide(rank)

    def resume(self, server: dict[str, Any], x: list[Token], workers: dict[int, Saved]) -> None:
        self.server.restore(server)
        self.x = list(x)
        for rank, saved in workers.items():
            node = self.nodes[rank]
            node.machine.restore(saved.machine)
            node.unsent = list(saved.unsent)
            if saved.push is not None:
                node.payload = list(saved.payload)
                self.up[rank].append((saved.push, node.payload))
            # What it would do after the step at whose end it was saved.
            self._decide(rank)
        self._answer(self.server.resume())

    def restart(self, server: dict[str, Any], samples: dict[int, int]) -> None:
        """Go on from the server's state alone, with nothing of the workers but their counts."""
        self.server.restart(server)
        for rank, node in self.nodes.items():
            counts = self.server.clock[rank], samples.get(rank, 0), self.server.sequence[rank]
            node.machine.restart(server["version"], server["samples"], *counts)
            self._decide(rank)

    def mark(self) -> None:
        """Save the server's state and let every worker save its own."""
        assert self.server.may_mark
        self.kept = (self.server.state(), list(self.x))
        for rank in self.nodes:
            self.down[rank].append(self.server.mark(rank))

    def turn(self) -> bool:
        """One random event; whether there was one to happen."""
        able = [rank for rank, node in self.nodes.items() if isinstance(node.next, Train)]
        events = [(self._step, r) for r in able] + [(self._up, r) for r in self.nodes if self.up[r]]
        events += [(self._down, r) for r in self.nodes if self.down[r]]
        if not events:
            return False
        event, rank = self.random.choice(events)
        event(rank)
        return True

    def _step(self, rank: int) -> None:
        node = self.nodes[rank]
        node.machine.stepped(1)
        node.unsent.append((rank, node.machine.clock))
        self._save(rank)
        self._decide(rank)

    def _down(self, rank: int) -> None:
        # A worker looks at headers only while it awaits one.
        node = self.nodes[rank]
        if not node.machine.awaiting or node.machine._message is not None:
            if isinstance(node.next, Train):
                self._step(rank)
            return
        message = self.down[rank].popleft()
        if message.mark:
            node.mark = message
            if isinstance(node.next, Wait):
                self._save(rank)
            return
        self._save(rank)
        node.machine.arrived(message)
        if isinstance(node.next, Wait):
            self._decide(rank)

    def _save(self, rank: int) -> None:
        node = self.nodes[rank]
        if node.mark is None:
            return
        push = node.machine.under_way(node.mark.answers)
        payload = list(node.payload) if push is not None else []
        self.saved[rank] = Saved(node.machine.state(), list(node.unsent), push, payload)
        node.mark = None

    def _decide(self, rank: int) -> None:
        node = self.nodes[rank]
        for action in node.machine.decide():
            if isinstance(action, (Exchange, TakeUpdate)):
                node.payload, node.unsent = node.unsent, []
            elif isinstance(action, SendPush):
                payload = node.payload if action.push.local_steps else []
                self.up[rank].append((action.push, list(payload)))
            elif isinstance(action, (Train, Wait, Stop)):
                node.next = action
            else:
                assert isinstance(action, Adopt)

    def _up(self, rank: int) -> None:
        push, payload = self.up[rank].popleft()
        assert len(payload) == push.local_steps
        self.x += payload
        self._answer(self.server.pushed(push))

    def _answer(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Seal):
                for rank in action.round.recipients:
                    self.down[rank].append(self.server.message(action.round, rank))


def begun(policy: str, workers: int, seed: int, turns: int) -> Cluster:
    """A cluster after so many events at least, where it may be marked."""
    cluster = Cluster(policy, workers, random.Random(seed))
    cluster.start()
    for _ in range(turns):
        cluster.turn()
    # A collective round has a clean cut only where a version was just made.
    while not cluster.server.may_mark or cluster.server.version == 0:
        cluster.turn()
    return cluster


def end(cluster: Cluster, steps: int) -> None:
    for _ in range(steps):
        assert cluster.turn(), "nobody can do anything any more"
    cluster._answer(cluster.server.request_stop())
    while not cluster.server.finished:
        assert cluster.turn(), "a worker never learned of the stop"


def finish(cluster: Cluster, steps: int) -> None:
    end(cluster, steps)
    for rank, node in cluster.nodes.items():
        mine = sorted(step for worker, step in cluster.x if worker == rank)
        assert mine == list(range(1, node.machine.clock + 1)), f"rank {rank}: steps lost or counted twice"


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), before=st.integers(0, 120))
def test_every_step_is_in_one_place_and_a_run_goes_on_from_there(
    policy: str, seed: int, workers: int, before: int
) -> None:
    cluster = begun(policy, workers, seed, before)
    cluster.mark()
    for _ in range(2000):
        if len(cluster.saved) == workers:
            break
        assert cluster.turn()
    assert len(cluster.saved) == workers
    assert cluster.kept is not None
    state, x = cluster.kept
    for rank, saved in cluster.saved.items():
        steps = [s for r, s in [*x, *saved.payload, *saved.unsent] if r == rank]
        assert sorted(steps) == list(range(1, saved.machine["clock"] + 1)), f"rank {rank}"
    finish(cluster, 100)
    again = Cluster(policy, workers, random.Random(seed + 1))
    again.resume(state, x, cluster.saved)
    finish(again, 200)
    assert again.server.version > state["version"]


def test_a_restart_keeps_the_counts_and_begins_at_the_version_that_it_is_given() -> None:
    policy = make_policy(PolicyOptions(policy="losp"))
    fresh = Worker(1, policy)
    fresh.restart(9, 100, clock=2, samples=16, sequence=1)
    assert not fresh.awaiting and fresh.unsent == 0
    assert fresh.decide() == [Train()]
    fresh.stepped(8)
    _, push, _ = fresh.decide()
    assert isinstance(push, SendPush)
    assert (push.push.version, push.push.sequence, push.push.local_steps, push.push.samples) == (9, 2, 1, 8)
    assert fresh.estimate == 108


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), before=st.integers(1, 3), after=st.integers(1, 5), turns=st.integers(0, 120))
def test_another_number_of_workers_goes_on_from_a_saved_state(
    policy: str, seed: int, before: int, after: int, turns: int
) -> None:
    """What was not in the parameters is dropped, nobody waits for a newcomer, and the counts go on."""
    cluster = begun(policy, before, seed, turns)
    state = cluster.server.state()
    again = Cluster(policy, after, random.Random(seed + 1))
    again.restart(state, state["clock"])
    end(again, 200)
    assert again.server.version > state["version"] and again.server.samples > state["samples"]
