"""Workers, a server and a network in virtual time.

The server's network card takes one chunk at a time in each direction; everything else is the code of a real run: the
state machines of ``hpcdml.protocol`` and the chunk schedule. The parameters are small numpy vectors, one row for each
chunk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hpcdml.protocol.chunks import Add, ChunkSchedule, Close, Discard
from hpcdml.protocol.messages import Global, Push
from hpcdml.protocol.policies import Policy
from hpcdml.protocol.rounds import Action as ServerAction
from hpcdml.protocol.rounds import Drop, Join, Refuse, Round, Seal
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import Adopt, Exchange, SendPush, Stop, TakeUpdate, Train, Wait, Worker

StepSeconds = Callable[[int, int], float]
"""Seconds that the n-th local step of a worker takes: (rank, n from 1)."""

Update = Callable[[int, int, np.ndarray], np.ndarray]
"""What the n-th local step of a worker subtracts from its model: (rank, n from 1, model)."""


@dataclass(frozen=True)
class Network:
    """Seconds that a message is on its way, and that the server's network card takes for a chunk in each direction."""

    latency: float = 0.0
    chunk_seconds: float = 0.0


@dataclass
class Report:
    """What happened.

    Attributes:
        seconds: virtual time at the end.
        x: the global parameters at the end, shape (chunks, width).
        adopted: for every worker, (local steps taken, version) of each adoption.
        rounds: (version, contributors) of every round with a payload, in order.
        waited: for every worker, seconds in which it took no step between its first and its last.
        busy: for every worker, seconds in which it computed.
        refused: the pushes whose updates were not taken, in order.
        dropped: ranks that were told to stop because of it.
        mixed: rounds whose recipients got chunks of more than one version; empty, or the protocol is broken.
    """

    seconds: float = 0.0
    x: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    adopted: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    rounds: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    waited: dict[int, float] = field(default_factory=dict)
    busy: dict[int, float] = field(default_factory=dict)
    refused: list[Push] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)


@dataclass
class _Node:
    machine: Worker
    model: np.ndarray
    base: np.ndarray
    pull: np.ndarray
    update: np.ndarray
    header: Global | None = None
    chunks: int = 0
    versions: set[int] = field(default_factory=set)
    computing: bool = False
    since: float = 0.0


