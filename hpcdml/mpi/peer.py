"""What the server has for one worker: its requests and buffers."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from mpi4py import MPI

from hpcdml.mpi.events import ChunkArrived
from hpcdml.mpi.tags import STATE_BLOCK, Tag
from hpcdml.parameters import Layout
from hpcdml.parameters.layout import align
from hpcdml.protocol.messages import HEADER_BYTES

WINDOW = 4
"""Receive buffers of one chunk for each worker, and as many for copies of chunks on their way to it."""

RECORD_ROWS = 1024
"""Most rows of a block of step records; the first row only holds the number of the others, in its first column."""


STATE_HEAD = 5 * 8

HEADER, CHUNK, RECORDS, STATE, SEND = range(5)
KINDS = 5
"""Requests of one worker that a poll asks for: the next of each kind."""


class Peer:
    """The server's requests and buffers for one worker.

    Receives are posted for the chunks of a push in order, into ``WINDOW`` slots in turn; those of the next push follow
    on. So the n-th chunk since the start is chunk ``n % chunks``, in slot ``n % WINDOW``.
    """

    def __init__(self, comm: MPI.Comm, rank: int, worker: int, layout: Layout, columns: int) -> None:
        self.comm = comm
        self.rank = rank
        self.worker = worker
        # The requests that a poll asks for: its own part of a list.
        self.asked: list[MPI.Request] = []
        self.begin = 0
        self.chunk_arrived = ChunkArrived(worker)
        self.header = np.zeros(HEADER_BYTES + 8 * layout.integers, np.uint8)
        self.records = np.zeros((RECORD_ROWS, columns))
        self.state = np.zeros(STATE_HEAD + STATE_BLOCK, np.uint8)
        # Chunks of several types land in a slot, of which each must begin where all of them may.
        largest = align(max(chunk.nbytes for chunk in layout.chunks))
        self._slots = torch.zeros(WINDOW, largest, dtype=torch.uint8)
        self._views: list[dict[tuple[int, torch.dtype], torch.Tensor]] = [{} for _ in range(WINDOW)]
        self._staging: torch.Tensor | None = None
        self.header_request = comm.Recv_init(self.header, rank, Tag.HEADER)
        self.records_request = comm.Recv_init(self.records, rank, Tag.RECORDS)
        self.state_request = comm.Recv_init(self.state, rank, Tag.STATE)
        self.chunk_requests = [comm.Recv_init(slot.numpy(), rank, Tag.CHUNK) for slot in self._slots]
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
