"""Optimizers of torch that do not import the compiler of torch.

Every method of a torch optimizer that a training loop calls has a wrapper around it that imports ``torch._dynamo`` to
tell it where its traces end. That takes 1.5 s of every rank's start and some hundred files of a shared file system, and
says nothing to anybody: what may be compiled here is the model, never the optimizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def lean(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return what builds optimizers of this kind, with its methods without their wrappers; arguments as for ``kind``.

    They are of a subclass with the same name. Where somebody asks for ``differentiable``, it is ``kind`` itself.
    """

    def build(*args: Any, **arguments: Any) -> torch.optim.Optimizer:
        return (kind if arguments.get("differentiable") else _unwrapped(kind))(*args, **arguments)

    return build


def _unwrapped(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    # The wrapper of step switches gradients off as well.
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__, "__doc__": kind.__doc__})
