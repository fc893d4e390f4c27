"""What the server's channel tells: a message of a worker has arrived, or the worker is lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdml.protocol.messages import Push


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
