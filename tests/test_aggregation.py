"""The server's arithmetic: weighted sums, buffers, and outer optimizers beside those of torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hpcdml.config import PolicyOptions
from hpcdml.parameters import FlatModel, Layout
from hpcdml.protocol.policies import make_policy
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.outer import OuterSgd, make_outer


def layout(chunk_bytes: int = 256) -> Layout:
    torch.manual_seed(0)
    return FlatModel(nn.Sequential(nn.Linear(9, 11), nn.BatchNorm1d(11)), chunk_bytes).layout


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.3)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.8, nesterov=True)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.3)),
    ],
)
def test_outer_optimizers_are_those_of_torch(name: str, reference) -> None:  # type: ignore[no-untyped-def]
    options = PolicyOptions(policy="bsp", outer_optimizer=name, outer_lr=0.3, outer_momentum=0.8)  # type: ignore[arg-type]
    parts = layout()
    aggregator = Aggregator(parts, make_outer(options, make_policy(options), parts))
    x = aggregator.x.segments[0]
    x.copy_(torch.randn(x.shape))
    mine = nn.Parameter(x.clone())
    optimizer = reference([mine])
    chunks = [c for c in parts.chunks if c.segment == 0]
    for _ in range(6):
        updates = [torch.randn(x.shape), torch.randn(x.shape), torch.randn(x.shape)]
        mine.grad = (updates[0] + updates[1] + updates[2]) / 3.0
        optimizer.step()
        for chunk in chunks:
            piece = slice(chunk.start // 4, chunk.stop // 4)
            for number, update in enumerate(updates):
                aggregator.add(chunk.index, [(update[piece], 1.0)], first=number == 0)
            aggregator.close(chunk.index, 3.0, 1.0)
    torch.testing.assert_close(x, mine.detach(), rtol=1e-5, atol=1e-6)


def test_diloco_takes_nesterov_and_others_plain_averaging() -> None:
    parts = layout()
    for policy, kind in (("diloco", "OuterNesterov"), ("losp", "OuterSgd"), ("bsp", "OuterSgd")):
        options = PolicyOptions(policy=policy)  # type: ignore[arg-type]
        assert type(make_outer(options, make_policy(options), parts)).__name__ == kind


def test_weights_and_buffers() -> None:
    parts = layout(1 << 20)
    aggregator = Aggregator(parts, OuterSgd(1.0))
    values = next(n for n, s in enumerate(parts.segments) if s.kind == 1)
    chunk = next(c.index for c in parts.chunks if c.segment == values)
    one, other = torch.full((22,), 2.0), torch.full((22,), 6.0)
    aggregator.add(chunk, [(one, 1.0)], first=True)
    aggregator.add(chunk, [(other, 3.0)], first=False)
    aggregator.close(chunk, 4.0, share=1.0)
    torch.testing.assert_close(aggregator.x.segments[values], torch.full((22,), 5.0))
    # One of two workers alone moves the buffers half of the way: they stay between the workers' values.
    aggregator.close(chunk, 1.0, share=0.5, alone=torch.full((22,), 1.0))
    torch.testing.assert_close(aggregator.x.segments[values], torch.full((22,), 3.0))


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([1.0, 3.0, 0.1]), min_size=1, max_size=5),
    wire=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    cuts=st.sets(st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
def test_a_sum_is_the_same_however_its_terms_come(
    weights: list[float], wire: torch.dtype, cuts: set[int], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    aggregator = Aggregator(layout(1 << 20), OuterSgd(1.0))
    size = aggregator.x.chunks[0].numel()
    updates = [torch.randn(size, generator=random).to(wire) for _ in weights]
    terms = list(zip(updates, weights, strict=True))
    expected = updates[0].float() * weights[0]
    for update, weight in terms[1:]:
        expected.add_(update.float(), alpha=weight)
    edges = [0, *sorted(cut for cut in cuts if cut < len(terms)), len(terms)]
    for begin, end in itertools.pairwise(edges):
        aggregator.add(0, terms[begin:end], first=begin == 0)
    aggregator.close(0, 1.0, 1.0)
    assert torch.equal(aggregator.x.chunks[0], -expected)


def test_one_update_alone_is_exact() -> None:
    parts = layout(1 << 20)
    aggregator = Aggregator(parts, OuterSgd(1.0))
    x, w = torch.rand(110) + 1.0, torch.rand(110) + 1.0
    aggregator.x.segments[0].copy_(torch.cat([x, torch.ones(22)]))
    aggregator.close(0, 5.0, 1.0, alone=torch.cat([x - w, torch.zeros(22)]))
    torch.testing.assert_close(aggregator.x.segments[0][:110], w, rtol=0, atol=0)
