"""Mixed precision and compiled models in a local step."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpcdml.config import AmpName
from hpcdml.errors import UsageError
from hpcdml.training.compiling import compile_step, is_compiled
from hpcdml.training.local_step import LocalStep
from hpcdml.training.polling import StepPoller
from hpcdml.training.precision import Precision
from test_polling import Channel

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the path")


def step_of(model: nn.Module, amp: AmpName = "off", lr: float = 0.1, **more: Any) -> LocalStep:
    def nothing() -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = nn.functional.mse_loss
    precision = Precision(amp, torch.device("cpu"))
    return LocalStep(model, criterion, optimizer, None, nothing, precision, **more)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 1))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_and_parameters_stay_float32(amp: AmpName) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step = step_of(model, amp, clip_norm=10.0)
    inputs = torch.randn(64, 16)
    targets = inputs[:, :1] * 2.0
    losses = []
    for _ in range(150):
        losses.append(float(step.gradient(inputs, targets)))
        step.apply()
    assert set(seen) == {torch.bfloat16 if amp == "bf16" else torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[-1] < 0.1 * losses[0]


def test_a_step_whose_gradients_overflow_changes_nothing_and_lowers_the_scale() -> None:
    model = nn.Linear(4, 1)
    step = step_of(model, "fp16")
    assert step.precision.scaler is not None
    before, scale = model.weight.clone(), step.precision.scaler.get_scale()
    step.gradient(torch.full((2, 4), 1e4), torch.full((2, 1), -1e4))
    step.apply()
    assert torch.equal(model.weight, before)
    assert step.precision.scaler.get_scale() < scale
    assert all(p.grad is None for p in model.parameters())


def test_clipping_sees_unscaled_gradients() -> None:
    torch.manual_seed(0)
    model, reference = nn.Linear(4, 1), nn.Linear(4, 1)
    reference.load_state_dict(model.state_dict())
    for amp, each in (("fp16", model), ("off", reference)):
        step = step_of(each, amp, clip_norm=0.01)  # type: ignore[arg-type]
        step.gradient(torch.ones(2, 4) / 8, torch.full((2, 1), 0.1))
        step.apply()
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-3, atol=1e-6)


@needs_compiler
def test_polling_adds_no_break_to_a_compiled_model() -> None:
    import torch._dynamo
    from torch._dynamo.utils import counters

    def count(progress: Any) -> tuple[int, int, int]:
        torch._dynamo.reset()
        counters.clear()
        step = step_of(plain())
        assert not is_compiled(step.model)
        step = compile_step(step, torch.randn(8, 16), torch.randn(8, 1))
        assert is_compiled(step.model)
        channel = Channel()
        if progress is not None:
            with StepPoller(channel, step.model, 1e-4, progress) as poller:  # type: ignore[arg-type]
                for _ in range(3):
                    with poller.computing():
                        step.gradient(torch.randn(8, 16), torch.randn(8, 1))
                        step.apply()
                        time.sleep(0.02)  # a longer step, in which the thread gets its turn
                assert poller.threaded
        else:
            for _ in range(3):
                step.gradient(torch.randn(8, 16), torch.randn(8, 1))
                step.apply()
        return sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"], sum(channel.polls.values())

    breaks, graphs, polls = count(None)
    assert (breaks, graphs, polls) == (0, 1, 0)
    for progress in ("auto", "thread"):
        breaks, graphs, polls = count(progress)
        assert (breaks, graphs) == (0, 1), progress
        assert polls > 0


@needs_compiler
def test_compiling_leaves_model_gradients_and_random_numbers_as_they_were() -> None:
    step = step_of(plain(), clip_norm=1.0)
    before = {name: t.clone() for name, t in step.model.state_dict().items()}
    random = torch.get_rng_state()
    compile_step(step, torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 1))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in step.model.state_dict().items())
    assert all(p.grad is None for p in step.model.parameters())


@needs_compiler
def test_a_model_that_cannot_be_compiled_is_a_mistake_of_one_line() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("two\nlines")

    with pytest.raises(UsageError, match="^--compile: .*two lines.*leave it out$"):
        compile_step(step_of(Odd()), torch.ones(2, 1), torch.ones(2, 1))


def test_losses_of_accumulated_minibatches_add_up_to_their_mean() -> None:
    model = nn.Linear(4, 1)
    inputs, targets = torch.randn(8, 4), torch.randn(8, 1)
    whole = step_of(model)
    expected = float(whole.gradient(inputs, targets))
    gradient = model.weight.grad.clone()  # type: ignore[union-attr]
    whole.optimizer.zero_grad()
    halves = step_of(model, accumulate=2)
    total = sum(float(halves.gradient(inputs[p], targets[p])) for p in (slice(0, 4), slice(4, 8)))
    assert np.isclose(total, expected)
    torch.testing.assert_close(model.weight.grad, gradient)
