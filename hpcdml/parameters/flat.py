"""A model whose parameters and buffers are views of a few flat tensors.

Everything that a round does to a model (forming the update, adopting global parameters) is then one operation for each
type of value in the model, however many tensors it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcdml.parameters.layout import Kind, Layout, Segment, align, cut, full_dtype
from hpcdml.parameters.narrow import narrow
from hpcdml.parameters.wire import WireVector

_PIECE = 1 << 17
"""Values that are worked on at once on the CPU: smaller pieces cost more calls, larger ones more misses."""

_DEVICE_PIECE = 1 << 24
"""The same on a GPU, where it bounds the memory for intermediate values."""

_INTEGER = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class FlatModel:
    """Moves a model's trainable parameters and persistent buffers into flat tensors and keeps them there as views.

    The model stays usable as it is: its parameters are the same ``nn.Parameter`` objects, and autograd and optimizers
    write into the flat tensors through them. Half-precision values travel as float32, so that the server keeps them at
    full precision. Frozen parameters, buffers outside the ``state_dict`` and boolean buffers stay where they are
    (``static``).

    With a narrow ``wire_dtype`` parameters travel in half precision. What the rounding takes from an update is added to
    the next one (*error feedback*, as in 1-bit SGD, Seide et al., Interspeech 2014), so that the sum of what arrives is
    right. Buffers travel as ever.

    Args:
        model: already on its device. Tied parameters are moved once.
        chunk_bytes: size of the pieces in which the vector travels, in bytes.
        wire_dtype: None, or ``"bfloat16"`` or ``"float16"``: the type in which parameters travel.

    Raises:
        ValueError: the model has no trainable parameters, or some on different devices.

    Attributes:
        base: the values at the last push, in the model's types.
        residual: what rounding has kept from the pushes so far, float32; None for what is not rounded.
    """

    def __init__(self, model: nn.Module, chunk_bytes: int, wire_dtype: str | None = None) -> None:
        self.model = model
        kept, self.integer_buffers, self._static = _entries(model)
        parameters = [t for kind, _, t in kept if kind is Kind.UPDATE]
        if not parameters:
            raise ValueError("the model has no trainable parameters")
        self.device = parameters[0].device
        if any(t.device != self.device for _, _, t in kept):
            raise ValueError("the model's parameters lie on different devices")
        keys = sorted({(kind, str(t.dtype)) for kind, _, t in kept})
        self.members = [[(n, t) for kind, n, t in kept if (kind, str(t.dtype)) == key] for key in keys]
        segments, start = [], 0
        for (kind, name), group in zip(keys, self.members, strict=True):
            dtype = group[0][1].dtype
            count = sum(t.numel() for _, t in group) * (2 if dtype.is_complex else 1)
            full = full_dtype(name)
            segment = Segment(kind, name, wire_dtype or full if kind is Kind.UPDATE else full, start, count)
            segments.append(segment)
            start = align(segment.stop)
        names = [f"{n} {tuple(t.shape)}" for group in self.members for n, t in group]
        names += [f"{n} {tuple(t.shape)}" for n, t in self.integer_buffers]
        self.layout = Layout(
            segments=tuple(segments),
            chunks=cut(tuple(segments), chunk_bytes),
            nbytes=start,
            integers=sum(t.numel() for _, t in self.integer_buffers),
            names=tuple(names),
        )
        self.flats = [self._flatten(group) for group in self.members]
        self._integers = self._flatten_integers()
        self.base: list[torch.Tensor] = []
        self.residual = [
            torch.zeros(s.count, dtype=torch.float32, device=self.device) if s.narrow else None for s in segments
        ]

    def rehost(self, wire: WireVector) -> None:
        """Keep the model's values in ``wire`` itself, where they have its type, so that ``load`` copies nothing."""
        for number, (group, out) in enumerate(zip(self.members, wire.segments, strict=True)):
            if group[0][1].dtype == out.dtype:
                self.flats[number] = self._flatten(group, out)

    def set_base(self) -> None:
        """Take the present values as those of the last push, from which the next update is counted."""
        if not self.base:
            self.base = [torch.empty_like(flat) for flat in self.flats]
        for base, flat in zip(self.base, self.flats, strict=True):
            base.copy_(flat)

    def update_into(self, out: WireVector) -> torch.Tensor:
        """Write what a push carries: ``base - w`` for parameters, the values themselves for buffers.

        ``base - w`` is exact for any optimizer, and exact in floating point wherever ``base / 2 <= w <= 2 base``
        (Sterbenz).

        Returns:
            On the model's device, the L2 norm of the parameters' part before it was rounded in order to travel; it is
            not finite if any value, of buffers as well, is not (or if it is beyond the range of float32).
        """
        norms = []
        for number, (segment, flat) in enumerate(zip(self.layout.segments, self.flats, strict=True)):
            if segment.kind is Kind.VALUE:
                out.segments[number].copy_(flat)
                norms.append(_zero_if_finite(flat))
                continue
            for w, b, d, rest in self._pieces(flat, self.base[number], out.segments[number], self.residual[number]):
                norms.append(torch.linalg.vector_norm(_update(w, b, d, rest)))
        return _norm(norms)

    def adopt(self, x: WireVector) -> None:
        """Make ``x`` the model, and the base of the next update."""
        self.load(x)
        self.set_base()

    def exchange(self, out: WireVector, x: WireVector, compensation: float) -> torch.Tensor:
        """Write the update as ``update_into`` does and adopt ``x - compensation * update`` (LOSP; OSP: compensation 0).

        Buffers become those of ``x``. All of it is done piece by piece, while a piece is in the processor's cache.

        Returns:
            The update's norm, as ``update_into``.
        """
        norms = []
        if not self.base:
            self.set_base()
        for number, (segment, flat) in enumerate(zip(self.layout.segments, self.flats, strict=True)):
            base, update, wire = self.base[number], out.segments[number], x.segments[number]
            if segment.kind is Kind.VALUE:
                update.copy_(flat)
                norms.append(_zero_if_finite(flat))
                flat.copy_(wire)
                base.copy_(wire)
                continue
            for w, b, d, g, rest in self._pieces(flat, base, update, wire, self.residual[number]):
                progress = _update(w, b, d, rest)
                norms.append(torch.linalg.vector_norm(progress))
                if w.dtype == progress.dtype == g.dtype:
                    torch.sub(g, progress, alpha=compensation, out=w)
                else:
                    w.copy_(g.to(progress.dtype) - compensation * progress)
                b.copy_(w)
        return _norm(norms)

    def forget_residual(self) -> None:
        """Drop what rounding has kept from the pushes so far."""
        for rest in self.residual:
            if rest is not None:
                rest.zero_()

    def load(self, x: WireVector) -> None:
        """Make ``x`` the model."""
        for flat, wire in zip(self.flats, x.segments, strict=True):
            if flat.data_ptr() != wire.data_ptr():
                flat.copy_(wire)

    def values_into(self, out: WireVector) -> None:
        """Write the model's values, as they are, in the layout that travels."""
        for flat, wire in zip(self.flats, out.segments, strict=True):
            wire.copy_(flat)

    def views(self, wire: WireVector) -> dict[str, torch.Tensor]:
        """The entries of the model's ``state_dict`` that travel in ``wire``, in its types, as views of it."""
        homes = {t.data_ptr(): number for number, group in enumerate(self.members) for _, t in group}
        found = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if not isinstance(tensor, torch.Tensor) or tensor.data_ptr() not in homes:
                continue
            number = homes[tensor.data_ptr()]
            values = wire.segments[number]
            if tensor.dtype.is_complex:
                values = torch.view_as_complex(values.view(-1, 2))
            start = (tensor.data_ptr() - self.flats[number].data_ptr()) // tensor.element_size()
            found[name] = torch.as_strided(values, tensor.shape, tensor.stride(), int(values.storage_offset()) + start)
        return found

    def integers(self) -> np.ndarray:
        """The integer buffers as one int64 array of ``layout.integers`` values."""
        found: np.ndarray = self.counted().cpu().numpy()
        return found

    def counted(self) -> torch.Tensor:
        """The integer buffers as one new int64 tensor of shape (``layout.integers``,) on the model's device."""
        parts = [flat.to(torch.int64) for flat in self._integers]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=self.device)

    def set_integers(self, values: np.ndarray) -> None:
        """Set the integer buffers from an int64 array of ``layout.integers`` values."""
        start = 0
        for flat in self._integers:
            flat.copy_(torch.from_numpy(values[start : start + flat.numel()]))
            start += flat.numel()

    def raise_integers(self, values: torch.Tensor) -> None:
        """Raise integer buffers that are less to the values of an int64 tensor of ``layout.integers`` values, on the
        model's device.
        """
        start = 0
        for flat in self._integers:
            torch.maximum(flat, values[start : start + flat.numel()].to(flat.dtype), out=flat)
            start += flat.numel()

    def static(self) -> Iterator[torch.Tensor]:
        """Tensors that are sent once at the start, not in rounds: frozen parameters and boolean buffers."""
        return iter(self._static)

    def check_views(self) -> None:
        """Make sure that the model still uses the flat tensors.

        Raises:
            ValueError: a parameter or buffer was replaced by another tensor since, with its name.
        """
        entries, integers, _ = _entries(self.model)
        now = {name: t.data_ptr() for _, name, t in entries} | {name: t.data_ptr() for name, t in integers}
        then = [entry for group in self.members for entry in group] + self.integer_buffers
        for name, tensor in then:
            if now.get(name) != tensor.data_ptr():
                raise ValueError(f"the model replaced its tensor {name!r}; buffers must be changed in place")

    def _pieces(self, *vectors: torch.Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Corresponding pieces of vectors of equal length, of which the last may be None."""
        piece = _PIECE if self.device.type == "cpu" else _DEVICE_PIECE
        count = next(-(-v.numel() // piece) for v in vectors if v is not None)
        return zip(*([None] * count if v is None else v.split(piece) for v in vectors), strict=True)

    def _flatten(self, group: list[tuple[str, torch.Tensor]], out: torch.Tensor | None = None) -> torch.Tensor:
        first = group[0][1]
        count = sum(t.numel() for _, t in group)
        flat = torch.empty(count, dtype=first.dtype, device=self.device) if out is None else out
        start = int(flat.storage_offset())
        for _, tensor in group:
            # Dense tensors keep their strides (channels_last stays channels_last); others become contiguous.
            strides = tensor.stride() if _dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
            view = torch.as_strided(flat, tensor.shape, strides, start)
            view.copy_(tensor.detach())
            tensor.data = view
            start += tensor.numel()
        return torch.view_as_real(flat).flatten() if first.dtype.is_complex else flat

    def _flatten_integers(self) -> list[torch.Tensor]:
        types = {str(t.dtype): t.dtype for _, t in self.integer_buffers}
        groups = [[e for e in self.integer_buffers if e[1].dtype == types[key]] for key in sorted(types)]
        self.integer_buffers = [entry for group in groups for entry in group]
        return [self._flatten(group) for group in groups]


def _update(w: torch.Tensor, base: torch.Tensor, out: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
    """Write ``base - w`` into ``out``; returns the progress that it stands for, before it was rounded.

    Args:
        rest: what rounding has kept so far, which is added; it becomes what rounding keeps now. None: no rounding.
    """
    if rest is not None:
        progress = rest + base
        progress.sub_(w)
        narrow(progress, out, rest)
        return progress
    if w.dtype == out.dtype:
        return torch.sub(base, w, out=out)
    return torch.sub(base.to(out.dtype), w.to(out.dtype), out=out)


def _zero_if_finite(values: torch.Tensor) -> torch.Tensor:
    """0 or nan, without the host's waiting for it."""
    return (values * 0).sum()


def _norm(norms: list[torch.Tensor]) -> torch.Tensor:
    """The norm of a vector from those of its pieces, float64."""
    return torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms]))


def _entries(
    model: nn.Module,
) -> tuple[list[tuple[Kind, str, torch.Tensor]], list[tuple[str, torch.Tensor]], list[torch.Tensor]]:
    """Sort the model's tensors into (kind, name, tensor) that travel, integer buffers and static tensors."""
    kept: list[tuple[Kind, str, torch.Tensor]] = []
    integers: list[tuple[str, torch.Tensor]] = []
    static: list[torch.Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            kept.append((Kind.UPDATE, name, parameter))
        else:
            static.append(parameter.data)
    persistent = set(model.state_dict(keep_vars=True))
    for name, buffer in model.named_buffers():
        if name not in persistent or not buffer.numel():
            continue
        if buffer.is_floating_point() or buffer.is_complex():
            kept.append((Kind.VALUE, name, buffer))
        elif buffer.dtype in _INTEGER:
            integers.append((name, buffer))
        else:
            static.append(buffer)
    return kept, integers, static


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the strides are a permutation of contiguous ones, without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
