"""The headers of the two messages, with a fixed binary layout.

A push goes from a worker to the server, a global message from the server to a worker. Each is a header of fixed size
with the model's integer buffers appended, followed (if it has a payload) by the chunks of the vector.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0x4C444348  # "HCDL"
FORMAT = 3

FINAL = 1
"""Flag of a push: the worker's last one."""
LEAVE = 2
"""Flag of a push: the worker was asked to end, and asks that the run does."""
STOP = 1
"""Flag of a global message: the worker answers with its final push."""
MARK = 2
"""Flag of a global message: the worker is to save its state before it takes in any later message. It has no payload and
answers nothing."""
AFRESH = 4
"""Flag of a global message: the update of the push that it answers was refused; the worker is to go on from the global
parameters as they are, without what it has done since."""

LOST = 8
"""Flag of a global message: the worker of rank ``answers`` is out of the run, and the others share its samples. It has
no payload and answers nothing."""
BACK = 16
"""Flag of a global message: the worker of rank ``answers`` is back in the run. It has no payload, answers nothing."""

_PREFIX = struct.Struct("<IHHQ")
_PUSH = struct.Struct("<iIqqqqqqqd")
_GLOBAL = struct.Struct("<Iqqqq")
_KIND_PUSH, _KIND_GLOBAL = 1, 2

HEADER_BYTES = _PREFIX.size + max(_PUSH.size, _GLOBAL.size)
"""Size of a header in bytes, the same for both messages, without the integer buffers."""


class StrayMessage(ValueError):
    """The bytes are no message of this run."""


@dataclass(frozen=True)
class Push:
    """What a worker says of its part of a round.

    Attributes:
        worker: rank of the worker.
        flags: ``FINAL``, ``LEAVE``, both or 0.
        sequence: number of this push among the worker's, from 1.
        version: version of the global parameters on which the update is based.
        local_steps: local steps in the update; 0 means that no payload follows.
        samples: training samples in the update.
        clock: local steps of the worker since the start of the run.
        records: blocks of step records that the worker has sent before this push.
        marked: version of the last mark upon which the worker has saved its state.
        norm: L2 norm of the update; not finite if any value of the payload is not.
    """

    worker: int
    flags: int
    sequence: int
    version: int
    local_steps: int
    samples: int
    clock: int
    records: int = 0
    marked: int = 0
    norm: float = 0.0

    def pack(self, run_id: int) -> bytes:
        """Return ``HEADER_BYTES`` bytes."""
        body = _PUSH.pack(
            self.worker, self.flags, self.sequence, self.version, self.local_steps, self.samples, self.clock,
            self.records, self.marked, self.norm,
        )  # fmt: skip
        return (_PREFIX.pack(MAGIC, FORMAT, _KIND_PUSH, run_id) + body).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes | memoryview, run_id: int) -> Push:
        """Read a push.

        Raises:
            StrayMessage: another kind of message, another format or another run.
        """
        _check(data, _KIND_PUSH, run_id)
        return cls(*_PUSH.unpack_from(data, _PREFIX.size))


@dataclass(frozen=True)
class Global:
    """What the server says of the global parameters that follow.

    Attributes:
        flags: ``MARK``, ``LOST`` or ``BACK``; or ``STOP`` and ``AFRESH``, one, both or none of them.
        version: version of the global parameters.
        answers: sequence number of the worker's push that this answers; with ``MARK`` that of its last push that the
            server's saved state contains; with ``LOST`` and ``BACK`` the rank of the worker that this is about.
        slowest: local steps of the slowest worker since the start of the run, less those that the worker was spared
            which gets this, as it was away.
        samples: training samples that the version contains, of all workers together.
    """

    flags: int
    version: int
    answers: int
    slowest: int
    samples: int

    @property
    def stop(self) -> bool:
        return bool(self.flags & STOP)

    @property
    def mark(self) -> bool:
        return bool(self.flags & MARK)

    @property
    def membership(self) -> bool:
        """Whether the message tells of another worker that is out of the run, or back in it."""
        return bool(self.flags & (LOST | BACK))

    @property
    def afresh(self) -> bool:
        return bool(self.flags & AFRESH)

    def pack(self, run_id: int) -> bytes:
        """Return ``HEADER_BYTES`` bytes."""
        body = _GLOBAL.pack(self.flags, self.version, self.answers, self.slowest, self.samples)
        return (_PREFIX.pack(MAGIC, FORMAT, _KIND_GLOBAL, run_id) + body).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes | memoryview, run_id: int) -> Global:
        """Read a global message.

        Raises:
            StrayMessage: another kind of message, another format or another run.
        """
        _check(data, _KIND_GLOBAL, run_id)
        return cls(*_GLOBAL.unpack_from(data, _PREFIX.size))


def _check(data: bytes | memoryview, kind: int, run_id: int) -> None:
    if len(data) < HEADER_BYTES:
        raise StrayMessage(f"a message of {len(data)} bytes, less than a header's {HEADER_BYTES}")
    magic, form, found, run = _PREFIX.unpack_from(data)
    if magic != MAGIC or form != FORMAT or found != kind:
        raise StrayMessage(f"a message of another kind (magic {magic:#x}, format {form}, kind {found})")
    if run != run_id:
        raise StrayMessage(f"a message of another run ({run:#x}, this one is {run_id:#x})")
