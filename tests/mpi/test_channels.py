"""Server and worker channels over real MPI: ``mpirun -n 3 python -m pytest --with-mpi tests/mpi``."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdml.config import POLICIES, PolicyOptions
from hpcdml.mpi.backoff import Backoff
from hpcdml.mpi.events import ChunkArrived, Event, PushArrived, RecordsArrived, StateArrived
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.mpi.tags import STATE_BLOCK
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.mpi.world import World, barrier, broadcast, gather, hosts, join_world
from hpcdml.parameters import FlatModel, WireVector
from hpcdml.protocol.chunks import Add, ChunkSchedule, Close
from hpcdml.protocol.messages import MARK, Global, Push, StrayMessage
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Join
from hpcdml.protocol.server import Server
from hpcdml.protocol.worker import Adopt, Exchange, SendPush, TakeUpdate, Train, Wait, Worker
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.outer import OuterSgd
from hpcdml.training.staging import CopyQueue, DeviceStaging, DirectStaging, Staging

pytestmark = [pytest.mark.mpi(min_size=2), pytest.mark.timeout(120)]

COLUMNS = 3


@pytest.fixture
def world() -> Iterator[World]:
    world = join_world()
    yield world
    barrier(world)
    world.comm.Free()


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(50, 60), nn.BatchNorm1d(60), nn.Linear(60, 70).double())


def serve(world: World, flat: FlatModel, options: PolicyOptions, max_samples: int) -> tuple[Aggregator, Server]:
    """The server's loop, without anything but the protocol."""
    server = Server(make_policy(options), world.workers, max_samples=max_samples)
    channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, COLUMNS)
    aggregator = Aggregator(flat.layout, OuterSgd(1.0))
    flat.values_into(aggregator.x)
    schedule = ChunkSchedule(len(flat.layout.chunks))
    integers = flat.integers()

    def room(round_, chunk):  # type: ignore[no-untyped-def]
        return round_.settled or all(channel.has_room(w) for w in round_.recipients)

    def carry_out(actions) -> None:  # type: ignore[no-untyped-def]
        for action in actions:
            if isinstance(action, Join):
                schedule.join(action.round, action.push.worker)
            else:
                for worker in action.round.recipients:
                    channel.send_header(worker, server.message(action.round, worker), integers)
                schedule.seal(action.round)

    backoff = Backoff()
    while not (server.finished and schedule.idle):
        events = channel.poll()
        for event in events:
            if isinstance(event, ChunkArrived):
                schedule.received(event.worker)
            elif isinstance(event, PushArrived):
                np.maximum(integers, event.integers, out=integers)
                carry_out(server.pushed(event.push))
        for operation in schedule.operations(room):
            if isinstance(operation, Add) and not operation.alone:
                terms = [(channel.slot(worker, operation.chunk), 1.0) for worker in operation.workers]
                aggregator.add(operation.chunk, terms, operation.first)
                for worker in operation.workers:
                    channel.release(worker)
            elif isinstance(operation, Close):
                round_, chunk = operation.round, operation.chunk
                if operation.contributors:
                    alone = channel.slot(operation.contributors[0], chunk) if operation.alone else None
                    aggregator.close(chunk, float(len(operation.contributors)), round_.share, alone)
                    if operation.alone:
                        channel.release(operation.contributors[0])
                send = channel.send_chunk if round_.settled else channel.send_copy
                for worker in () if round_.stop else round_.recipients:
                    send(worker, aggregator.x.chunk_bytes(chunk))
        backoff.reset() if events else backoff.wait()
    channel.close()
    flat.set_integers(integers)
    return aggregator, server


class LateQueue(CopyQueue):
    """Copies that are done only after somebody has asked a few times, or when the model needs them: as on a GPU."""

    def __init__(self) -> None:
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.done = self.given = 0

    def after_model(self) -> None:
        pass

    def before_model(self) -> None:
        while self.waiting:
            self._one()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        self.waiting.append((target, source))
        self.given += 1

    def event(self) -> LateEvent:
        return LateEvent(self, self.given)

    def _one(self) -> None:
        target, source = self.waiting.pop(0)
        target.copy_(source)
        self.done += 1


