"""What a rank need not import it does not, and what stands in its place does the same."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import datasets

from hpcdml.config import OptimizerOptions
from hpcdml.training.data import bundled
from hpcdml.training.lean import lean
from hpcdml.training.optimizers import make_optimizer, make_scheduler

STEP = """
import sys
import torch
from hpcdml.config import OptimizerOptions
from hpcdml.training.data import bundled
from hpcdml.training.optimizers import make_optimizer, make_scheduler

train = bundled.load_bundled("digits", 0.2).train
model = torch.nn.Linear(64, 10)
options = OptimizerOptions(scheduler="StepLR", scheduler_args={"step_size": 1})
optimizer = make_optimizer(options, model)
scheduler = make_scheduler(options, optimizer)
x, y = train.batch(torch.arange(8).numpy())
torch.nn.functional.cross_entropy(model(x.flatten(1)), y).backward()
optimizer.step()
scheduler.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print([name for name in ("sklearn", "scipy", "torch._dynamo", "matplotlib") if name in sys.modules])
"""


def test_a_step_on_digits_imports_neither_scikit_learn_nor_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_digits_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = bundled._arrays("digits")
    theirs = datasets.load_digits(return_X_y=True)
    np.testing.assert_array_equal(x, theirs[0])
    np.testing.assert_array_equal(y, theirs[1])
    monkeypatch.setattr(bundled, "_file_of_digits", lambda: None)  # an installation that keeps it elsewhere
    for mine, other in zip(bundled._arrays("digits"), theirs, strict=True):
        np.testing.assert_array_equal(mine, other)


KINDS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)


def trained(make: Any) -> tuple[torch.Tensor, dict[str, Any], type]:
    """Parameters, state and class after three steps, whose optimizer ``make(parameters)`` builds."""
    torch.manual_seed(1)
    model = torch.nn.Linear(8, 8, bias=False)
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
    return model.weight.detach(), optimizer.state_dict(), type(optimizer)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("LBFGS", "SparseAdam")])
def test_a_lean_optimizer_is_the_one_of_torch(name: str) -> None:
    kind = getattr(torch.optim, name)
    mine, my_state, my_kind = trained(lambda parameters: lean(kind)(parameters, lr=0.01))
    theirs, state, _ = trained(lambda parameters: kind(parameters, lr=0.01))
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(my_state, state, rtol=0, atol=0)
    assert issubclass(my_kind, kind) and repr(my_kind) == repr(kind)


def test_a_differentiable_optimizer_is_left_as_it_is() -> None:
    options = OptimizerOptions(optimizer="SGD", optimizer_args={"differentiable": True})
    assert type(make_optimizer(options, torch.nn.Linear(2, 2))) is torch.optim.SGD


def test_profilers_see_the_steps_of_a_lean_optimizer() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(OptimizerOptions(optimizer="SGD"), model)
    assert make_scheduler(OptimizerOptions(), optimizer) is None
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert calls == ["before", "after"]
    assert any(event.key == "Optimizer.step#SGD.step" for event in profile.key_averages())
