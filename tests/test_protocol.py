"""Properties of the protocol, in the simulator: random speeds, delays, policies and losses of workers, without MPI."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdml.config import POLICIES, PolicyOptions
from hpcdml.protocol.chunks import Add, ChunkSchedule, Close, Done
from hpcdml.protocol.messages import FINAL, HEADER_BYTES, STOP, Global, Push, StrayMessage
from hpcdml.protocol.policies import Losp, make_policy
from hpcdml.protocol.rounds import Round
from hpcdml.protocol.server import ProtocolError, Server
from hpcdml.protocol.worker import Worker
from hpcdml.simulation import Cluster, Network, Report

CHUNKS, WIDTH = 3, 4
COLLECTIVE = ("bsp", "local-sgd", "diloco", "osp", "losp")


def policy_options() -> st.SearchStrategy[PolicyOptions]:
    return st.builds(
        PolicyOptions,
        policy=st.sampled_from(POLICIES),
        compensation=st.sampled_from([0.0, 0.5, 1.0]),
        local_steps=st.none() | st.integers(1, 5),
        staleness=st.integers(0, 5),
        max_local_steps=st.none() | st.integers(1, 8),
    )


@st.composite
def clusters(draw: st.DrawFn, losses: bool = False, options: PolicyOptions | None = None) -> Cluster:
    """A run in which every local step adds one to a counter of its own worker, in every chunk."""
    workers = draw(st.integers(1, 5))
    speeds = draw(st.lists(st.sampled_from([0.1, 0.3, 1.0, 5.0]), min_size=workers, max_size=workers))
    jitter = np.random.default_rng(draw(st.integers(0, 1000)))
    busy = draw(st.sampled_from([0.0, 0.3, 0.8]))
    network = Network(draw(st.sampled_from([0.0, 0.01, 0.7])), draw(st.sampled_from([0.0, 0.05, 2.0])))
    lose = []
    if losses:
        lost = draw(st.lists(st.integers(1, workers), max_size=workers - 1, unique=True))
        lose = [(draw(st.floats(0, 20)), rank) for rank in lost]

    def update(rank: int, step: int, model: np.ndarray) -> np.ndarray:
        change = np.zeros((CHUNKS, WIDTH))
        change[:, (rank - 1) % WIDTH] = -1.0
        return change

    return Cluster(
        make_policy(options or draw(policy_options())),
        workers,
        lambda rank, step: speeds[rank - 1] * jitter.uniform(0.5, 1.5),
        update,
        np.zeros((CHUNKS, WIDTH)),
        network,
        max_samples=draw(st.integers(1, 60)),
        lose=lose,
        room=lambda: bool(jitter.random() >= busy),
    )


@settings(max_examples=300, deadline=None)
@given(clusters())
def test_every_update_enters_exactly_once_and_nobody_deadlocks(cluster: Cluster) -> None:
    report = cluster.run()
    assert not report.mixed
    # Collective rounds average with equal weights; every other push counts in full.
    share = 1.0
    if cluster.server.policy.collective:
        share = 0.0
    steps = np.zeros(WIDTH)
    for rank, node in cluster.nodes.items():
        steps[(rank - 1) % WIDTH] += node.machine.clock
        assert node.machine.stopped and node.machine.unsent == 0
    if share:
        np.testing.assert_allclose(report.x, np.tile(steps, (CHUNKS, 1)))
    else:
        # Each round divides by its contributors; with one worker that is the whole.
        assert (report.x >= 0).all() and (report.x[:, 0] == report.x[0, 0]).all()
        if len(cluster.nodes) == 1:
            np.testing.assert_allclose(report.x[0, 0], cluster.nodes[1].machine.clock)
    assert cluster.server.samples == sum(node.machine.samples for node in cluster.nodes.values())
    versions = [version for version, _ in report.rounds]
    assert versions == list(range(1, len(versions) + 1))


@settings(max_examples=200, deadline=None)
@given(clusters(), st.sampled_from(["steps", "samples"]))
def test_weights_by_steps_make_the_sum_of_all_updates_exact(cluster: Cluster, weighting: str) -> None:
    """With weights w_i the global parameters move by sum(w_i d_i) / sum(w_i) in a round, chunk by chunk the same."""
    cluster.server.weighting = weighting
    expected = np.zeros(WIDTH)
    pushes: dict[int, list] = {}
    seal = cluster.server._seal

    def watch(current):  # type: ignore[no-untyped-def]
        actions = seal(current)
        total = sum(cluster.server.weight(current.pushes[w]) for w in current.contributors)
        for w in current.contributors:
            push = current.pushes[w]
            expected[(w - 1) % WIDTH] += cluster.server.weight(push) * push.local_steps / total
            pushes.setdefault(w, []).append(push.local_steps)
        return actions

    cluster.server._seal = watch  # type: ignore[method-assign]
    report = cluster.run()
    np.testing.assert_allclose(report.x, np.tile(expected, (CHUNKS, 1)))
    for rank, node in cluster.nodes.items():
        assert sum(pushes.get(rank, [])) == node.machine.clock


@settings(max_examples=300, deadline=None)
@given(clusters(losses=True))
def test_survivors_finish_when_workers_are_lost(cluster: Cluster) -> None:
    report = cluster.run()
    assert not report.mixed
    for rank in cluster.server.live:
        assert cluster.nodes[rank].machine.stopped


def noisy(rank: int, step: int, model: np.ndarray) -> np.ndarray:
    """A gradient step of a quadratic with a different minimum on every worker, times a rate."""
    return 0.1 * (model - rank) + 0.01 * np.sin(step + rank)


def simulate(options: PolicyOptions, workers: int = 3, max_samples: int = 90, start: float = 1.0) -> Report:
    cluster = Cluster(
        make_policy(options),
        workers,
        lambda rank, step: rank * (1.0 + 0.1 * (step % 3)),
        noisy,
        np.full((CHUNKS, WIDTH), start),
        Network(0.3, 0.2),
        max_samples=max_samples,
    )
    return cluster.run()


def test_osp_is_losp_without_compensation() -> None:
    osp = simulate(PolicyOptions(policy="osp"))
    losp = simulate(PolicyOptions(policy="losp", compensation=0.0))
    assert osp.adopted == losp.adopted
    np.testing.assert_array_equal(osp.x, losp.x)


def test_local_sgd_with_one_step_is_bsp() -> None:
    bsp = simulate(PolicyOptions(policy="bsp"))
    local = simulate(PolicyOptions(policy="local-sgd", local_steps=1))
    assert bsp.adopted == local.adopted
    np.testing.assert_array_equal(bsp.x, local.x)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_worker_learns_as_a_sequential_run_does(policy: str) -> None:
    """A silent failure elsewhere (hivemind 447): with one worker nothing is averaged, and all progress must be kept."""
    options = PolicyOptions(policy=policy)  # type: ignore[arg-type]
    report = simulate(options, workers=1, max_samples=40, start=9.0)
    assert np.abs(report.x - 1.0).max() < 1.5, "it does not approach its minimum"
    if policy in ("osp", "ssp"):
        return  # without compensation, steps during a transfer start again from older values: another path, by design
    x = np.full((CHUNKS, WIDTH), 9.0)
    for step in range(1, 60):
        x = x - noisy(1, step, x)
        if np.abs(x - report.x).max() < 1e-12:
            return
    raise AssertionError("the global parameters are on no point of the sequential path")


def test_a_worker_never_waits_under_losp_and_stands_still_under_bsp() -> None:
    losp, bsp = simulate(PolicyOptions(policy="losp")), simulate(PolicyOptions(policy="bsp"))
    for rank in (1, 2, 3):
        first = losp.waited[rank] - 0.3  # all but the way of version 0
        assert first < 3 * CHUNKS * 0.2 + 1e-9
    assert bsp.waited[1] > bsp.busy[1]


def test_ssp_keeps_its_bound() -> None:
    bound = 3
    ahead = []
    cluster = Cluster(
        make_policy(PolicyOptions(policy="ssp", staleness=bound)),
        3,
        lambda rank, step: {1: 0.1, 2: 1.0, 3: 4.0}[rank],
        noisy,
        np.ones((CHUNKS, WIDTH)),
        Network(0.01, 0.01),
        max_samples=100,
    )
    stepped = cluster._stepped

    def watch(rank: int) -> None:
        clocks = [node.machine.clock for node in cluster.nodes.values()]
        ahead.append(cluster.nodes[rank].machine.clock + 1 - min(clocks))
        stepped(rank)

    cluster._stepped = watch  # type: ignore[method-assign]
    cluster.run()
    assert max(ahead) <= bound + 1
    assert max(ahead) >= bound


def test_max_local_steps_bounds_the_lead() -> None:
    longest = []
    cluster = Cluster(
        Losp(1, 1.0, max_local_steps=4),
        2,
        lambda rank, step: {1: 0.1, 2: 10.0}[rank],
        noisy,
        np.ones((CHUNKS, WIDTH)),
        max_samples=60,
    )
    pushed = cluster.server.pushed

    def watch(push: Push):  # type: ignore[no-untyped-def]
        longest.append(push.local_steps)
        return pushed(push)

    cluster.server.pushed = watch  # type: ignore[method-assign]
    cluster.run()
    assert max(longest) == 4


def test_an_eager_stop_reaches_workers_that_are_held_back() -> None:
    server = Server(make_policy(PolicyOptions(policy="ssp", staleness=0)), [1, 2])
    push = Push(1, 0, 1, 0, 1, 8, clock=1)
    actions = server.pushed(push)
    assert all(not a.round.recipients for a in actions)
    (release,) = server.request_stop()
    assert release.round.recipients == (1,) and release.round.stop


def test_server_refuses_what_no_worker_may_say() -> None:
    server = Server(make_policy(PolicyOptions(policy="bsp")), [1, 2])
    with pytest.raises(ProtocolError, match="rank 7"):
        server.pushed(Push(7, 0, 1, 0, 1, 8, 1))
    with pytest.raises(ProtocolError, match="push 2 of rank 1"):
        server.pushed(Push(1, 0, 2, 0, 1, 8, 1))


def test_worker_refuses_an_unasked_message() -> None:
    worker = Worker(1, make_policy(PolicyOptions(policy="bsp")))
    with pytest.raises(RuntimeError, match="unasked"):
        worker.arrived(Global(0, 1, 0, 0, 0))
    worker.stepped(8)
    worker.decide()
    worker.arrived(Global(0, 1, 1, 0, 0))
    with pytest.raises(RuntimeError, match="unasked"):
        worker.arrived(Global(0, 2, 1, 0, 0))


@given(
    st.builds(
        Push,
        worker=st.integers(1, 2**31 - 1),
        flags=st.sampled_from([0, FINAL]),
        sequence=st.integers(1, 2**62),
        version=st.integers(-1, 2**62),
        local_steps=st.integers(0, 2**62),
        samples=st.integers(0, 2**62),
        clock=st.integers(0, 2**62),
        records=st.integers(0, 2**62),
    ),
    st.integers(0, 2**64 - 1),
)
def test_push_header_round_trip(push: Push, run_id: int) -> None:
    data = push.pack(run_id)
    assert len(data) == HEADER_BYTES
    assert Push.unpack(data, run_id) == push
    with pytest.raises(StrayMessage):
        Push.unpack(data, run_id ^ 1)
    with pytest.raises(StrayMessage):
        Global.unpack(data, run_id)


def test_global_header_round_trip_and_garbage() -> None:
    message = Global(STOP, 5, 3, 17, 1000)
    assert Global.unpack(message.pack(9), 9) == message
    assert message.stop
    for data in (b"", b"\0" * HEADER_BYTES, message.pack(9)[: HEADER_BYTES - 1]):
        with pytest.raises(StrayMessage):
            Global.unpack(data, 9)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.randoms())
def test_chunks_are_added_in_rank_order_whatever_the_order_of_arrival(workers: int, chunks: int, random) -> None:  # type: ignore[no-untyped-def]
    server = Server(make_policy(PolicyOptions(policy="bsp")), range(1, workers + 1))
    schedule = ChunkSchedule(chunks)
    events: list[int] = [w for w in range(1, workers + 1) for _ in range(chunks)]
    random.shuffle(events)
    headers = list(range(1, workers + 1))
    random.shuffle(headers)
    done: list[str] = []
    added: dict[int, list[int]] = {k: [] for k in range(chunks)}

    def work() -> None:
        for operation in schedule.operations(lambda round_, chunk: True):
            name = type(operation).__name__
            done.append(name)
            if name == "Add":
                assert operation.first == (operation.workers[0] == 1)
                added[operation.chunk] += operation.workers
            elif name == "Close":
                assert added[operation.chunk] == list(range(1, workers + 1)) == list(operation.contributors)

    while events or headers:
        if headers and (not events or random.random() < 0.5):
            worker = headers.pop()
            for action in server.pushed(Push(worker, 0, 1, 0, 1, 1, 1)):
                if type(action).__name__ == "Join":
                    schedule.join(action.round, worker)
                else:
                    schedule.seal(action.round)
        else:
            schedule.received(events.pop())
        work()
    assert done.count("Close") == chunks and done[-1] == "Done" and schedule.idle


def test_a_final_push_waits_for_the_one_before_it() -> None:
    """The message to stop overtakes: then two pushes of a worker are under way and share its receive buffers."""
    server = Server(make_policy(PolicyOptions(policy="asp")), [1, 2])
    schedule = ChunkSchedule(3)
    for sequence, flags in ((1, 0), (2, FINAL)):
        for action in server.pushed(Push(1, flags, sequence, 0, 1, 1, sequence)):
            if type(action).__name__ == "Join":
                schedule.join(action.round, 1)
            elif action.round.pushes:
                schedule.seal(action.round)
    for _ in range(5):
        schedule.received(1)
    closed = [(o.round.pushes[1].sequence, o.chunk) for o in closes(schedule, lambda round_, chunk: chunk < 1)]
    assert closed == [(1, 0)]
    schedule.received(1)
    closed = [(o.round.pushes[1].sequence, o.chunk) for o in closes(schedule, lambda round_, chunk: True)]
    assert closed == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert schedule.idle


def test_a_message_without_payload_holds_up_no_round_behind_it() -> None:
    """All that can be done is done in one pass: no event may come after it."""
    server = Server(make_policy(PolicyOptions(policy="ssp", staleness=1)), [1, 2])
    schedule = ChunkSchedule(2)
    actions = server.pushed(Push(1, 0, 1, 0, 3, 3, 3))  # too far ahead for an answer
    actions += server.request_stop()
    actions += server.pushed(Push(2, 0, 1, 0, 1, 1, 1))
    for action in actions:
        if type(action).__name__ == "Join":
            schedule.join(action.round, action.push.worker)
        else:
            schedule.seal(action.round)
    for worker in (1, 1, 2, 2):
        schedule.received(worker)
    done = [o.round.version for o in schedule.operations(lambda round_, chunk: True) if isinstance(o, Done)]
    assert done == [1, 1, 2]  # a round, the message to stop, a round
    assert schedule.idle


def closes(schedule: ChunkSchedule, room: Callable[[Round, int], bool]) -> list[Close]:
    found = []
    while batch := [o for o in schedule.operations(room) if not isinstance(o, Add)]:
        found += [o for o in batch if isinstance(o, Close)]
    return found
