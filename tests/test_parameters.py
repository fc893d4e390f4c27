"""Flat models: views, types, layouts, updates and adoption."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpcdml.parameters import FlatModel, WireVector
from hpcdml.parameters.layout import Kind, Segment, cut


class Mixed(nn.Module):
    """Every kind of tensor that a model may have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Linear(4, 3, dtype=torch.float64)
        self.brief = nn.Parameter(torch.randn(5).to(torch.bfloat16))
        self.wave = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.tied = nn.Linear(4, 3)
        self.again = self.tied
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.randn(4), persistent=False)


def flat_of(model: nn.Module, chunk_bytes: int = 128) -> FlatModel:
    return FlatModel(model, chunk_bytes)


def test_values_stay_and_parameters_are_views() -> None:
    torch.manual_seed(0)
    model = Mixed()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    strides = model.conv.weight.stride()
    parameters = dict(model.named_parameters())
    flat = flat_of(model)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert model.conv.weight.stride() == strides
    memory = {f.untyped_storage().data_ptr() for f in flat.flats}
    for name in ("conv.weight", "norm.weight", "wide.bias", "brief", "wave", "tied.weight"):
        assert model.get_parameter(name).untyped_storage().data_ptr() in memory, name
    assert model.norm.running_mean.untyped_storage().data_ptr() in memory
    assert sum(f.numel() for f in flat.flats) == sum(s.count for s in flat.layout.segments)
    assert {(s.kind, s.model_dtype, s.wire_dtype) for s in flat.layout.segments} == {
        (Kind.UPDATE, "torch.float32", "float32"),
        (Kind.UPDATE, "torch.float64", "float64"),
        (Kind.UPDATE, "torch.bfloat16", "float32"),
        (Kind.UPDATE, "torch.complex64", "float32"),
        (Kind.VALUE, "torch.float32", "float32"),
    }
    assert flat.layout.integers == 1
    assert len(list(flat.static())) == 2  # the frozen parameter and the mask


