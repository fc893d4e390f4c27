"""The models by name, and the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hpcdml.errors import UsageError
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.factories import call_factory, is_factory, load_factory, one_line
from hpcdml.training.models import alexnet, lenet, mlp, resnet18, transformer

__all__ = ["MODELS", "build_model"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp.build,
    "lenet": lenet.build,
    "resnet18": resnet18.build,
    "alexnet": alexnet.build,
    "transformer": transformer.build,
}


def build_model(name: str, args: Mapping[str, Any], spec: DataSpec, seed: int) -> nn.Module:
    """Build the model that ``--model`` names, equal for equal arguments on every rank; torch's own seed is left alone.

    Args:
        name: a key of ``MODELS``, called with ``spec`` and ``args``; or ``package.module:function``, called with
            ``args`` alone.
        args: the value of ``--model-args``.

    Returns:
        A module on the CPU (a user's function may put it elsewhere) with at least one trainable parameter.

    Raises:
        UsageError: an unknown model, a wrong argument, data that the model cannot take, or a failure of the user's
            function.
    """
    # The CPU's generator alone is put back: to ask for the GPUs' states would start CUDA on ranks that have no use
    # for it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in MODELS:
            return _bundled(name, args, spec)
        if is_factory(name):
            return _users(name, args)
    raise UsageError(f"--model {name}: must be one of {', '.join(MODELS)}, or package.module:function")


def _bundled(name: str, args: Mapping[str, Any], spec: DataSpec) -> nn.Module:
    build = MODELS[name]
    known = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key, value in args.items():
        if key not in known:
            raise UsageError(f"--model-args {key}={value}: {name} takes {', '.join(known) or 'no arguments'}")
    try:
        return build(spec, **args)
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        # A model beyond the memory; torch says so in several ways.
        raise UsageError(f"--model-args {_shown(args)}: {name} of this size raised {one_line(error)}") from error


def _users(name: str, args: Mapping[str, Any]) -> nn.Module:
    function = load_factory("--model", name)
    _check_call(name, function, args)
    model = call_factory("--model", name, function, **args)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {name}: returned {type(model).__name__}; must return a torch.nn.Module")
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
            raise UsageError(
                f"--model {name}: {key} has no shape yet (a lazy module); run one forward pass in the function first"
            )
    if not any(p.requires_grad and p.numel() > 0 for p in model.parameters()):
        raise UsageError(f"--model {name}: has no trainable parameter; at least one must require a gradient")
    return model


def _check_call(name: str, function: Callable[..., Any], args: Mapping[str, Any]) -> None:
    """Tell wrong ``--model-args`` from a failure inside the function."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no arguments"
        raise UsageError(f"--model-args {_shown(args)}: {name} takes {takes}: {error}") from None


def _shown(args: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in args.items()) or "(none)"
