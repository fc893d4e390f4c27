"""The server's loop without a network: workers' pushes come from memory, and what is sent to them goes nowhere.

Run as ``mpirun -n 1 python -m hpcdml.benchmarks.serving '{...}'`` by ``bench server``. The loop, the protocol, the
schedule, the aggregator and the run's file are those of a training run; only the channel is another one.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hpcdml.benchmarks.payload import build
from hpcdml.config import PolicyOptions, RunOptions, StopOptions
from hpcdml.mpi.events import ChunkArrived, Event, PushArrived
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.observability.progress import Progress
from hpcdml.parameters import FlatModel, Layout, WireVector
from hpcdml.protocol.messages import FINAL, Global, Push
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.rounds import Round
from hpcdml.protocol.server import Server
from hpcdml.storage.run_file import RunWriter
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.checkpoints import Checkpoints
from hpcdml.training.outer import make_outer
from hpcdml.training.server_loop import ServerLoop
from hpcdml.training.snapshots import Snapshots, Version
from hpcdml.training.state import state_types
from hpcdml.training.stop_signals import StopSignals

NEVER = 1e9


class MemoryChannel:
    """In place of ``ServerChannel``: every worker answers each message at once, and its chunks arrive one by one.

    Its own CPU time is counted, as it stands for MPI's.

    Args:
        updates: what each worker pushes, again and again.

    Attributes:
        seconds: CPU time spent in this channel.
        moved: as in ``ServerChannel``.
    """

    def heard(self, worker: int) -> float:
        return math.inf

    def __init__(self, layout: Layout, updates: dict[int, WireVector]) -> None:
        self.chunks = len(layout.chunks)
        self.updates = updates
        self.seconds = 0.0
        self.moved = True
        self._sequence = dict.fromkeys(updates, 0)
        self._version = 0
        self._received = dict.fromkeys(updates, 0)
        self._to_push = dict.fromkeys(updates, 0)
        self._headers: list[Event] = []
        self._integers = np.zeros(layout.integers, np.int64)
        for worker in updates:
            self._to_push[worker] = self.chunks
            self._push(worker, 0, 1)

    def poll(self) -> list[Event]:
        """The headers of the workers' pushes, or the next chunk of each of them."""
        begin = time.thread_time()
        events, self._headers = self._headers, []
        if not events:
            events = [ChunkArrived(worker) for worker, left in self._to_push.items() if left]
        self.seconds += time.thread_time() - begin
        return events

    def slot(self, worker: int, chunk: int) -> torch.Tensor:
        return self.updates[worker].chunks[chunk]

    def release(self, worker: int) -> None:
        self._to_push[worker] -= 1

    def send_header(self, worker: int, message: Global, integers: np.ndarray) -> None:
        begin = time.thread_time()
        self._version = message.version
        if message.stop:
            self._push(worker, FINAL, 0)
        self.seconds += time.thread_time() - begin

    def send_chunk(self, worker: int, data: np.ndarray) -> None:
        begin = time.thread_time()
        self._received[worker] += 1
        if self._received[worker] == self.chunks:
            self._received[worker] = 0
            self._to_push[worker] = self.chunks
            self._push(worker, 0, 1)
        self.seconds += time.thread_time() - begin

    def _push(self, worker: int, flags: int, steps: int) -> None:
        self._sequence[worker] += 1
        number = self._sequence[worker]
        push = Push(worker, flags, number, self._version, steps, steps, number)
        self._headers.append(PushArrived(push, self._integers))

    def has_room(self, worker: int) -> bool:
        return True


def serve(megabytes: float, workers: int, chunk_bytes: int, rounds: int) -> tuple[float, float]:
    """Serve so many rounds of a model of so many 10^6 bytes.

    Returns:
        CPU seconds of all of this process's threads, the channel's own apart, and those of the same number of
        ``total.add_(update)``, each for one byte that a worker has pushed.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flat = FlatModel(build(megabytes), chunk_bytes)
    updates = {worker: WireVector(flat.layout) for worker in range(1, workers + 1)}
    for update in updates.values():
        for segment in update.segments:
            segment.copy_(1e-3 * torch.randn(segment.shape, dtype=segment.dtype))
    pushed = rounds * workers * flat.layout.payload
    return _serve(flat, updates, rounds) / pushed, _add(flat.layout, updates, rounds) / pushed


def _serve(flat: FlatModel, updates: dict[int, WireVector], rounds: int) -> float:
    options = PolicyOptions(policy="bsp")
    policy = make_policy(options)
    machine = Server(policy, updates, max_samples=(1 + rounds) * len(updates))
    aggregator = Aggregator(flat.layout, make_outer(options, policy, flat.layout))
    flat.values_into(aggregator.x)
    channel = MemoryChannel(flat.layout, updates)
    clock = _Clock(flat, channel)
    with tempfile.TemporaryDirectory() as folder:
        types = state_types(flat.model)
        with RunWriter.create(Path(folder), {}, {}, len(updates), types, overwrite=False) as writer:
            served = cast(ServerChannel, channel)
            records = dict.fromkeys(updates, 0)
            checkpoints = Checkpoints(
                machine, served, aggregator, writer, flat, Path(folder), RunOptions(), ({}, {}), records, []
            )
            loop = ServerLoop(
                machine,
                served,
                aggregator,
                clock,
                checkpoints,
                writer,
                Progress(None, None),
                StopOptions(),
                flat.integers(),
                records,
                keep=False,
                signals=StopSignals(),
                hosts={},
                min_workers=1,
                worker_timeout=None,
            )
            loop.run(time.perf_counter())
            return clock.seconds()


class _Clock(Snapshots):
    """CPU time since the first round, which also fills memory, without that of the channel; evaluates nothing."""

    def __init__(self, flat: FlatModel, channel: MemoryChannel) -> None:
        super().__init__(flat, lambda version: 0.0, NEVER)
        self._channel = channel
        self._begin: float | None = None

    def complete(self, round_: Round, version: Version, integers: np.ndarray) -> None:
        super().complete(round_, version, integers)
        if self._begin is None:
            self._begin = self._now()

    def seconds(self) -> float:
        """CPU seconds so far of all threads, since the end of the first round."""
        return self._now() - (self._begin or 0.0)

    def _now(self) -> float:
        return time.process_time() - self._channel.seconds


def _add(layout: Layout, updates: dict[int, WireVector], rounds: int) -> float:
    """CPU seconds of adding all updates in place, whole vector by whole vector."""
    total = WireVector(layout)
    begin = 0.0
    for number in range(1 + rounds):
        if number == 1:
            begin = time.process_time()
        for update in updates.values():
            for segment, addend in zip(total.segments, update.segments, strict=True):
                segment.add_(addend)
    return time.process_time() - begin


def main(argv: list[str]) -> int:
    """Print several measurements as JSON: nanoseconds a byte of the loop and of adding, each time."""
    asked = json.loads(argv[0])
    found = [
        serve(asked["megabytes"], asked["workers"], asked["chunk_bytes"], asked["rounds"])
        for _ in range(asked["repeats"])
    ]
    print(json.dumps([{"loop": 1e9 * loop, "adding": 1e9 * adding} for loop, adding in found]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