class Cluster:
    """One simulated run.

    Args:
        policy: the policy.
        step_seconds: how long each local step takes.
        update: what each local step does to a model.
        x: parameters of version 0, shape (chunks, width).
        network: delays.
        samples: training samples of a local step.
        max_samples: when to stop.
        max_update_norm: from when on updates are refused as too large.
        lose: (virtual time, rank) at which workers vanish.
        room: asked before a chunk is closed: whether its recipients have room for it; if not, it is asked again later.
    """

    def __init__(
        self,
        policy: Policy,
        workers: int,
        step_seconds: StepSeconds,
        update: Update,
        x: np.ndarray,
        network: Network | None = None,
        samples: int = 1,
        max_samples: int = 100,
        max_update_norm: float | None = None,
        lose: Sequence[tuple[float, int]] = (),
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.step_seconds = step_seconds
        self.update = update
        self.network = network or Network()
        self.samples = samples
        self.room = room
        self.x = x.copy()
        self.sum = np.zeros_like(x)
        ranks = range(1, workers + 1)
        self.server = Server(policy, ranks, max_samples=max_samples, max_update_norm=max_update_norm)
        self.schedule = ChunkSchedule(len(x))
        blank = np.zeros_like(x)
        self.nodes = {
            rank: _Node(Worker(rank, policy, workers), x.copy(), x.copy(), blank.copy(), blank.copy()) for rank in ranks
        }
        self.report = Report(
            adopted={r: [] for r in ranks}, waited={r: 0.0 for r in ranks}, busy={r: 0.0 for r in ranks}
        )
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._in_free = self._out_free = 0.0
        self._slots: dict[int, list[np.ndarray]] = {rank: [] for rank in ranks}
        self._lost: set[int] = set()
        for when, rank in lose:
            self._at(when, partial(self._lose, rank))

    def run(self, most_events: int = 1_000_000) -> Report:
        """Run to the end.

        Raises:
            RuntimeError: nothing can happen any more although somebody has not ended (a deadlock), or too many events.
        """
        for rank in self.nodes:
            self._decide(rank)
        for _ in range(most_events):
            if not self._events:
                break
            self.now, _, action = heapq.heappop(self._events)
            action()
        else:
            raise RuntimeError(f"no end after {most_events} events")
        if not self.server.finished or not self.schedule.idle:
            raise RuntimeError(f"deadlock at {self.now} s: {sorted(self.server.active)} have not ended")
        self.report.seconds, self.report.x = self.now, self.x
        return self.report

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    # The worker's side.

    def _decide(self, rank: int) -> None:
        node = self.nodes[rank]
        for action in node.machine.decide():
            if isinstance(action, TakeUpdate):
                node.update = node.base - node.model
                if action.keep:
                    node.base = node.model.copy()
            elif isinstance(action, (Adopt, Exchange)):
                node.update = node.base - node.model
                kept = action.compensation if isinstance(action, Exchange) else 0.0
                node.model = node.pull - kept * node.update
                node.base = node.model.copy()
                self.report.adopted[rank].append((node.machine.clock, action.version))
            elif isinstance(action, SendPush):
                self._send_push(rank, action.push)
            elif isinstance(action, Train):
                self._train(rank)
            elif isinstance(action, (Wait, Stop)):
                node.since = self.now

    def _train(self, rank: int) -> None:
        node = self.nodes[rank]
        seconds = self.step_seconds(rank, node.machine.clock + 1)
        node.computing = True
        self.report.busy[rank] += seconds
        self._at(self.now + seconds, lambda: self._stepped(rank))

    def _stepped(self, rank: int) -> None:
        if rank in self._lost:
            return
        node = self.nodes[rank]
        node.computing = False
        node.model = node.model - self.update(rank, node.machine.clock + 1, node.model)
        node.machine.stepped(self.samples)
        self._deliver(rank)
        self._decide(rank)

    def _deliver(self, rank: int) -> bool:
        node = self.nodes[rank]
        message = node.header
        if message is None or not (message.stop or node.chunks == len(self.x)):
            return False
        if len(node.versions) > 1:
            self.report.mixed.append(message.version)
        node.header, node.chunks, node.versions = None, 0, set()
        node.machine.arrived(message)
        return True

    def _send_push(self, rank: int, push: Push) -> None:
        arrival = self.now + self.network.latency
        if push.local_steps:
            push = replace(push, norm=float(np.linalg.norm(self.nodes[rank].update)))
        self._at(arrival, lambda: self._push_arrives(rank, push))
        if push.local_steps:
            for row in self.nodes[rank].update.copy():
                self._in_free = max(self._in_free, arrival) + self.network.chunk_seconds
                self._at(self._in_free, partial(self._chunk_arrives, rank, row))

    def _to_worker(self, rank: int, take: Callable[[_Node], None], seconds: float) -> None:
        self._out_free = max(self._out_free, self.now) + seconds

        def arrive() -> None:
            node = self.nodes[rank]
            take(node)
            if not node.computing and rank not in self._lost and self._deliver(rank):
                self.report.waited[rank] += self.now - node.since
                self._decide(rank)

        self._at(self._out_free + self.network.latency, arrive)

    # The server's side.

    def _push_arrives(self, rank: int, push: Push) -> None:
        if rank not in self._lost:
            self._serve(self.server.pushed(push))

    def _chunk_arrives(self, rank: int, row: np.ndarray) -> None:
        if rank not in self._lost:
            self._slots[rank].append(row)
            self.schedule.received(rank)
            self._work()

    def _lose(self, rank: int) -> None:
        if rank not in self._lost:
            self._lost.add(rank)
            actions = self.server.lost(rank)
            self.schedule.lost(rank)
            self._serve(actions)

    def _serve(self, actions: list[ServerAction]) -> None:
        for action in actions:
            if isinstance(action, Join):
                self.schedule.join(action.round, action.push.worker)
            elif isinstance(action, Seal):
                self._answer(action.round)
                self.schedule.seal(action.round)
            elif isinstance(action, Refuse):
                self.report.refused.append(action.push)
            elif isinstance(action, Drop):
                self.report.dropped.append(action.worker)
        self._work()

    def _answer(self, round_: Round) -> None:
        if round_.contributors:
            self.report.rounds.append((round_.version, round_.contributors))
        for rank in round_.recipients:
            message = self.server.message(round_, rank)

            def take(node: _Node, message: Global = message) -> None:
                node.header = message

            self._to_worker(rank, take, 0.0)

    def _work(self) -> None:
        for operation in self.schedule.operations(self._has_room):
            if isinstance(operation, Add) and not operation.alone:
                total = 0.0 if operation.first else self.sum[operation.chunk]
                for worker in operation.workers:
                    weight = self.server.weight(operation.round.pushes[worker])
                    total = total + weight * self._slots[worker].pop(0)
                self.sum[operation.chunk] = total
            elif isinstance(operation, Discard):
                self._slots[operation.worker].pop(0)
            elif isinstance(operation, Close):
                self._close(operation)

    def _has_room(self, round_: Round, chunk: int) -> bool:
        if self.room():
            return True
        self._at(self.now + 0.01, self._work)
        return False

    def _close(self, operation: Close) -> None:
        round_, chunk = operation.round, operation.chunk
        if operation.contributors:
            total = sum(self.server.weight(round_.pushes[w]) for w in operation.contributors)
            mean = self._slots[operation.contributors[0]].pop(0) if operation.alone else self.sum[chunk] / total
            self.x[chunk] = self.x[chunk] - mean
        if round_.stop:
            return
        for rank in round_.recipients:
            row = self.x[chunk].copy()

            def take(node: _Node, row: np.ndarray = row) -> None:
                node.pull[chunk] = row
                node.chunks += 1
                node.versions.add(round_.version)

            self._to_worker(rank, take, self.network.chunk_seconds)