class LateEvent:
    def __init__(self, queue: LateQueue, number: int) -> None:
        self.queue, self.number, self.asked = queue, number, 0

    def query(self) -> bool:
        self.asked += 1
        if self.asked > 2 and self.queue.done < self.number:
            self.queue._one()
        return self.asked > 2 and self.queue.done >= self.number


def work(world: World, flat: FlatModel, options: PolicyOptions, staging: Staging | None = None) -> Worker:
    """The worker's loop; each local step subtracts 1 from every parameter."""
    machine = Worker(world.rank, make_policy(options), len(world.workers))
    staging = staging or Staging(flat.layout)
    channel = WorkerChannel(world.comm, world.run_id, staging.pull, staging.push, staging.ready, staging.landed)
    flat.set_base()
    backoff = Backoff()
    message = None
    while not machine.stopped:
        for action in machine.decide():
            if isinstance(action, TakeUpdate):
                while not channel.push_free:
                    channel.poll()
                staging.written(flat.update_into(staging.update))
                if action.keep:
                    flat.set_base()
            elif isinstance(action, Adopt):
                staging.reading()
                flat.adopt(staging.globals)
                staging.read()
                staging.raise_integers(flat, channel.integers)
            elif isinstance(action, Exchange):
                staging.reading()
                norm = flat.exchange(staging.update, staging.globals, action.compensation)
                staging.read()
                staging.written(norm)
                staging.raise_integers(flat, channel.integers)
            elif isinstance(action, SendPush):
                while not staging.pull_free:
                    pass
                if not machine.stopped:
                    channel.expect()
                while not channel.push_free:
                    channel.poll()
                staging.take_integers(flat)
                norms = (lambda: staging.norm) if action.push.local_steps else None
                channel.send(action.push, lambda: staging.integers, norms)
            elif isinstance(action, Train):
                with torch.no_grad():
                    for parameter in flat.model.parameters():
                        parameter.sub_(1.0)
                for _, buffer in flat.integer_buffers:
                    buffer.add_(1)
                machine.stepped(1)
                message = channel.poll()
            elif isinstance(action, Wait):
                while (message := channel.poll()) is None:
                    backoff.wait()
            if message is not None:
                machine.arrived(message)
                message = None
    while not channel.drained:
        channel.poll()
    channel.close()
    return machine


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("memory", ["host", "staged", "direct"])
@pytest.mark.parametrize("chunk_bytes", [256, 1 << 20])
def test_every_step_reaches_the_server_once(world: World, policy: str, chunk_bytes: int, memory: str) -> None:
    options = PolicyOptions(policy=policy, local_steps=None)  # type: ignore[arg-type]
    flat = FlatModel(small_model(), chunk_bytes)
    before = [f.clone() for f in flat.flats]
    workers = len(world.workers)
    if world.is_server:
        aggregator, server = serve(world, flat, options, max_samples=60)
        total = server.samples
        moved = [b - a for a, b in zip(aggregator.x.segments, before, strict=True)]
        if policy in ("asp", "ssp"):
            for segment, m in zip(flat.layout.segments, moved, strict=True):
                if segment.kind == 0:
                    torch.testing.assert_close(m, torch.full_like(m, float(total)))
        elif policy in ("bsp", "local-sgd", "diloco"):
            torch.testing.assert_close(moved[0], torch.full_like(moved[0], total / workers))
        else:
            # A round counts the mean, whatever the number of local steps in it.
            first = float(moved[0][0])
            assert 0 < first <= total
            torch.testing.assert_close(moved[0], torch.full_like(moved[0], first))
    else:
        queue = LateQueue()
        staging = {
            "host": lambda: Staging(flat.layout),
            "staged": lambda: DeviceStaging(flat.layout, flat.device, queue, pinned=False),
            "direct": lambda: DirectStaging(flat.layout, flat.device, queue),
        }[memory]()
        work(world, flat, options, staging)
        # Where MPI reads the device's memory, only the norms of the updates go through the queue.
        assert not queue.waiting and (queue.done > 0) == (memory != "host")
    steps = gather(world, server.samples if world.is_server else 0)
    assert steps[0] >= 60
    # The counts of steps go to and fro with the parameters; the last that a worker pushes is the greatest.
    counts = gather(world, int(flat.integers()[0]))
    assert counts[0] == max(counts[1:]) >= 60 / workers


