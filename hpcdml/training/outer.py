"""The server's optimizers, which take the weighted mean of the workers' updates as a pseudo-gradient.

The idea is that of FedOpt (arXiv 2003.00295) and DiLoCo (arXiv 2311.08105). They work chunk by chunk, in place, while
other chunks are still coming in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from hpcdml.config import PolicyOptions
from hpcdml.parameters import Layout, WireVector
from hpcdml.protocol.policies import Policy


class OuterOptimizer(ABC):
    """Applies a round's updates to the global parameters.

    Attributes:
        state: vectors of the optimizer's state, by name, in the layout of the parameters.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.state: dict[str, WireVector] = {}

    @abstractmethod
    def apply(self, chunk: int, step: int, x: torch.Tensor, total: torch.Tensor, weight: float) -> None:
        """Take ``total / weight`` as the gradient of chunk ``chunk`` of the parameters and update ``x`` in place.

        Args:
            chunk: index of the chunk.
            step: number of this step of the chunk, from 1.
            x: the chunk's parameters.
            total: weighted sum of the workers' updates, of the same shape; it may be overwritten.
            weight: sum of the weights.
        """


class OuterSgd(OuterOptimizer):
    """Plain averaging with rate 1; a smaller rate damps it."""

    def apply(self, chunk: int, step: int, x: torch.Tensor, total: torch.Tensor, weight: float) -> None:
        x.add_(total, alpha=-self.lr / weight)


class OuterNesterov(OuterOptimizer):
    """SGD with Nesterov momentum, the outer optimizer of DiLoCo; as ``torch.optim.SGD(nesterov=True)``."""

    def __init__(self, lr: float, momentum: float, layout: Layout) -> None:
        super().__init__(lr)
        self.momentum = momentum
        self.state = {"momentum": WireVector(layout)}

    def apply(self, chunk: int, step: int, x: torch.Tensor, total: torch.Tensor, weight: float) -> None:
        buffer = self.state["momentum"].chunks[chunk]
        total.div_(weight)
        buffer.mul_(self.momentum).add_(total)
        x.add_(total.add_(buffer, alpha=self.momentum), alpha=-self.lr)


class OuterAdam(OuterOptimizer):
    """Adam on the pseudo-gradient (FedAdam, arXiv 2003.00295); as ``torch.optim.Adam`` with its default constants."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, lr: float, layout: Layout) -> None:
        super().__init__(lr)
        self.state = {"mean": WireVector(layout), "square": WireVector(layout)}

    def apply(self, chunk: int, step: int, x: torch.Tensor, total: torch.Tensor, weight: float) -> None:
        first, second = self.BETAS
        mean, square = self.state["mean"].chunks[chunk], self.state["square"].chunks[chunk]
        total.div_(weight)
        mean.lerp_(total, 1 - first)
        square.mul_(second).addcmul_(total, total, value=1 - second)
        denominator = square.sqrt().div_((1 - second**step) ** 0.5).add_(self.EPSILON)
        x.addcdiv_(mean, denominator, value=-self.lr / (1 - first**step))


def make_outer(options: PolicyOptions, policy: Policy, layout: Layout) -> OuterOptimizer:
    """Return the outer optimizer that the options name; ``auto`` is the policy's own."""
    name = policy.outer_optimizer if options.outer_optimizer == "auto" else options.outer_optimizer
    if name == "nesterov":
        return OuterNesterov(options.outer_lr or 0.7, options.outer_momentum, layout)
    if name == "adam":
        return OuterAdam(options.outer_lr or 1e-3, layout)
    return OuterSgd(options.outer_lr or 1.0)
