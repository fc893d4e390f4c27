"""The worker's end of the connection to the server: nonblocking throughout, driven by ``poll``."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
from mpi4py import MPI

from hpcdml.mpi import faults
from hpcdml.mpi.tags import STATE_BLOCK, Tag
from hpcdml.mpi.world import SERVER
from hpcdml.parameters import WireVector
from hpcdml.protocol.messages import HEADER_BYTES, Global, Push

WINDOW = 16
"""Chunks under way at once in each direction: enough to keep a link busy between two polls."""

SEND_SECONDS = 8e-3
"""What a push has under way at once takes so long at its present rate, and two chunks at least. On a slow link a worker
far ahead of the others would take it from those whose chunks are waited for. Theirs would come at the end of the round,
all at once, after the other direction has been idle."""


class WorkerChannel:
    """Receives global messages straight into ``pull`` and sends pushes straight from ``push``, without copies.

    ``pull`` may be read from the return of a message by ``poll`` until ``expect``; ``push`` may be written while
    ``push_free`` holds. The answer to a push proves that the server has all of it, so it holds at every answer.

    Args:
        comm: communicator of the run.
        run_id: number that every message carries.
        pull: vector that global parameters are received into.
        push: vector that pushes are sent from.
        ready: whether a chunk of ``push`` may be sent already; asked in order, at every poll.
        landed: is told of every chunk that has been received into ``pull``, in order.

    Attributes:
        moved: whether a chunk was completed by the last poll, so that more may be ready.
        moves: polls so far that completed a chunk, which the server had a hand in.
        mark: the message by which this worker is to save its state, until somebody sets it to None.
        membership: messages of workers that are out of the run or back, until somebody takes them out.

    Every method that talks to the server raises ``ServerLost`` when it has died.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        run_id: int,
        pull: WireVector,
        push: WireVector,
        ready: Callable[[int], bool] = lambda chunk: True,
        landed: Callable[[int], None] = lambda chunk: None,
    ) -> None:
        self.run_id = run_id
        self.comm = comm
        self._to_server = faults.ToServer(comm)
        self.pull = pull
        self.push = push
        self.ready = ready
        self.landed = landed
        self.chunks = len(pull.layout.chunks)
        self._window = 2
        self._gap = SEND_SECONDS
        self._sent_at = 0.0
        size = HEADER_BYTES + 8 * pull.layout.integers
        self._header_in = np.zeros(size, np.uint8)
        self._header_out = np.zeros(size, np.uint8)
        self._receive_header = comm.Recv_init(self._header_in, SERVER, Tag.HEADER)
        self._send_header = comm.Send_init(self._header_out, SERVER, Tag.HEADER)
        indices = range(self.chunks)
        # Synchronous sends are complete only when the server has a buffer for the chunk: it never holds more than
        # ``WINDOW`` chunks that it has not asked for, although TCP sends them without asking.
        self._receives = [comm.Recv_init(pull.buffer(k), SERVER, Tag.CHUNK) for k in indices]
        self._sends = [cast(MPI.Prequest, comm.Ssend_init(push.buffer(k), SERVER, Tag.CHUNK)) for k in indices]
        self._records: deque[tuple[MPI.Request, np.ndarray]] = deque()
        self._blocks: deque[tuple[int, int, np.ndarray, int]] = deque()
        self._block: tuple[MPI.Request, np.ndarray] | None = None
        self._expecting = False
        self._message: Global | None = None
        self._posted = 0
        self._arrived = 0
        self._to_send = 0
        self._started = 0
        self._sent = 0
        self._header_sent = True
        self._header: tuple[Push, Callable[[], float | None]] | None = None
        self._integers: Callable[[], np.ndarray | None] = lambda: self._header_out[HEADER_BYTES:].view(np.int64)
        self.moved = False
        self.moves = 0
        self.mark: Global | None = None
        self.membership: list[Global] = []

    @property
    def any_thread(self) -> bool:
        """Whether this MPI lets a thread other than the first one poll, one at a time."""
        return bool(MPI.Query_thread() >= MPI.THREAD_SERIALIZED)

    @property
    def push_free(self) -> bool:
        """Whether the last push has left, so that ``push`` may be written."""
        return self._header_sent and self._sent == self._to_send

    @property
    def drained(self) -> bool:
        """Whether everything that was handed over has left."""
        return self.push_free and not self._records and not self._blocks and self._block is None

    @property
    def busy(self) -> bool:
        """Whether anything is under way, so that polls are of use."""
        return self._expecting or not self.drained

    @property
    def integers(self) -> np.ndarray:
        """Integer buffers of the global message that arrived last, int64."""
        return self._header_in[HEADER_BYTES:].view(np.int64)

    @property
    def pushed_integers(self) -> np.ndarray:
        """Integer buffers that the last push took with it, int64; where they are still on their way, it waits."""
        while (found := self._integers()) is None:
            time.sleep(0)
        return found

    def expect(self) -> None:
        """Post the receives of the next global message. Call it before the push that the message answers."""
        self._expecting = True
        self._message = None
        self._posted = self._arrived = 0
        with self._to_server:
            self._receive_header.Start()
            while self._posted < min(WINDOW, self.chunks):
                self._receives[self._posted].Start()
                self._posted += 1

    def send(
        self,
        push: Push,
        integers: Callable[[], np.ndarray | None],
        norm: Callable[[], float | None] | None = None,
    ) -> None:
        """Start sending a push: its header, and the whole of ``push`` if it has a payload.

        Args:
            integers: the integer buffers that the header is to have, int64; it leaves when this is not None.
            norm: the norm that the header is to have, likewise. Without it, the push's own.

        Only the first chunk leaves here, as between two steps nobody computes; polls within the step start the others.
        """
        if not self.push_free:
            raise RuntimeError("a push while the last one is still under way")
        self._integers = integers
        self._header_sent = False
        self._header = push, norm or (lambda: push.norm)
        self._start_header()
        self._to_send = self.chunks if push.local_steps else 0
        self._started = self._sent = 0
        self._start_sends(1)

    def send_records(self, rows: np.ndarray) -> None:
        """Start sending a block of fewer than ``RECORD_ROWS`` step records, float64 of shape (rows, columns)."""
        block = np.vstack([np.full((1, rows.shape[1]), len(rows)), rows])
        with self._to_server:
            self._records.append((self.comm.Isend(block, SERVER, Tag.RECORDS), block))

    def send_state(self, version: int, records: int, image: np.ndarray) -> None:
        """Start sending this worker's saved state beside the pushes, one block at a time.

        Args:
            version: the version that it belongs to.
            records: blocks of step records that this worker has sent so far.
            image: uint8; it must not change until it has left.
        """
        self._blocks += ((version, records, image, start) for start in range(0, len(image), STATE_BLOCK))

    def poll(self) -> Global | None:
        """Move everything under way forward; return a global message when the last part of it has arrived.

        Raises:
            StrayMessage: what arrived is no global message of this run.
        """
        before = self._sent + self._arrived
        with self._to_server:
            message = self._poll()
        self.moved = self._sent + self._arrived != before
        self.moves += self.moved
        return message

    def _poll(self) -> Global | None:
        self._start_header()
        if not self._header_sent and self._header is None and self._send_header.Test():
            self._header_sent = True
        sent = self._sent
        while self._sent < self._started and self._sends[self._sent].Test():
            self._sent += 1
        if self._sent > sent:
            self._pace(self._sent - sent)
        self._start_sends(self._window)
        while self._records and self._records[0][0].Test():
            self._records.popleft()
        self._move_state()
        if not self._expecting:
            return None
        while self._arrived < self._posted and self._receives[self._arrived].Test():
            self.landed(self._arrived)
            self._arrived += 1
            if self._posted < self.chunks:
                self._receives[self._posted].Start()
                self._posted += 1
        while self._message is None and self._receive_header.Test():
            message = Global.unpack(self._header_in.data, self.run_id)
            if message.mark or message.membership:
                self.moves += 1
                if message.mark:
                    self.mark = message
                else:
                    self.membership.append(message)
                self._receive_header.Start()
            else:
                self._message = message
        if self._message is not None and (self._message.stop or self._arrived == self.chunks):
            self._expecting = False
            return self._message
        return None

    def close(self) -> None:
        """Cancel the receives that nothing will match any more and free all requests."""
        for request in self._receives[self._arrived : self._posted]:
            request.Cancel()
            request.Wait()
        for request in [self._receive_header, self._send_header, *self._receives, *self._sends]:
            request.Free()
        self._receives, self._sends = [], []

    def _start_header(self) -> None:
        """Start sending the header of the push, once all that it says is known."""
        if self._header is None:
            return
        push, norm = self._header
        value, integers = norm(), self._integers()
        if value is not None and integers is not None:
            self._header = None
            self._header_out[HEADER_BYTES:].view(np.int64)[:] = integers
            self._header_out[:HEADER_BYTES] = np.frombuffer(replace(push, norm=value).pack(self.run_id), np.uint8)
            self._send_header.Start()

    def _move_state(self) -> None:
        if self._block is not None and self._block[0].Test():
            self._block = None
        if self._block is None and self._blocks:
            version, records, image, start = self._blocks.popleft()
            piece = image[start : start + STATE_BLOCK]
            head = np.array([version, records, len(image), start, len(piece)], np.int64)
            block = np.concatenate([head.view(np.uint8), piece])
            # Synchronous: the server takes one block at a time, and has no more of them in memory.
            self._block = (self.comm.Issend(block, SERVER, Tag.STATE), block)

    def _pace(self, sent: int) -> None:
        """So many chunks of the push were completed by this poll: adapt how many are under way to their rate."""
        now = time.perf_counter()
        if self._sent > sent:
            self._gap += ((now - self._sent_at) / sent - self._gap) / 8.0
            self._window = min(WINDOW, max(2, math.ceil(SEND_SECONDS / max(self._gap, 1e-6))))
        self._sent_at = now

    def _start_sends(self, most: int) -> None:
        last = min(self._to_send, self._sent + self._window, self._started + most)
        while self._started < last and self.ready(self._started):
            self._sends[self._started].Start()
            self._started += 1
