"""The server's end of the connections to all workers: nonblocking throughout, driven by ``poll``."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI

from hpcdml.mpi import faults
from hpcdml.mpi.tags import STATE_BLOCK, Tag
from hpcdml.parameters import TORCH_DTYPE, Layout
from hpcdml.parameters.layout import align
from hpcdml.protocol.messages import HEADER_BYTES, Global, Push, StrayMessage

WINDOW = 4
"""Receive buffers of one chunk for each worker, and as many for copies of chunks on their way to it."""

RECORD_ROWS = 1024
"""Most rows of a block of step records; the first row only holds the number of the others, in its first column."""


_STATE_HEAD = 5 * 8

_HEADER, _CHUNK, _RECORDS, _STATE, _SEND = range(5)
_KINDS = 5
"""Requests of one worker that a poll asks for: the next of each kind."""


@dataclass(frozen=True)
class PushArrived:
    """The header of a push, with the worker's integer buffers (int64)."""

    push: Push
    integers: np.ndarray


@dataclass(frozen=True)
class ChunkArrived:
    """The next chunk of the worker's push lies in its slot."""

    worker: int


@dataclass(frozen=True)
class RecordsArrived:
    """A block of step records, float64 of shape (rows, columns)."""

    worker: int
    rows: np.ndarray


@dataclass(frozen=True)
class StateArrived:
    """A block of the state that a worker has saved for a version: ``data`` (uint8) at ``offset`` of ``total`` bytes.

    ``records``: blocks of step records that the worker has sent before.
    """

    worker: int
    version: int
    records: int
    total: int
    offset: int
    data: np.ndarray


@dataclass(frozen=True)
class WorkerLost:
    """The worker is dead; nothing more comes from it."""

    worker: int


Event = PushArrived | ChunkArrived | RecordsArrived | StateArrived | WorkerLost


class _Peer:
    """The server's requests and buffers for one worker.

    Receives are posted for the chunks of a push in order, into ``WINDOW`` slots in turn; those of the next push follow
    on. So the n-th chunk since the start is chunk ``n % chunks``, in slot ``n % WINDOW``.
    """

    def __init__(self, comm: MPI.Intracomm, worker: int, layout: Layout, columns: int) -> None:
        self.comm = comm
        self.worker = worker
        self.place = 0
        self.chunk_arrived = ChunkArrived(worker)
        self.header = np.zeros(HEADER_BYTES + 8 * layout.integers, np.uint8)
        self.records = np.zeros((RECORD_ROWS, columns))
        self.state = np.zeros(_STATE_HEAD + STATE_BLOCK, np.uint8)
        # Chunks of several types land in a slot, of which each must begin where all of them may.
        largest = align(max(chunk.nbytes for chunk in layout.chunks))
        self._slots = torch.zeros(WINDOW, largest, dtype=torch.uint8)
        self._views: list[dict[tuple[int, torch.dtype], torch.Tensor]] = [{} for _ in range(WINDOW)]
        self._staging: torch.Tensor | None = None
        self.header_request = comm.Recv_init(self.header, worker, Tag.HEADER)
        self.records_request = comm.Recv_init(self.records, worker, Tag.RECORDS)
        self.state_request = comm.Recv_init(self.state, worker, Tag.STATE)
        self.chunk_requests = [comm.Recv_init(slot.numpy(), worker, Tag.CHUNK) for slot in self._slots]
        self.arrived = 0
        self.released = 0
        self.posted = 0
        self.sends: deque[tuple[MPI.Request, object, bool]] = deque()
        self.staged = 0
        self.dead = False
        self.heard = -math.inf
        self._stagings = 0

    def start(self) -> None:
        self.header_request.Start()
        self.records_request.Start()
        self.state_request.Start()
        self.post()

    def post(self) -> None:
        while not self.dead and self.posted < self.released + WINDOW:
            self.chunk_requests[self.posted % WINDOW].Start()
            self.posted += 1

    def slot(self, shape: tuple[int, torch.dtype]) -> torch.Tensor:
        """The first bytes, so many, of the oldest slot that is not released, as values of that type."""
        views = self._views[self.released % WINDOW]
        if shape not in views:
            nbytes, dtype = shape
            views[shape] = self._slots[self.released % WINDOW, :nbytes].view(dtype)
        return views[shape]

    def stage(self, data: np.ndarray) -> np.ndarray:
        """Copy a chunk to where it stays unchanged until it has been sent."""
        if self._staging is None:
            self._staging = torch.empty_like(self._slots)
        buffer = self._staging[self._stagings % WINDOW].numpy()[: data.nbytes]
        buffer[:] = data
        self._stagings += 1
        self.staged += 1
        return buffer

    def pop_send(self) -> None:
        _, _, staged = self.sends.popleft()
        self.staged -= staged

    def free(self) -> None:
        if self.dead:
            return  # its requests are in error, and go with the process
        for request in [self.header_request, self.records_request, self.state_request, *self.chunk_requests]:
            if not request.Test():
                request.Cancel()
                request.Wait()
            request.Free()