def test_training_goes_on_in_the_flat_tensors() -> None:
    torch.manual_seed(0)
    plain, flat_model = nn.Linear(6, 3), nn.Linear(6, 3)
    flat_model.load_state_dict(plain.state_dict())
    flat = flat_of(flat_model)
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    for model in (plain, flat_model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(5):
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(plain.weight, flat_model.weight)
    assert torch.equal(flat.flats[0], torch.cat([plain.weight.flatten(), plain.bias]))


def test_update_and_compensated_adoption() -> None:
    model = nn.Linear(3, 2)
    flat = flat_of(model)
    x, update = WireVector(flat.layout), WireVector(flat.layout)
    flat.values_into(x)
    flat.adopt(x)
    start = flat.flats[0].clone()
    with torch.no_grad():
        model.weight.sub_(0.25)
    changed = flat.flats[0].clone()
    x.segments[0].fill_(10.0)
    flat.exchange(update, x, compensation=1.0)
    torch.testing.assert_close(update.segments[0], start - changed, rtol=0, atol=0)
    progress = torch.cat([torch.full((6,), 0.25), torch.zeros(2)])
    torch.testing.assert_close(flat.flats[0], 10.0 - progress)
    flat.update_into(update)
    assert not update.segments[0].any()


def test_buffers_travel_as_values_and_are_not_compensated() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    flat = flat_of(model)
    flat.set_base()
    model(torch.randn(16, 3) * 5)
    update = WireVector(flat.layout)
    flat.update_into(update)
    values = next(w for s, w in zip(flat.layout.segments, update.segments, strict=True) if s.kind is Kind.VALUE)
    assert torch.equal(values, torch.cat([model[1].running_mean, model[1].running_var]))
    x = WireVector(flat.layout)
    for wire in x.segments:
        wire.fill_(2.0)
    again = WireVector(flat.layout)
    flat.exchange(again, x, compensation=1.0)
    assert torch.equal(again.storage, update.storage)
    assert torch.equal(model[1].running_var, torch.full((4,), 2.0))
    assert flat.integers().tolist() == [1]
    flat.set_integers(np.array([41]))
    assert model[1].num_batches_tracked.item() == 41


def test_half_precision_is_kept_in_full_on_the_wire() -> None:
    model = nn.Linear(64, 64).to(torch.bfloat16)
    flat = flat_of(model)
    flat.set_base()
    with torch.no_grad():
        model.weight.mul_(1.5)
    update = WireVector(flat.layout)
    flat.update_into(update)
    assert update.segments[0].dtype == torch.float32
    torch.testing.assert_close(update.segments[0], flat.base[0].float() - flat.flats[0].float(), rtol=0, atol=0)


def test_an_exchange_is_an_update_and_an_adoption_in_one_pass() -> None:
    """Piece by piece or at once, in every type: the same values bit for bit."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 5).double(), nn.Linear(5, 5).bfloat16()
    )
    flat = flat_of(model, 4096)
    flat.set_base()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    update, expected, x = (WireVector(flat.layout) for _ in range(3))
    for wire in x.segments:
        wire.copy_(torch.randn_like(wire))
    flat.update_into(expected)
    kinds = [s.kind for s in flat.layout.segments]
    models = [
        (g - 0.5 * d).to(w.dtype) if kind is Kind.UPDATE else g
        for kind, g, d, w in zip(kinds, x.segments, expected.segments, flat.flats, strict=True)
    ]
    flat.exchange(update, x, compensation=0.5)
    for number, wanted in enumerate(models):
        assert torch.equal(update.segments[number], expected.segments[number])
        torch.testing.assert_close(flat.flats[number], wanted.to(flat.flats[number].dtype))
        assert torch.equal(flat.base[number], flat.flats[number])


def test_rehosted_model_is_the_wire_vector() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flat = flat_of(model)
    wire = WireVector(flat.layout)
    flat.rehost(wire)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    wire.segments[0].fill_(3.0)
    wire.segments[1].fill_(4.0)
    assert torch.equal(model[0].weight, torch.full((2, 3), 3.0))
    assert torch.equal(model[1].running_mean, torch.full((2,), 4.0))
    flat.load(wire)
    flat.check_views()


def test_a_replaced_tensor_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    flat = flat_of(model)
    flat.check_views()
    model[0].bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="0.bias"):
        flat.check_views()


def test_models_that_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="no trainable"):
        flat_of(nn.ReLU())


def test_digest_tells_models_apart() -> None:
    one, other, same = flat_of(nn.Linear(3, 2)), flat_of(nn.Linear(2, 3)), flat_of(nn.Linear(3, 2))
    assert one.layout.digest() == same.layout.digest() != other.layout.digest()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["float32", "float64"]), st.integers(1, 5000)), min_size=1),
    st.integers(1, 9000),
)
def test_chunks_cover_every_segment_once(parts: list[tuple[str, int]], chunk_bytes: int) -> None:
    segments, start = [], 0
    for dtype, count in parts:
        segments.append(Segment(Kind.UPDATE, dtype, dtype, start, count))
        start = -(-segments[-1].stop // 64) * 64
    chunks = cut(tuple(segments), chunk_bytes)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    for number, segment in enumerate(segments):
        mine = [c for c in chunks if c.segment == number]
        assert mine[0].start == segment.start and mine[-1].stop == segment.stop
        assert all(a.stop == b.start for a, b in zip(mine, mine[1:], strict=False))
        assert all(0 < c.nbytes <= max(64, chunk_bytes) and c.start % 64 == 0 for c in mine)


def test_bsp_with_one_worker_is_sequential_sgd_within_the_stated_bound() -> None:
    """x - (x - w) differs from w by at most u(|d| + |x'|), u = 2**-24: one rounding each of d and of the new value.

    It is equal bit for bit wherever w is within a factor of two of x.
    """
    torch.manual_seed(0)
    model, plain = nn.Linear(20, 20), nn.Linear(20, 20)
    plain.load_state_dict(model.state_dict())
    flat = flat_of(model)
    x, d = WireVector(flat.layout), WireVector(flat.layout)
    flat.values_into(x)
    for _ in range(50):
        flat.adopt(x)
        inputs, targets = torch.randn(8, 20), torch.randn(8, 20)
        plain.load_state_dict(model.state_dict())
        for each in (model, plain):
            torch.nn.functional.mse_loss(each(inputs), targets).backward()
            torch.optim.SGD(each.parameters(), lr=0.3).step()
            each.zero_grad()
        flat.update_into(d)
        before = x.segments[0].clone()
        x.segments[0].sub_(d.segments[0])
        after = torch.cat([plain.weight.flatten(), plain.bias]).detach()
        error = (x.segments[0].double() - after.double()).abs()
        assert (error <= 2.0**-24 * (d.segments[0].abs().double() + x.segments[0].abs().double())).all()
        ratio = after / before
        exact = (ratio >= 0.5) & (ratio <= 2.0)
        assert exact.sum() > 300 and not error[exact].any()
