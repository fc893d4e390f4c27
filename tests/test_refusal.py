"""Poisoned updates in the simulator: they change nothing, are counted, and nobody waits because of them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import POLICIES, PolicyOptions
from hpcdml.protocol.chunks import ChunkSchedule, Discard, Operation
from hpcdml.protocol.messages import AFRESH, FINAL, STOP, Global, Push
from hpcdml.protocol.policies import Policy, make_policy
from hpcdml.protocol.refusal import IN_A_ROW, LEAST, RECENT, Gate
from hpcdml.protocol.rounds import Drop, Refuse, Round, Seal
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import Adopt, Forget, SendPush, Stop, Train, Worker
from hpcdml.simulation import Cluster, Network

CHUNKS, WIDTH = 3, 6


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return make_policy(
        PolicyOptions(
            policy=draw(st.sampled_from(POLICIES)),
            compensation=draw(st.sampled_from([0.0, 0.5, 1.0])),
            local_steps=draw(st.none() | st.integers(1, 5)),
            staleness=draw(st.integers(0, 5)),
            max_local_steps=draw(st.none() | st.integers(5, 8)),
        )
    )


class Poisoned:
    """A cluster in which every local step adds 1 to its worker's column, but some pushes are poisoned on the way out.

    The values of such a push are all ``bad``. With a limit to the norm that begins when the server knows enough.
    """

    def __init__(self, draw: st.DrawFn, policy: Policy, bad: float, limit: float | None, rate: float) -> None:
        workers = draw(st.integers(1, 4))
        speeds = draw(st.lists(st.sampled_from([0.1, 0.3, 1.0, 5.0]), min_size=workers, max_size=workers))
        self.random = np.random.default_rng(draw(st.integers(0, 1000)))
        self.bad, self.rate, self.poisoners = bad, rate, draw(st.integers(0, workers))
        self.injected: list[tuple[int, int]] = []
        self.good: Counter[int] = Counter()
        busy = draw(st.sampled_from([0.0, 0.5]))
        lose = []
        if draw(st.booleans()) and workers > 1:
            lose = [(draw(st.floats(0, 20)), draw(st.integers(1, workers)))]
        self.lost = {rank for _, rank in lose}
        self.cluster = Cluster(
            policy,
            workers,
            lambda rank, step: speeds[rank - 1] * self.random.uniform(0.5, 1.5),
            self._update,
            np.zeros((CHUNKS, WIDTH)),
            Network(draw(st.sampled_from([0.0, 0.01, 0.7])), draw(st.sampled_from([0.0, 0.05, 2.0]))),
            max_samples=draw(st.integers(1, 60) if limit is None else st.integers(60, 300)),
            max_update_norm=limit,
            lose=lose,
            room=lambda: bool(self.random.random() >= busy),
        )
        self._send_push = self.cluster._send_push
        self.cluster._send_push = self._poison  # type: ignore[method-assign]

    def _update(self, rank: int, step: int, model: np.ndarray) -> np.ndarray:
        change = np.zeros((CHUNKS, WIDTH))
        change[:, rank - 1] = -1.0
        return change

    def _poison(self, rank: int, push: Push) -> None:
        node = self.cluster.nodes[rank]
        gate = self.cluster.server.gate
        begun = gate.max_update_norm is None or len(gate.state()["recent"]) >= LEAST
        if push.local_steps and begun and rank <= self.poisoners and self.random.random() < self.rate:
            node.update = np.full_like(node.update, self.bad)
            self.injected.append((rank, push.sequence))
        elif push.local_steps:
            self.good[rank] += push.samples
        self._send_push(rank, push)


def runs(bad: float, rate: float = 0.3, limit: float | None = None) -> st.SearchStrategy[Poisoned]:
    @st.composite
    def build(draw: st.DrawFn) -> Poisoned:
        return Poisoned(draw, draw(policies()), bad, limit, rate)

    return build()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_poisoned_update_changes_nothing_and_nobody_waits(bad: float, data: st.DataObject) -> None:
    run = data.draw(runs(bad))
    cluster = run.cluster
    report = cluster.run()
    assert not report.mixed
    assert np.isfinite(report.x).all()
    refused = [(push.worker, push.sequence) for push in report.refused]
    assert set(refused) <= set(run.injected) and len(refused) == len(set(refused))
    if not run.lost:
        assert sorted(refused) == sorted(run.injected)
        assert cluster.server.samples == sum(run.good.values())
        if not cluster.server.policy.collective:
            # Every other update is in the parameters, whole and once.
            expected = [float(run.good[column + 1]) for column in range(WIDTH)]
            np.testing.assert_allclose(report.x, np.tile(expected, (CHUNKS, 1)))
        assert (report.x == report.x[0]).all()
    versions = [version for version, _ in report.rounds]
    assert versions == list(range(1, len(versions) + 1)) and len(versions) == cluster.server.version
    for _, contributors in report.rounds:
        assert contributors


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_only_one_worker_poisons_leaves_the_others_as_if_it_had_pushed_nothing(data: st.DataObject) -> None:
    """Worker 1 poisons everything: it is dropped, and the parameters are those of the others alone."""
    run = data.draw(runs(math.nan, rate=1.0))
    run.poisoners = 1
    if len(run.cluster.nodes) == 1:
        return
    report = run.cluster.run()
    assert (report.x[:, 0] == 0).all() and np.isfinite(report.x).all()
    mine = [push for push in report.refused if push.worker == 1]
    assert len(mine) <= IN_A_ROW
    assert report.dropped == ([1] if len(mine) == IN_A_ROW and not mine[-1].flags & FINAL else [])
    if report.dropped:
        # It may die before it hears of it, or afterwards.
        assert 1 not in run.cluster.server.live and (run.cluster.nodes[1].machine.stopped or 1 in run.lost)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_updates_far_larger_than_usual_are_refused_when_enough_is_known(data: st.DataObject) -> None:
    run = data.draw(runs(1e6, limit=50.0))
    report = run.cluster.run()
    assert (np.abs(report.x) < 1e5).all()
    if not run.lost:
        assert sorted((push.worker, push.sequence) for push in report.refused) == sorted(run.injected)


def push(worker: int, sequence: int, norm: float, steps: int = 1, flags: int = 0) -> Push:
    return Push(worker, flags, sequence, 0, steps, steps, sequence, norm=norm)


def test_the_gate_compares_norms_for_each_local_step_with_the_median() -> None:
    gate = Gate([1, 2], max_update_norm=10.0)
    for number in range(LEAST):
        assert gate.judge(push(1 + number % 2, number, 4.0 if number else 1e9, steps=2)) is None
    why = gate.judge(push(1, 1, 20.1))
    assert why == "its norm for each local step, 20.1, is 10.1 times the recent 2"
    assert gate.judge(push(1, 1, 20.1, steps=2)) is None
    for _ in range(RECENT):
        assert gate.judge(push(1, 1, 19.0)) is None
    assert gate.judge(push(1, 1, 100.0)) is None  # it follows what it lets through
    again = Gate([1, 3], max_update_norm=10.0)
    again.restore(gate.state())
    assert again.judge(push(3, 1, 191.0)) is not None and again.judge(push(3, 1, 189.0)) is None


def test_a_gate_without_a_bound_refuses_only_what_is_not_finite() -> None:
    gate = Gate([1])
    for number in range(2 * RECENT):
        assert gate.judge(push(1, number, 0.0)) is None
    assert gate.judge(push(1, 1, 1e30)) is None
    for norm in (math.nan, math.inf, -math.inf):
        assert gate.judge(push(1, 1, norm)) == "its update is not finite"
    zero = Gate([1], max_update_norm=2.0)
    for number in range(RECENT):
        assert zero.judge(push(1, number, 0.0)) is None
    assert zero.judge(push(1, 1, 1.0)) is None  # nothing is known of what to expect


@pytest.mark.parametrize("policy", POLICIES)
def test_a_worker_goes_on_afresh_without_what_it_did_since(policy: str) -> None:
    worker = Worker(1, make_policy(PolicyOptions(policy=policy, local_steps=1)))  # type: ignore[arg-type]
    worker.stepped(8)
    worker.decide()
    worker.stepped(8)
    worker.arrived(Global(AFRESH, 3, 1, 1, 100))
    assert worker.decide() == [Forget(), Adopt(3), Train()]
    assert worker.unsent == 0 and not worker.awaiting and worker.estimate == 100
    worker.stepped(8)
    sent = next(action.push for action in worker.decide() if isinstance(action, SendPush))
    assert (sent.version, sent.sequence, sent.local_steps, sent.samples, sent.clock) == (3, 2, 1, 8, 3)
    worker.stepped(8)
    worker.arrived(Global(AFRESH | STOP, 4, 2, 1, 200))
    forget, final, stop = worker.decide()
    assert forget == Forget() and stop == Stop() and isinstance(final, SendPush)
    assert (final.push.flags, final.push.local_steps, final.push.samples) == (FINAL, 0, 0)


def test_a_round_of_refused_pushes_makes_no_version() -> None:
    server = Server(make_policy(PolicyOptions(policy="bsp")), [1, 2], max_samples=100)
    actions = server.pushed(push(1, 1, math.nan))
    assert isinstance(actions[0], Refuse)
    actions = server.pushed(push(2, 1, math.nan))
    seal = actions[-1]
    assert isinstance(seal, Seal)
    assert (seal.round.version, seal.round.contributors, seal.round.recipients) == (0, (), (1, 2))
    assert server.samples == 0 and all(server.message(seal.round, w).afresh for w in (1, 2))
    server.pushed(push(1, 2, 1.0))
    seal = server.pushed(push(2, 2, math.nan))[-1]
    assert isinstance(seal, Seal)
    assert (seal.round.version, seal.round.contributors, seal.round.share) == (1, (1,), 0.5)
    assert server.samples == 1
    assert [server.message(seal.round, w).flags for w in (1, 2)] == [0, AFRESH]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_resumed_decides_alike(policy: str) -> None:
    """A worker that was held back at the mark learns afterwards that it is to go on afresh, and counts go on."""
    options = PolicyOptions(policy=policy, staleness=0)  # type: ignore[arg-type]
    server = Server(make_policy(options), [1, 2], max_update_norm=3.0)
    number = 0
    for number in range(1, LEAST):
        for worker in (1, 2):
            server.pushed(push(worker, number, 1.0))
    for worker in (1, 2):
        server.pushed(push(worker, number + 1, 5.0 if worker == 1 else 1.0))
    again = Server(make_policy(options), [1, 2], max_update_norm=3.0)
    again.restore(server.state())
    assert again.state() == server.state()
    assert again.gate.refused_last(1) and not again.gate.refused_last(2)
    for machine in (server, again):
        assert any(isinstance(action, Refuse) for action in machine.pushed(push(1, number + 2, 3.1)))
        assert not any(isinstance(action, Refuse) for action in machine.pushed(push(2, number + 2, 2.9)))
    restarted = Server(make_policy(options), [1, 2], max_update_norm=3.0)
    restarted.restart(server.state())
    assert not restarted.gate.refused_last(1)


@pytest.mark.parametrize("policy", ["bsp", "asp", "ssp", "losp"])
def test_a_worker_that_goes_on_sending_poison_is_told_to_stop(policy: str) -> None:
    server = Server(make_policy(PolicyOptions(policy=policy, staleness=100)), [1, 2])  # type: ignore[arg-type]
    dropped: list[int] = []
    for number in range(1, IN_A_ROW + 1):
        actions = server.pushed(push(1, number, math.nan)) + server.pushed(push(2, number, 1.0))
        dropped += [number for action in actions if isinstance(action, Drop)]
    assert dropped == [IN_A_ROW]
    stops = [a.round for a in actions if isinstance(a, Seal) and a.round.stop]
    assert [r.recipients for r in stops] == [(1,)]
    assert server.message(stops[0], 1).flags == STOP | AFRESH
    assert server.active == {2} and server.live == {2} and server.may_mark
    last = server.pushed(push(1, IN_A_ROW + 1, 0.0, steps=0, flags=FINAL))
    assert isinstance(last[-1], Seal) and last[-1].round.recipients == () and not server.finished
    actions = server.pushed(push(2, IN_A_ROW + 1, 1.0))
    assert any(isinstance(a, Seal) and a.round.recipients == (2,) for a in actions)
    server.request_stop()
    server.pushed(push(2, IN_A_ROW + 2, 0.0, steps=0, flags=FINAL))
    assert server.finished


def test_chunks_of_a_refused_push_are_thrown_away_in_their_turn() -> None:
    """Two pushes follow one another without the round's end in between, and all of the chunks are there at once."""
    schedule = ChunkSchedule(1)
    refused, taken = Round((1,), refused={1}), Round((1,))
    for round_, number in ((refused, 1), (taken, 2)):
        round_.pushes[1] = push(1, number, 1.0)
        schedule.received(1)
    for round_ in (refused, taken):
        schedule.join(round_, 1)
        round_.sealed = True
    found: list[Operation] = list(schedule.operations(lambda r, c: True))
    assert [type(operation).__name__ for operation in found] == ["Discard", "Done", "Add", "Close", "Done"]
    assert schedule.idle
    other = ChunkSchedule(2)
    other.join(refused, 1)
    assert list(other.operations(lambda r, c: True))[-1] is not None and not other.idle
    other.received(1)
    assert list(other.operations(lambda r, c: True)) == [Discard(1)]
    other.lost(1)
    assert other.idle
