"""Tags of the messages. Up is from a worker to the server, down from the server to a worker."""

from __future__ import annotations

from enum import IntEnum

STATE_BLOCK = 1 << 19
"""Bytes of a worker's state in one message, behind five int64: version, blocks of step records before it, size of all,
offset and size of the block."""


FINAL_STATE = -1
"""In place of the version: the state that a worker leaves behind when it has ended."""


class Tag(IntEnum):
    """What a message carries; messages of one tag between two ranks arrive in the order in which they were sent."""

    HEADER = 1
    """A packed header with the integer buffers behind it, up and down."""
    CHUNK = 2
    """A chunk of the vector, up and down; its index is its place in the order."""
    RECORDS = 3
    """Rows of step records, up."""
    STATE = 5
    """A block of a worker's saved state, up."""
    FAILURE = 4
    """Nothing: the sender is about to end, or all ranks with it. To those that it concerns."""
    CLOCK = 7
    """Nothing, up, and rank 0's time, down."""
    END = 6
    """The exit status of the run, int64, down: the result is written, and everybody may leave."""
