"""Between the model's device and the host memory that MPI sends from and receives into.

A model on the CPU needs nothing: its update is written straight into the vector that is sent. For a model on a GPU the
update goes chunk by chunk into page-locked memory on a stream of its own, each chunk is sent as soon as it has landed,
and arriving chunks go the other way. A CUDA-aware MPI is given the GPU's memory itself instead. The model's stream is
never synchronised: streams wait for one another's events, and the host only asks whether an event has passed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch

from hpcdml.parameters import FlatModel, Layout, WireVector


class Event(Protocol):
    """A point in a queue of copies."""

    def query(self) -> bool:
        """Whether everything before it is done."""


class CopyQueue(ABC):
    """Copies that run beside the model's computation, in order."""

    @abstractmethod
    def after_model(self) -> None:
        """Let later copies wait for what the model's stream has been given so far."""

    @abstractmethod
    def before_model(self) -> None:
        """Let what the model's stream is given from now on wait for the copies so far."""

    @abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between device and page-locked host memory."""

    @abstractmethod
    def event(self) -> Event:
        """A point after the copies so far."""


class CudaQueue(CopyQueue):
    """A stream of copies on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def after_model(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def before_model(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        event = torch.cuda.Event()
        event.record(self.stream)
        return event


class _Fetched:
    """Values on their way from a device, whose memory is kept meanwhile."""

    def __init__(self, host: torch.Tensor) -> None:
        self._host = host
        self._source: torch.Tensor | None = None
        self._event: Event | None = None

    def fetch(self, source: torch.Tensor, queue: CopyQueue) -> None:
        self._source = source
        queue.copy(self._host, source)
        self._event = queue.event()

    @property
    def value(self) -> torch.Tensor | None:
        return self._host if self._event is not None and self._event.query() else None


class Staging:
    """A model on the CPU: the vectors of the model are those of MPI.

    Attributes:
        update: where the model's update is written.
        globals: where the model reads global parameters from.
        push: host memory that pushes are sent from.
        pull: host memory that global parameters are received into.
    """

    def __init__(self, layout: Layout) -> None:
        self.push = self.update = WireVector(layout)
        self.pull = self.globals = WireVector(layout)
        self._norm = 0.0
        self._taken = np.empty(0, np.int64)

    def written(self, norm: torch.Tensor) -> None:
        """The model's stream has been given the work that writes ``update`` and its ``norm``, a single number."""
        self._norm = float(norm)

    @property
    def norm(self) -> float | None:
        """The norm of the last update; None: the device has not come so far."""
        return self._norm

    def take_integers(self, flat: FlatModel) -> None:
        """Take the model's integer buffers as they are when all work is done that its stream has been given."""
        self._taken = flat.integers()

    @property
    def integers(self) -> np.ndarray | None:
        """What was taken, int64; None: the device has not come so far."""
        return self._taken

    def raise_integers(self, flat: FlatModel, values: np.ndarray) -> None:
        """Give the model's stream the work that raises integer buffers which are less to ``values`` (int64)."""
        flat.raise_integers(torch.from_numpy(values))

    def ready(self, chunk: int) -> bool:
        """Whether a chunk of the update lies in ``push``."""
        return True

    def landed(self, chunk: int) -> None:
        """A chunk of global parameters has been received into ``pull``."""

    def reading(self) -> None:
        """The model's stream is about to be given the work that reads ``globals``; all chunks have landed."""

    def read(self) -> None:
        """The model's stream has been given the work that reads ``globals``."""

    @property
    def pull_free(self) -> bool:
        """Whether ``pull`` may be received into again."""
        return True


class _QueuedStaging(Staging):
    """A model on another device: what goes with its vectors, an update's norm and the integer buffers both ways.

    The model's stream is never waited for: what it has computed is fetched when it has come so far, and what it is to
    read is copied by the queue's stream.
    """

    def __init__(self, layout: Layout, device: torch.device, queue: CopyQueue, pinned: bool) -> None:
        def host(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        self.queue = queue
        self._norm_there = _Fetched(host(dtype=torch.float64))
        self._mine = _Fetched(host(layout.integers, dtype=torch.int64))
        self._theirs = host(layout.integers, dtype=torch.int64)
        self._theirs_there = torch.zeros(layout.integers, dtype=torch.int64, device=device)
        self._copied: Event | None = None

    def written(self, norm: torch.Tensor) -> None:
        self.queue.after_model()
        self._norm_there.fetch(norm, self.queue)

    @property
    def norm(self) -> float | None:
        value = self._norm_there.value
        return None if value is None else float(value)

    def take_integers(self, flat: FlatModel) -> None:
        if flat.layout.integers:
            mine = flat.counted()
            self.queue.after_model()
            self._mine.fetch(mine, self.queue)

    @property
    def integers(self) -> np.ndarray | None:
        value = self._mine.value if len(self._theirs) else self._theirs
        return None if value is None else value.numpy()

    def raise_integers(self, flat: FlatModel, values: np.ndarray) -> None:
        while self._copied is not None and not self._copied.query():
            time.sleep(0)  # never, but for a device that is a round behind
        self._theirs.numpy()[:] = values
        self.queue.after_model()
        self.queue.copy(self._theirs_there, self._theirs)
        self._copied = self.queue.event()
        self.queue.before_model()
        flat.raise_integers(self._theirs_there)


class DeviceStaging(_QueuedStaging):
    """A model on another device, whose memory MPI does not read.

    Args:
        layout: layout of the vectors.
        device: the model's device.
        queue: what copies.
        pinned: page-locked host memory, without which copies to and from a GPU are not asynchronous.
    """

    def __init__(self, layout: Layout, device: torch.device, queue: CopyQueue, pinned: bool = True) -> None:
        super().__init__(layout, device, queue, pinned)
        self.update = WireVector(layout, device=device)
        self.globals = WireVector(layout, device=device)
        self.push = WireVector(layout, pinned=pinned)
        self.pull = WireVector(layout, pinned=pinned)
        self._written: list[Event] = []
        self._ready = 0
        self._landed: Event | None = None

    def written(self, norm: torch.Tensor) -> None:
        super().written(norm)
        self._written.clear()
        self._ready = 0
        for target, source in zip(self.push.chunks, self.update.chunks, strict=True):
            self.queue.copy(target, source)
            self._written.append(self.queue.event())

    def ready(self, chunk: int) -> bool:
        while self._ready <= chunk and self._written[self._ready].query():
            self._ready += 1
        return self._ready > chunk

    def landed(self, chunk: int) -> None:
        self.queue.copy(self.globals.chunks[chunk], self.pull.chunks[chunk])
        self._landed = self.queue.event()

    def reading(self) -> None:
        self.queue.before_model()

    def read(self) -> None:
        self.queue.after_model()

    @property
    def pull_free(self) -> bool:
        return self._landed is None or self._landed.query()


class DirectStaging(_QueuedStaging):
    """A model on a GPU whose memory MPI reads and writes: nothing is copied, but MPI must not be too early.

    Args:
        layout: layout of the vectors.
        device: the model's device.
        queue: gives the events; it copies nothing but the norm and the integer buffers.
    """

    def __init__(self, layout: Layout, device: torch.device, queue: CopyQueue) -> None:
        super().__init__(layout, device, queue, pinned=device.type == "cuda")
        self.push = self.update = WireVector(layout, device=device)
        self.pull = self.globals = WireVector(layout, device=device)
        self._written: Event | None = None
        self._read: Event | None = None

    def written(self, norm: torch.Tensor) -> None:
        super().written(norm)
        self._written = self.queue.event()

    def ready(self, chunk: int) -> bool:
        return self._written is not None and self._written.query()

    def read(self) -> None:
        self.queue.after_model()
        self._read = self.queue.event()

    @property
    def pull_free(self) -> bool:
        return self._read is None or self._read.query()


def make_staging(layout: Layout, device: torch.device, direct: bool = False) -> Staging:
    """Return the staging for a model on ``device``.

    Args:
        direct: MPI is given the memory of a GPU; ``hpcdml.mpi.cuda_aware`` tells whether it can be.
    """
    if device.type != "cuda":
        return Staging(layout)
    if direct:
        return DirectStaging(layout, device, CudaQueue(device))
    return DeviceStaging(layout, device, CudaQueue(device))