def test_a_mark_is_seen_before_later_messages_and_the_state_goes_beside_a_push(world: World) -> None:
    flat = FlatModel(nn.Linear(300, 300), 1 << 14)
    chunks = len(flat.layout.chunks)
    mark, later = Global(MARK, 7, 3, 0, 0), Global(0, 8, 4, 0, 0)
    image = np.random.default_rng(world.rank).integers(0, 256, 3 * STATE_BLOCK + 77, dtype=np.uint8)
    if world.is_server:
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, COLUMNS)
        integers = np.zeros(0, np.int64)
        for worker in world.workers:
            channel.send_header(worker, mark, integers)
        got = {worker: np.zeros(len(image), np.uint8) for worker in world.workers}
        bytes_of = dict.fromkeys(world.workers, 0)
        taken = dict.fromkeys(world.workers, 0)
        while min(bytes_of.values()) < len(image) or min(taken.values()) < chunks:
            for event in channel.poll():
                if isinstance(event, StateArrived):
                    assert (event.version, event.total) == (7, len(image))
                    got[event.worker][event.offset : event.offset + len(event.data)] = event.data
                    bytes_of[event.worker] += len(event.data)
                elif isinstance(event, ChunkArrived):
                    channel.release(event.worker)
                    taken[event.worker] += 1
        for worker in world.workers:
            np.testing.assert_array_equal(
                got[worker], np.random.default_rng(worker).integers(0, 256, len(image), dtype=np.uint8)
            )
            channel.send_header(worker, later, integers)
            for chunk in range(chunks):
                channel.send_chunk(worker, flat_bytes(flat, chunk))
        while any(peer.sends for peer in channel.peers.values()):
            channel.poll()
    else:
        pull, push = WireVector(flat.layout), WireVector(flat.layout)
        channel = WorkerChannel(world.comm, world.run_id, pull, push)
        channel.expect()
        channel.send(Push(world.rank, 0, 4, 6, 1, 1, 1), lambda: np.zeros(0, np.int64))
        while channel.mark is None:
            assert channel.poll() is None
        assert channel.mark == mark
        channel.send_state(7, 2, image)
        while (message := channel.poll()) is None:
            pass
        assert message == later and channel.mark == mark
        while not channel.drained:
            channel.poll()
    barrier(world)
    channel.close()


def flat_bytes(flat: FlatModel, chunk: int) -> np.ndarray:
    return np.zeros(flat.layout.chunks[chunk].nbytes, np.uint8)


def test_records_arrive_whole_and_a_stray_message_is_refused(world: World) -> None:
    flat = FlatModel(nn.Linear(4, 4), 1024)
    rows = np.arange(12.0).reshape(4, COLUMNS)
    if world.is_server:
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, COLUMNS)
        got: dict[int, np.ndarray] = {}
        refused = 0
        while len(got) < len(world.workers) or not refused:
            try:
                for event in channel.poll():
                    assert isinstance(event, RecordsArrived)
                    got[event.worker] = event.rows
            except StrayMessage as error:
                assert "another run" in str(error)
                refused += 1
        for worker in world.workers:
            np.testing.assert_array_equal(got[worker], rows + worker)
        barrier(world)
        channel.close()
    else:
        vectors = WireVector(flat.layout), WireVector(flat.layout)
        channel = WorkerChannel(world.comm, world.run_id ^ 1, *vectors)
        channel.send_records(rows + world.rank)
        channel.send(Push(world.rank, 0, 1, 0, 0, 0, 0), flat.integers)
        while not channel.drained:
            channel.poll()
        with pytest.raises(RuntimeError, match="still under way"):
            channel._header_sent = False
            channel.send(Push(world.rank, 0, 2, 0, 0, 0, 0), flat.integers)
        channel._header_sent = True
        barrier(world)
        channel.close()


