"""What a worker does in one local step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from hpcdml.training.blank import BlankState
from hpcdml.training.precision import Precision

Batches = Callable[[], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class LocalStep:
    """The parts of a local step and the arithmetic on them.

    Attributes:
        batches: returns the next minibatch, on the device of the model.
        accumulate: minibatches in a local step.
        epoch_samples: samples of one epoch of all workers together, the unit of the scheduler; None: it steps every
            local step.
        precision: mixed precision, or none.
        epoch: epochs that the scheduler has been told of.
        slowdown: for experiments, the factor by which the step is made longer.
        seconds: for experiments, how long the step takes on an emulated device; None: as long as it takes.
        blank: the optimizer's state at the start.
    """

    model: nn.Module
    criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    batches: Batches
    precision: Precision
    accumulate: int = 1
    clip_norm: float | None = None
    epoch_samples: int | None = None
    epoch: int = 0
    slowdown: float = 1.0
    seconds: float | None = None

    def __post_init__(self) -> None:
        self.blank = BlankState(self.optimizer)

    def gradient(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Add a minibatch's part of the step's gradient, and return its part of the step's loss."""
        with self.precision.forward():
            part = self.criterion(self.model(inputs), targets) / self.accumulate
        self.precision.backward(part)
        return part.detach()

    def apply(self) -> None:
        """Take the optimizer's step along the gradient, and clear it."""
        self.precision.step(self.optimizer, self.model, self.clip_norm)

    def schedule(self, samples: int) -> None:
        """Let the scheduler do what is due after a local step; ``samples`` is what all workers have trained on."""
        if self.scheduler is None:
            return
        if self.epoch_samples is None:
            self.scheduler.step()
            return
        while self.epoch < samples // self.epoch_samples:
            self.epoch += 1
            self.scheduler.step()


def batches(feed: Callable[[], tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> Batches:
    """Return a function that gets the next minibatch onto the device."""

    def following() -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = feed()
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    return following
