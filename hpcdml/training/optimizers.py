"""The worker's optimizer and learning-rate scheduler, by their names in torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hpcdml.config import OptimizerOptions
from hpcdml.errors import UsageError
from hpcdml.training.lean import lean


def make_optimizer(options: OptimizerOptions, model: nn.Module) -> torch.optim.Optimizer:
    """Return the ``torch.optim`` optimizer that the options name, over the trainable parameters.

    Raises:
        UsageError: no such optimizer, or arguments that it refuses.
    """
    kind = _find("--optimizer", options.optimizer, torch.optim, torch.optim.Optimizer)
    if kind is torch.optim.LBFGS or kind.__name__ == "SparseAdam":
        raise UsageError(f"--optimizer {options.optimizer}: needs closures or sparse gradients; try SGD or AdamW")
    parameters = [p for p in model.parameters() if p.requires_grad]
    arguments = {"lr": options.lr, **options.optimizer_args}
    given = options.optimizer_args
    return _build("--optimizer-args", given, options.optimizer, lambda: lean(kind)(parameters, **arguments), kind)


def make_scheduler(options: OptimizerOptions, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    """Return the scheduler that the options name, or None.

    Raises:
        UsageError: no such scheduler, or arguments that it refuses.
    """
    if options.scheduler is None:
        return None
    name = options.scheduler
    if name == "ReduceLROnPlateau":
        raise UsageError("--scheduler ReduceLROnPlateau: needs a metric, which a worker has not; try CosineAnnealingLR")
    kind = _find("--scheduler", name, torch.optim.lr_scheduler, LRScheduler)
    given = options.scheduler_args
    return _build("--scheduler-args", given, name, lambda: kind(optimizer, **given), kind)


def _find(option: str, name: str, module: Any, base: type) -> Any:
    kind = getattr(module, name, None)
    if isinstance(kind, type) and issubclass(kind, base) and kind is not base:
        return kind
    names = [n for n, k in vars(module).items() if isinstance(k, type) and issubclass(k, base) and k is not base]
    same = [n for n in names if n.lower() == name.lower()]
    public = sorted(n for n in names if n[0] != "_")
    hint = f"did you mean {same[0]}?" if same else "must be one of " + ", ".join(public)
    raise UsageError(f"{option} {name}: {hint}")


def _build(option: str, arguments: dict[str, Any], name: str, build: Callable[[], Any], kind: Any) -> Any:
    try:
        return build()
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        given = ",".join(f"{k}={v}" for k, v in arguments.items()) or "(none)"
        hidden = ("self", "params", "optimizer", "lr")
        takes = [n for n in inspect.signature(kind.__init__).parameters if n not in hidden]
        raise UsageError(f"{option} {given}: {name} takes {', '.join(takes)} ({error})") from error