def test_a_push_is_received_no_faster_than_it_is_taken(world: World) -> None:
    """The server holds a few chunks of a worker, not its whole push."""
    flat = FlatModel(nn.Linear(512, 512), 4096)
    if world.is_server:
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, COLUMNS)
        arrived = dict.fromkeys(world.workers, 0)
        quiet = 0
        while quiet < 2000:
            events = channel.poll()
            for event in chunks_of(events):
                arrived[event.worker] += 1
            waiting = all(count >= 4 for count in arrived.values())
            quiet = quiet + 1 if waiting and not events else 0
        assert all(count == 4 for count in arrived.values()), arrived
        chunks = len(flat.layout.chunks)
        taken = dict.fromkeys(world.workers, 0)
        while any(count < chunks for count in taken.values()):
            for worker in world.workers:
                while taken[worker] < arrived[worker]:
                    assert float(channel.slot(worker, taken[worker])[0]) == taken[worker] + worker
                    channel.release(worker)
                    taken[worker] += 1
            for event in chunks_of(channel.poll()):
                arrived[event.worker] += 1
        barrier(world)
        channel.close()
    else:
        pull, push = WireVector(flat.layout), WireVector(flat.layout)
        for number, chunk in enumerate(push.chunks):
            chunk.fill_(number + world.rank)
        channel = WorkerChannel(world.comm, world.run_id, pull, push)
        channel.send(Push(world.rank, 0, 1, 0, 1, 1, 1), flat.integers)
        while not channel.drained:
            channel.poll()
        barrier(world)
        channel.close()


def chunks_of(events: list[Event]) -> list[ChunkArrived]:
    return [event for event in events if isinstance(event, ChunkArrived)]


def test_a_stop_needs_no_payload(world: World) -> None:
    flat = FlatModel(nn.Linear(8, 8), 64)
    message = Global(1, 7, 0, 0, 123)
    if world.is_server:
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, COLUMNS)
        for worker in world.workers:
            channel.send_header(worker, message, flat.integers())
        while any(peer.sends for peer in channel.peers.values()):
            channel.poll()
        barrier(world)
        channel.close()
    else:
        channel = WorkerChannel(world.comm, world.run_id, WireVector(flat.layout), WireVector(flat.layout))
        channel.expect()
        while (got := channel.poll()) is None:
            pass
        assert got == message and dataclasses.asdict(got)["samples"] == 123
        barrier(world)
        channel.close()


def test_world(world: World) -> None:
    assert gather(world, world.rank * 10) == [10 * r for r in range(world.size)]
    assert len(hosts(world)) == world.size
    array = np.full((3, 5), float(world.rank))
    broadcast(world, [array])
    assert not array.any()
    assert world.cores >= 1
    assert MPI.Query_thread() >= MPI.THREAD_SINGLE


def test_a_worker_that_had_joined_and_died_leaves_no_buffers_once_another_has_its_place(world: World) -> None:
    flat = FlatModel(nn.Linear(300, 300), 1 << 14)
    alone = MPI.COMM_SELF.Dup()
    channel = ServerChannel(alone, world.run_id, flat.layout, (), COLUMNS)
    peers = []
    for _ in range(3):
        channel.join(2, alone)
        peers.append(weakref.ref(channel.peers[2]))
        channel.peers[2].free()
        channel.peers[2].dead = True
    gc.collect()
    assert [peer() is None for peer in peers] == [True, True, False]
    channel.close()
    alone.Free()
