"""The server's end of the connections to all workers: nonblocking throughout, driven by ``poll``."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable

import numpy as np
import torch
from mpi4py import MPI

from hpcdml.mpi import faults
from hpcdml.mpi.events import Event, PushArrived, RecordsArrived, StateArrived, WorkerLost
from hpcdml.mpi.peer import CHUNK, HEADER, KINDS, RECORDS, SEND, STATE, STATE_HEAD, WINDOW, Peer
from hpcdml.mpi.tags import Tag
from hpcdml.parameters import TORCH_DTYPE, Layout
from hpcdml.protocol.messages import HEADER_BYTES, Global, Push, StrayMessage

# Until the process ends: MPI may still look at them.
_unread: list[object] = []


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
        moved: whether the last poll completed anything, sends included: only then is there anything new to do.
    """

    def __init__(self, comm: MPI.Comm, run_id: int, layout: Layout, workers: Iterable[int], columns: int) -> None:
        self.comm = comm
        self.run_id = run_id
        self.layout = layout
        self.columns = columns
        self.peers = {worker: Peer(comm, worker, worker, layout, columns) for worker in workers}
        self.moved = False
        self._events: list[Event] = []
        self._shapes = [(c.nbytes, TORCH_DTYPE[layout.segments[c.segment].wire_dtype]) for c in layout.chunks]
        self._order = list(self.peers.values())
        self._requests: list[MPI.Request] = []
        self._joined: list[Peer] = []
        for peer in self._order:
            self._start(peer, self._requests)

    @property
    def joined(self) -> dict[int, MPI.Comm]:
        """The ways to workers that have joined since the start."""
        return {peer.worker: peer.comm for peer in self._joined if not peer.dead}

    def join(self, worker: int, comm: MPI.Intercomm) -> None:
        """A new process, at the other end of ``comm``, takes the place of a worker that is dead."""
        peer = Peer(comm, 0, worker, self.layout, self.columns)
        # One that had joined before it died is let go, with its buffers: it has been dead for as long as a start takes.
        self._joined = [*(other for other in self._joined if other.worker != worker), peer]
        self.peers[worker] = peer
        self._start(peer, peer.asked)

    def _start(self, peer: Peer, requests: list[MPI.Request]) -> None:
        peer.asked, peer.begin = requests, len(requests)
        peer.start()
        requests += (
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
        for peer, what in done:
            if peer.dead:
                continue
            peer.heard = now
            try:
                self._take(peer, what)
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
        if not self.receives(worker):
            peer.heard = time.perf_counter()  # from now on it is the worker's turn to send
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

    def send_word(self, worker: int, message: Global) -> None:
        """Start sending a global message that is no more than its header; a worker that ends may leave it unread."""
        self._send(worker, Tag.HEADER, np.frombuffer(message.pack(self.run_id), np.uint8), staged=False)

    def send_chunk(self, worker: int, data: np.ndarray) -> None:
        """Start sending a chunk (uint8) that does not change before the worker has received it."""
        self._send(worker, Tag.CHUNK, data, staged=False)

    def send_copy(self, worker: int, data: np.ndarray) -> None:
        """Start sending a copy of a chunk (uint8). Call it only where ``has_room``."""
        peer = self.peers[worker]
        if peer.dead:
            return
        if not peer.staged:
            peer.heard = time.perf_counter()  # from now on it is the worker's turn to take them
        self._send(worker, Tag.CHUNK, peer.stage(data), staged=True)

    def has_room(self, worker: int) -> bool:
        """Whether a buffer for a copy is free."""
        return self.peers[worker].staged < WINDOW

    def receives(self, worker: int) -> bool:
        """Whether the worker can send another chunk: a slot is free."""
        return self.peers[worker].arrived < self.peers[worker].posted

    def heard(self, worker: int) -> float:
        """When something of the worker's was last received, or sent to it, or could be again after it had waited for
        others: ``perf_counter`` seconds.
        """
        return self.peers[worker].heard

    def close(self, silent: Container[int] = ()) -> None:
        """Cancel the receives that nothing will match any more and free all requests.

        Call it when all workers have sent their last push: what they have not read by then is for nobody.

        Args:
            silent: workers that hang, perhaps in the midst of a message, whose receive MPI does not cancel then.
        """
        for peer in self.peers.values():
            if peer.worker in silent:
                _unread.append(peer)
                continue
            _unread.append(peer.sends)
            peer.free()
        self.peers, self._order, self._requests, self._joined = {}, [], [], []

    def _completed(self) -> list[tuple[Peer, int]]:
        """Which requests are complete, of which worker and kind, headers before the chunks that follow them.

        Raises:
            MPI.Exception: MPI failed, and not because a worker has died.
        """
        try:
            done = MPI.Request.Testsome(self._requests)
            found = [(self._order[index // KINDS], index % KINDS) for index in sorted(done)] if done else []
        except MPI.Exception as error:
            # It has completed requests and does not say which: each is asked again.
            dead = faults.failed(self.comm)
            lost = [peer for peer in self._order if peer.worker in dead and not peer.dead]
            if not lost:
                raise
            for peer in lost:
                self._lose(peer, error)
            found = self._asked_one_by_one(self._order)
        return found + self._asked_one_by_one(self._joined) if self._joined else found

    def _asked_one_by_one(self, peers: Iterable[Peer]) -> list[tuple[Peer, int]]:
        found = []
        for peer in peers:
            for what in range(KINDS):
                try:
                    if self._watched(peer, what) and peer.asked[peer.begin + what].Test():
                        found.append((peer, what))
                except MPI.Exception as error:
                    self._lose(peer, error)
        return found

    def _watched(self, peer: Peer, what: int) -> bool:
        if peer.dead:
            return False
        return {CHUNK: peer.arrived < peer.posted, SEND: bool(peer.sends)}.get(what, True)

    def _lose(self, peer: Peer, error: MPI.Exception) -> None:
        """The worker is dead: nothing is asked of it any more, and the next poll says so.

        Raises:
            MPI.Exception: it is not.
        """
        if peer.dead:
            return
        # Of a process that has joined, its own communicator does not tell.
        if not (peer.worker in faults.failed(self.comm) if peer.comm is self.comm else faults.is_death(error)):
            raise error
        peer.dead, peer.staged = True, 0
        peer.sends.clear()
        peer.asked[peer.begin : peer.begin + KINDS] = [MPI.REQUEST_NULL] * KINDS
        self._events.append(WorkerLost(peer.worker))

    def _take(self, peer: Peer, what: int) -> None:
        """A request of the worker's is complete: take what it has brought, and ask again."""
        if what == HEADER:
            self._events.append(self._header(peer))
        elif what == CHUNK:
            self._events += self._chunks(peer)
        elif what == RECORDS:
            self._events += self._records(peer)
        elif what == STATE:
            self._events.append(self._state(peer))
        else:
            self._sent(peer)

    def _send(self, worker: int, tag: Tag, data: np.ndarray, staged: bool) -> None:
        # The data is kept beside its request: it must stay where it is until the send is complete.
        peer = self.peers[worker]
        if peer.dead:
            return
        try:
            peer.sends.append((peer.comm.Isend(data, peer.rank, tag), data, staged))
        except MPI.Exception as error:
            self._lose(peer, error)
        if len(peer.sends) == 1:
            self._watch_send(peer)

    def _sent(self, peer: Peer) -> None:
        peer.pop_send()
        while peer.sends and peer.sends[0][0].Test():
            peer.pop_send()
        self._watch_send(peer)

    # A poll asks for the same requests again and again, so that their list is kept and changed in place.

    def _watch_chunk(self, peer: Peer) -> None:
        awaited = peer.arrived < peer.posted and not peer.dead
        request = peer.chunk_requests[peer.arrived % WINDOW] if awaited else MPI.REQUEST_NULL
        peer.asked[peer.begin + CHUNK] = request

    def _watch_send(self, peer: Peer) -> None:
        peer.asked[peer.begin + SEND] = peer.sends[0][0] if peer.sends else MPI.REQUEST_NULL

    def _header(self, peer: Peer) -> PushArrived:
        push = Push.unpack(peer.header.data, self.run_id)
        integers = peer.header[HEADER_BYTES:].view(np.int64).copy()
        peer.header_request.Start()
        return PushArrived(push, integers)

    def _chunks(self, peer: Peer) -> list[Event]:
        events: list[Event] = [peer.chunk_arrived]
        peer.arrived += 1
        while peer.arrived < peer.posted and peer.chunk_requests[peer.arrived % WINDOW].Test():
            peer.arrived += 1
            events.append(peer.chunk_arrived)
        self._watch_chunk(peer)
        return events

    def _records(self, peer: Peer) -> list[Event]:
        rows = int(peer.records[0, 0])
        block = peer.records[1 : rows + 1].copy()
        peer.records_request.Start()
        return [RecordsArrived(peer.worker, block)]

    def _state(self, peer: Peer) -> StateArrived:
        version, records, total, offset, size = (int(v) for v in peer.state[:STATE_HEAD].view(np.int64))
        data = peer.state[STATE_HEAD : STATE_HEAD + size].copy()
        peer.state_request.Start()
        return StateArrived(peer.worker, version, records, total, offset, data)
