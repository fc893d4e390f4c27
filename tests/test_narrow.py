"""Half precision on the wire: nothing is lost for good, in either direction, and the server keeps full precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpcdml.config import PolicyOptions
from hpcdml.parameters import FlatModel, Narrowed, WireVector
from hpcdml.parameters.layout import Kind
from hpcdml.protocol.policies import make_policy
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.outer import make_outer

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(90, 30), nn.BatchNorm1d(30), nn.Linear(30, 7).double(), nn.Linear(7, 3).bfloat16())


@pytest.mark.parametrize("wire", TYPES)
def test_the_layouts_hold_the_same_values_chunk_by_chunk(wire: str) -> None:
    narrow, wide = FlatModel(model_of(), 256, wire).layout, FlatModel(model_of(), 256).layout
    full = narrow.full()
    assert [s.wire_dtype for s in full.segments] == [s.wire_dtype for s in wide.segments]
    assert {s.wire_dtype for s in narrow.segments if s.kind is Kind.UPDATE} == {wire}
    assert {s.wire_dtype for s in narrow.segments if s.kind is Kind.VALUE} == {"float32"}, "statistics stay exact"
    assert wide.full() is wide and full.full() is full
    assert len(narrow.chunks) == len(full.chunks)
    for mine, theirs in zip(WireVector(narrow).chunks, WireVector(full).chunks, strict=True):
        assert mine.shape == theirs.shape
    assert sum(c.nbytes for c in narrow.chunks) < 0.6 * sum(c.nbytes for c in full.chunks)


@pytest.mark.parametrize("wire", TYPES)
def test_the_sum_of_all_pushes_is_the_sum_of_all_updates(wire: str) -> None:
    torch.manual_seed(1)
    model = nn.Linear(300, 300)
    flat = FlatModel(model, 4096, wire)
    push, x = WireVector(flat.layout), WireVector(flat.layout)
    assert push.segments[0].dtype == TYPES[wire]
    flat.values_into(x)
    flat.adopt(x)
    sent = torch.zeros(flat.flats[0].shape, dtype=torch.float64)
    true = sent.clone()
    for step in range(40):
        before = flat.flats[0].clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn_like(parameter))
        true += (before - flat.flats[0]).double()
        if step % 2:
            flat.exchange(push, x, compensation=1.0)
        else:
            flat.update_into(push)
            flat.set_base()
        sent += push.segments[0].double()
    rest = flat.residual[0]
    assert rest is not None and rest.any()
    torch.testing.assert_close(sent + rest.double(), true, rtol=0, atol=1e-6)
    # Without feedback 40 roundings of about 1e-3 would add up; with it one is left.
    assert (sent - true).abs().max() < 2e-5


@pytest.mark.parametrize("wire", TYPES)
def test_compensation_keeps_what_rounding_has_held_back(wire: str) -> None:
    """w = x - lambda (update + residual): all local progress that the server does not have."""
    torch.manual_seed(2)
    model = nn.Linear(50, 20)
    flat = FlatModel(model, 4096, wire)
    push, x = WireVector(flat.layout), WireVector(flat.layout)
    flat.values_into(x)
    flat.adopt(x)
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        rest = flat.residual[0]
        assert rest is not None
        progress = rest + flat.base[0] - flat.flats[0]
        x.segments[0].copy_(torch.randn(x.segments[0].shape))
        flat.exchange(push, x, compensation=1.0)
        torch.testing.assert_close(flat.flats[0], x.segments[0].float() - progress)
        torch.testing.assert_close(push.segments[0].float() + rest, progress)
        assert torch.equal(flat.base[0], flat.flats[0])


def test_what_does_not_fit_into_float16_follows_later() -> None:
    model = nn.Linear(2, 1, bias=False)
    flat = FlatModel(model, 64, "float16")
    push = WireVector(flat.layout)
    flat.set_base()
    with torch.no_grad():
        model.weight.sub_(torch.tensor([[100_000.0, 1.0]]))
    parts = []
    for _ in range(2):
        flat.update_into(push)
        flat.set_base()
        parts.append(push.segments[0].clone())
    assert torch.isfinite(torch.stack(parts)).all()
    torch.testing.assert_close(sum(p.double() for p in parts), torch.tensor([100_000.0, 1.0]).double(), atol=16, rtol=0)


@pytest.mark.parametrize("wire", TYPES)
def test_the_mean_of_what_workers_receive_is_the_parameters(wire: str) -> None:
    torch.manual_seed(3)
    flat = FlatModel(nn.Linear(100, 50), 512, wire)
    source = WireVector(flat.layout.full())
    source.segments[0].copy_(torch.randn(source.segments[0].shape))
    narrowed = Narrowed(source, flat.layout)
    total = torch.zeros(source.segments[0].shape, dtype=torch.float64)
    messages = 64
    for _ in range(messages):
        for chunk in range(len(flat.layout.chunks)):
            narrowed.encode(chunk)
        total += narrowed.out.segments[0].double()
    once = (narrowed.out.segments[0].float() - source.segments[0]).abs().max()
    mean = (total / messages - source.segments[0].double()).abs().max()
    assert mean < 0.05 * once, (mean, once)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("wire", TYPES)
def test_the_server_adds_at_full_precision(wire: str, members: int) -> None:
    options = PolicyOptions(policy="bsp", outer_optimizer="nesterov", outer_lr=1.0)
    torch.manual_seed(4)
    flat = FlatModel(nn.Linear(60, 40), 1024, wire)
    outer = make_outer(options, make_policy(options), flat.layout.full())
    aggregator = Aggregator(flat.layout, outer)
    flat.values_into(aggregator.x)
    reference = nn.Parameter(aggregator.x.segments[0].clone())
    optimizer = torch.optim.SGD([reference], lr=1.0, momentum=0.9, nesterov=True)
    for _ in range(10):
        updates = [WireVector(flat.layout) for _ in range(members)]
        for update in updates:
            update.segments[0].copy_(1e-4 * torch.randn(update.segments[0].shape))
        reference.grad = sum(u.segments[0].float() for u in updates) / members  # type: ignore[assignment]
        optimizer.step()
        for chunk in range(len(flat.layout.chunks)):
            if members == 1:
                aggregator.close(chunk, 1.0, 1.0, updates[0].chunks[chunk])
                continue
            for number, update in enumerate(updates):
                aggregator.add(chunk, [(update.chunks[chunk], 1.0)], first=number == 0)
            aggregator.close(chunk, float(members), 1.0)
    torch.testing.assert_close(aggregator.x.segments[0], reference.detach(), rtol=1e-5, atol=1e-6)
    piece = flat.layout.chunks[0]
    assert len(aggregator.outgoing(0)) == piece.nbytes
    received = torch.from_numpy(aggregator.outgoing(0)).view(TYPES[wire]).float()
    torch.testing.assert_close(received, reference.detach()[: len(received)], rtol=1e-2, atol=1e-4)