class ServerChannel:
    """Receives pushes chunk by chunk into a few slots for each worker and sends chunks of the global parameters.

    A worker's push flows only as fast as its slots are released, so that the server never holds whole pushes.

    Args:
        comm: communicator of the run.
        run_id: number that every message carries.
        layout: layout of the vector.
        workers: ranks of the workers.
        columns: columns of a block of step records.

    Attributes:
        silent: workers that are waited for no longer.
        moved: whether the last poll completed anything, sends included: only then is there anything new to do.
    """

    def __init__(self, comm: MPI.Intracomm, run_id: int, layout: Layout, workers: Iterable[int], columns: int) -> None:
        self.comm = comm
        self.run_id = run_id
        self.layout = layout
        self.peers = {worker: _Peer(comm, worker, layout, columns) for worker in workers}
        self.silent: Container[int] = ()
        self.moved = False
        self._events: list[Event] = []
        self._shapes = [(c.nbytes, TORCH_DTYPE[layout.segments[c.segment].wire_dtype]) for c in layout.chunks]
        self._order = list(self.peers.values())
        self._requests: list[MPI.Request] = []
        for place, peer in enumerate(self._order):
            peer.place = place
            peer.start()
            self._requests += (
                *(peer.header_request, peer.chunk_requests[0], peer.records_request, peer.state_request),
                MPI.REQUEST_NULL,
            )

    def poll(self) -> list[Event]:
        """Move everything under way forward and return what has arrived, headers before the chunks that follow them.

        Raises:
            StrayMessage: a header is no push of this run; what else has arrived is returned by the next call.
        """
        done = self._completed()
        self.moved = bool(done) or bool(self._events)
        if not self.moved:
            return []
        stray: StrayMessage | None = None
        now = time.perf_counter()
        for index in sorted(done):
            peer = self._order[index // _KINDS]
            if peer.dead:
                continue
            peer.heard = now
            try:
                self._take(peer, index % _KINDS)
            except StrayMessage as error:
                stray = error
            except MPI.Exception as error:
                self._lose(peer, error)
        if stray is not None:
            raise stray
        events, self._events = self._events, []
        return events

    def slot(self, worker: int, chunk: int) -> torch.Tensor:
        """The chunk of the worker's push that has arrived and is not released, in its type on the wire."""
        return self.peers[worker].slot(self._shapes[chunk])

    def release(self, worker: int) -> None:
        """Give the slot of the oldest chunk back for another one to be received."""
        peer = self.peers[worker]
        peer.released += 1
        try:
            peer.post()
        except MPI.Exception as error:
            self._lose(peer, error)
        self._watch_chunk(peer)

    def send_header(self, worker: int, message: Global, integers: np.ndarray) -> None:
        """Start sending the header of a global message with the integer buffers (int64)."""
        data = np.concatenate([np.frombuffer(message.pack(self.run_id), np.uint8), integers.view(np.uint8)])
        self._send(worker, Tag.HEADER, data, staged=False)

    def send_chunk(self, worker: int, data: np.ndarray) -> None:
        """Start sending a chunk (uint8) that does not change before the worker has received it."""
        self._send(worker, Tag.CHUNK, data, staged=False)

    def send_copy(self, worker: int, data: np.ndarray) -> None:
        """Start sending a copy of a chunk (uint8). Call it only where ``has_room``."""
        self._send(worker, Tag.CHUNK, self.peers[worker].stage(data), staged=True)

    def has_room(self, worker: int) -> bool:
        """Whether a buffer for a copy is free."""
        return self.peers[worker].staged < WINDOW

    @property
    def drained(self) -> bool:
        """Whether everything that was handed over has left, but for what ``silent`` workers do not take."""
        return not any(peer.sends for peer in self.peers.values() if peer.worker not in self.silent)

    def heard(self, worker: int) -> float:
        """When something of the worker's was last received, or sent to it: ``perf_counter`` seconds."""
        return self.peers[worker].heard

    def close(self) -> None:
        """Cancel the receives that nothing will match any more and free all requests."""
        for peer in self.peers.values():
            peer.free()
        self.peers, self._order, self._requests = {}, [], []

    def _completed(self) -> list[int]:
        """Places of the requests that are complete.

        Raises:
            MPI.Exception: MPI failed, and not because a worker has died.
        """
        try:
            return MPI.Request.Testsome(self._requests) or []
        except MPI.Exception as error:
            # It has completed requests and does not say which: each is asked again.
            dead = faults.failed(self.comm)
            found = [peer for peer in self._order if peer.worker in dead and not peer.dead]
            if not found:
                raise
            for peer in found:
                self._lose(peer, error)
        done = []
        for index, request in enumerate(self._requests):
            peer, what = self._order[index // _KINDS], index % _KINDS
            try:
                if self._watched(peer, what) and request.Test():
                    done.append(index)
            except MPI.Exception as error:
                self._lose(peer, error)
        return done

    def _watched(self, peer: _Peer, what: int) -> bool:
        if peer.dead:
            return False
        return {_CHUNK: peer.arrived < peer.posted, _SEND: bool(peer.sends)}.get(what, True)

    def _lose(self, peer: _Peer, error: MPI.Exception) -> None:
        """The worker is dead: nothing is asked of it any more, and the next poll says so.

        Raises:
            MPI.Exception: it is not.
        """
        if peer.dead:
            return
        if peer.worker not in faults.failed(self.comm):
            raise error
        peer.dead, peer.staged = True, 0
        peer.sends.clear()
        begin = _KINDS * peer.place
        self._requests[begin : begin + _KINDS] = [MPI.REQUEST_NULL] * _KINDS
        self._events.append(WorkerLost(peer.worker))

    def _take(self, peer: _Peer, what: int) -> None:
        """A request of the worker's is complete: take what it has brought, and ask again."""
        if what == _HEADER:
            self._events.append(self._header(peer))
        elif what == _CHUNK:
            self._events += self._chunks(peer)
        elif what == _RECORDS:
            self._events += self._records(peer)
        elif what == _STATE:
            self._events.append(self._state(peer))
        else:
            self._sent(peer)

    def _send(self, worker: int, tag: Tag, data: np.ndarray, staged: bool) -> None:
        # The data is kept beside its request: it must stay where it is until the send is complete.
        peer = self.peers[worker]
        if peer.dead:
            return
        try:
            peer.sends.append((self.comm.Isend(data, worker, tag), data, staged))
        except MPI.Exception as error:
            self._lose(peer, error)
        if len(peer.sends) == 1:
            self._watch_send(peer)

    def _sent(self, peer: _Peer) -> None:
        peer.pop_send()
        while peer.sends and peer.sends[0][0].Test():
            peer.pop_send()
        self._watch_send(peer)

    # A poll asks for the same requests again and again, so that their list is kept and changed in place.

    def _watch_chunk(self, peer: _Peer) -> None:
        awaited = peer.arrived < peer.posted and not peer.dead
        request = peer.chunk_requests[peer.arrived % WINDOW] if awaited else MPI.REQUEST_NULL
        self._requests[_KINDS * peer.place + _CHUNK] = request

    def _watch_send(self, peer: _Peer) -> None:
        self._requests[_KINDS * peer.place + _SEND] = peer.sends[0][0] if peer.sends else MPI.REQUEST_NULL

    def _header(self, peer: _Peer) -> PushArrived:
        push = Push.unpack(peer.header.data, self.run_id)
        integers = peer.header[HEADER_BYTES:].view(np.int64).copy()
        peer.header_request.Start()
        return PushArrived(push, integers)

    def _chunks(self, peer: _Peer) -> list[Event]:
        events: list[Event] = [peer.chunk_arrived]
        peer.arrived += 1
        while peer.arrived < peer.posted and peer.chunk_requests[peer.arrived % WINDOW].Test():
            peer.arrived += 1
            events.append(peer.chunk_arrived)
        self._watch_chunk(peer)
        return events

    def _records(self, peer: _Peer) -> list[Event]:
        rows = int(peer.records[0, 0])
        block = peer.records[1 : rows + 1].copy()
        peer.records_request.Start()
        return [RecordsArrived(peer.worker, block)]

    def _state(self, peer: _Peer) -> StateArrived:
        version, records, total, offset, size = (int(v) for v in peer.state[:_STATE_HEAD].view(np.int64))
        data = peer.state[_STATE_HEAD : _STATE_HEAD + size].copy()
        peer.state_request.Start()
        return StateArrived(peer.worker, version, records, total, offset, data)
