"""The peers themselves, behind one interface. Each runs in the form that was found to work best for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.algorithms.model_averaging.utils import average_parameters
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from hpcdml.benchmarks.peers.options import PeerOptions


@dataclass
class Side:
    """What trains.

    Attributes:
        module: what the minibatches of step number n go through, n from 0.
        optimizer: steps the parameters, and averages them where the side does that.
        coupled: the workers wait for each other, so that whatever delays rank 0 delays all.
        alike: whether after so many steps all ranks hold the same parameters; only then they are worth evaluating.
        settle: makes them the same after the last step.
        apart: context of a minibatch whose gradients are not exchanged yet.
    """

    module: Callable[[int], nn.Module]
    optimizer: torch.optim.Optimizer
    coupled: bool = True
    alike: Callable[[int], bool] = lambda steps: True
    settle: Callable[[int], None] = lambda steps: None
    apart: Callable[[], Any] = nullcontext


def make_side(options: PeerOptions, model: nn.Module, optimizer: torch.optim.Optimizer) -> Side:
    """Build the side that the options name; the process group is there."""
    return _BUILDERS[options.side](model, optimizer, options)


def _ddp(hook: Callable[..., Any] | None) -> Build:
    def build(model: nn.Module, optimizer: torch.optim.Optimizer, options: PeerOptions) -> Side:
        wrapped = _wrap(model, options.bucket_mb)
        if hook is not None:
            wrapped.register_comm_hook(None, hook)
        return Side(lambda n: wrapped, optimizer, apart=wrapped.no_sync)

    return build


def _powersgd(model: nn.Module, optimizer: torch.optim.Optimizer, options: PeerOptions) -> Side:
    # One bucket: the callbacks of each hold one of gloo's two threads while they wait for what the other thread sends,
    # so that two buckets on their way wait for ever.
    whole = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    wrapped = _wrap(model, 2 * whole + 1)
    state = powerSGD_hook.PowerSGDState(
        None,
        matrix_approximation_rank=options.matrix_rank,
        start_powerSGD_iter=options.start_powersgd,
        # A column of zeros, as units that are off give it, would turn to NaN.
        orthogonalization_epsilon=1e-8,
    )
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return Side(lambda n: wrapped, optimizer, apart=wrapped.no_sync)


def _post_local_sgd(model: nn.Module, optimizer: torch.optim.Optimizer, options: PeerOptions) -> Side:
    warmup, period = options.warmup_steps, options.local_steps
    wrapped = _wrap(model, options.bucket_mb)
    averager = PeriodicModelAverager(period, warmup)

    def module(n: int) -> nn.Module:
        # PyTorch's post_localSGD_hook would leave the gradients alone from here on, but inside DDP, whose buckets and
        # calls of the hook cost 0.1 to 0.5 ms a step (measured); outside it there is nothing to leave alone.
        return wrapped if n < warmup else model

    def alike(steps: int) -> bool:
        # The averager begins with the first step after the warm-up.
        return steps <= warmup or (steps - 1 - warmup) % period == 0

    def settle(steps: int) -> None:
        if not alike(steps):
            average_parameters(iter(model.parameters()), averager.process_group)

    return Side(module, PostLocalSGDOptimizer(optimizer, averager), alike=alike, settle=settle, apart=wrapped.no_sync)


def _alone(model: nn.Module, optimizer: torch.optim.Optimizer, options: PeerOptions) -> Side:
    return Side(lambda n: model, optimizer, coupled=False)


def _wrap(model: nn.Module, bucket_mb: float | None) -> DistributedDataParallel:
    return DistributedDataParallel(
        model,
        bucket_cap_mb=bucket_mb,
        gradient_as_bucket_view=True,
        # BatchNorm's statistics stay each rank's own: rank 0's, which count in the end, are the same as if it had sent
        # them to the others before every step.
        broadcast_buffers=False,
    )


Build = Callable[[nn.Module, torch.optim.Optimizer, PeerOptions], Side]

_BUILDERS: dict[str, Build] = {
    "ddp": _ddp(None),
    "ddp-fp16": _ddp(default_hooks.fp16_compress_hook),
    # In a function without its name, by which DDP takes that hook for one of NCCL only; gloo adds bfloat16 as well.
    "ddp-bf16": _ddp(lambda group, bucket: default_hooks.bf16_compress_hook(group, bucket)),
    "ddp-powersgd": _powersgd,
    "post-local-sgd": _post_local_sgd,
    "alone": _alone,
}
