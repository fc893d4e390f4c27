"""Models that go through ``torch.compile``."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import nn

from hpcdml.errors import UsageError
from hpcdml.training.factories import one_line
from hpcdml.training.local_step import LocalStep


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it is compiled, by ``--compile`` or by the user."""
    return any(m._compiled_call_impl is not None or type(m).__name__ == "OptimizedModule" for m in model.modules())


def compile_step(step: LocalStep, inputs: torch.Tensor, targets: torch.Tensor) -> LocalStep:
    """The local step with its model compiled for training on minibatches like this one; the model is left as it was.

    Compiling takes up to minutes; in the first step it would count as training and hold the others up.

    Raises:
        UsageError: the model cannot be compiled here.
    """
    kept = [buffer.clone() for buffer in step.model.buffers()]
    step.model.train()
    # Not nn.Module.compile, which leaves modules of torch itself, as an nn.Sequential, as they are.
    compiled = cast(nn.Module, torch.compile(step.model))
    step = dataclasses.replace(step, model=compiled)
    try:
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            # Twice, as the first call and later ones may differ in whether there are gradients to add to.
            for _ in range(2):
                step.gradient(inputs, targets)
    except Exception as error:
        raise UsageError(f"--compile: {one_line(error)}; leave it out") from error
    step.optimizer.zero_grad()
    with torch.no_grad():
        for buffer, values in zip(step.model.buffers(), kept, strict=True):
            buffer.copy_(values)
    return step
