"""How a model's values lie in the vector that travels: typed segments, cut into chunks.

The layout is the same on every rank; ``digest`` lets the ranks make sure of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import IntEnum

ALIGNMENT = 64
"""Bytes to which segments are aligned, a cache line, so that every typed view is aligned."""


_DOUBLE = ("torch.float64", "torch.complex128")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value of each type that travels."""


class Kind(IntEnum):
    """What a worker pushes for a segment, and how the server takes it in."""

    UPDATE = 0
    """Parameters: the sum of the local updates travels; the outer optimizer takes it as a pseudo-gradient."""
    VALUE = 1
    """Floating-point buffers: the values travel and are averaged. The average of running variances is positive, whereas
    a delayed sum of their differences can fall below zero."""


@dataclass(frozen=True)
class Segment:
    """A run of values of one kind and one type of the model.

    Attributes:
        kind: how the server takes the values in.
        model_dtype: type within the model, as in ``"torch.bfloat16"``.
        wire_dtype: name of the type that travels, one of ``ITEM_BYTES``.
        start: offset in the vector, in bytes.
        count: number of values, in ``wire_dtype``.
    """

    kind: Kind
    model_dtype: str
    wire_dtype: str
    start: int
    count: int

    @property
    def itemsize(self) -> int:
        return ITEM_BYTES[self.wire_dtype]

    @property
    def narrow(self) -> bool:
        """Whether the values are rounded to half precision in order to travel."""
        return self.itemsize == 2

    @property
    def stop(self) -> int:
        return self.start + self.count * self.itemsize


@dataclass(frozen=True)
class Chunk:
    """A piece of one segment, the unit in which the vector travels; ``start`` and ``stop`` are bytes of the vector."""

    index: int
    segment: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """The segments of a model's vector, its chunks and the number of integer values that travel in the header.

    Attributes:
        nbytes: size of the vector in bytes, padding between segments included.
        integers: number of int64 values (integer buffers) that travel beside the vector.
        names: the names of all entries in order, for ``digest``.
    """

    segments: tuple[Segment, ...]
    chunks: tuple[Chunk, ...]
    nbytes: int
    integers: int
    names: tuple[str, ...]

    @property
    def payload(self) -> int:
        """Bytes that travel in one direction for one worker and round."""
        return sum(chunk.nbytes for chunk in self.chunks)

    @property
    def narrow(self) -> bool:
        """Whether some values are rounded to half precision in order to travel."""
        return any(segment.narrow for segment in self.segments)

    def full(self) -> Layout:
        """The layout in which the server keeps what travels: the same values and chunks, at least in float32."""
        if not self.narrow:
            return self
        segments: list[Segment] = []
        for segment in self.segments:
            start = align(segments[-1].stop) if segments else 0
            segments.append(replace(segment, wire_dtype=full_dtype(segment.model_dtype), start=start))
        chunks = []
        for chunk in self.chunks:
            old, new = self.segments[chunk.segment], segments[chunk.segment]
            first, last = ((edge - old.start) // old.itemsize for edge in (chunk.start, chunk.stop))
            begin, end = new.start + first * new.itemsize, new.start + last * new.itemsize
            chunks.append(replace(chunk, start=begin, stop=end))
        return replace(self, segments=tuple(segments), chunks=tuple(chunks), nbytes=align(segments[-1].stop))

    def digest(self) -> bytes:
        """32 bytes that are equal on two ranks if and only if their layouts are."""
        return hashlib.sha256(repr((self.segments, self.chunks, self.integers, self.names)).encode()).digest()


def full_dtype(model_dtype: str) -> str:
    """The type that holds a model's values on the server: half-precision ones as float32."""
    return "float64" if model_dtype in _DOUBLE else "float32"


def align(offset: int) -> int:
    """The next offset at which a segment may start."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def cut(segments: tuple[Segment, ...], chunk_bytes: int) -> tuple[Chunk, ...]:
    """Cut segments into chunks of at most ``chunk_bytes`` bytes; no chunk spans two segments.

    A chunk is far below 2 GiB, so that no MPI count overflows however large the model is.
    """
    chunk_bytes = max(ALIGNMENT, chunk_bytes // ALIGNMENT * ALIGNMENT)
    chunks: list[Chunk] = []
    for number, segment in enumerate(segments):
        for start in range(segment.start, segment.stop, chunk_bytes):
            chunks.append(Chunk(len(chunks), number, start, min(start + chunk_bytes, segment.stop)))
    return tuple(chunks)
