"""Rounding to half precision with error feedback: what is lost now is sent later."""

from __future__ import annotations

import torch

from hpcdml.parameters.layout import Layout
from hpcdml.parameters.wire import WireVector


def narrow(value: torch.Tensor, out: torch.Tensor, rest: torch.Tensor) -> None:
    """Round ``value`` to the type of ``out`` and write into ``rest`` what that takes from it.

    Values beyond the range of the type become its largest: the remainder follows later.

    Args:
        value: float32 or float64.
        out: float16 or bfloat16, of the same shape.
        rest: float32, of the same shape.
    """
    limit = torch.finfo(out.dtype).max
    out.copy_(value.clamp(-limit, limit) if out.dtype == torch.float16 else value)
    torch.sub(value, out, out=rest)


class Narrowed:
    """A vector in the narrower layout in which it travels; the mean of what is sent is that of the vector.

    Error feedback is kept for the vector, not for a receiver: whoever misses a message misses nothing that a later one
    does not bring, as each carries the whole values.

    Args:
        source: the vector, in the full layout.
        layout: the narrow layout, whose ``full()`` is that of ``source``.

    Attributes:
        out: what is sent.
        residual: what rounding has kept from the last message, in the full layout.
    """

    def __init__(self, source: WireVector, layout: Layout) -> None:
        self.source = source
        self.out = WireVector(layout)
        self.residual = WireVector(source.layout)

    def encode(self, chunk: int) -> None:
        """Make chunk ``chunk`` of ``out`` what its receivers are to have of the present values."""
        value, out, rest = (vector.chunks[chunk] for vector in (self.source, self.out, self.residual))
        if value.dtype == out.dtype:
            out.copy_(value)
        else:
            narrow(rest.add_(value), out, rest)
