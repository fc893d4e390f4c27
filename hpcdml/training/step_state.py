"""What a worker trains by, beside its model, as a tree for a checkpoint, and back."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from hpcdml.training.data import Sampler
from hpcdml.training.data.sampler import place_at
from hpcdml.training.local_step import LocalStep
from hpcdml.training.random_state import random_state
from hpcdml.training.state import load_optimizer, to_arrays, to_tensors


class TrainingState(Protocol):
    """The state of a training loop, hpcdml's own or a user's."""

    def now(self) -> dict[str, Any]:
        """What is complete as soon as a local step has been taken. Arrays may share the memory of tensors.

        Raises:
            UsageError: something in it cannot be saved; the message names it.
        """

    def later(self) -> dict[str, Any]:
        """What the body of the loop may change after the step, to be asked for when it has been gone through.

        Raises:
            UsageError: as ``now``.
        """

    def restore(self, tree: dict[str, Any]) -> None:
        """Take over what ``now`` and ``later`` gave, but for the place in the data, and the random numbers, which are
        to be set right before training.

        Raises:
            UsageError: it does not fit.
        """

    def restore_place(self, tree: dict[str, Any]) -> None:
        """Take over the place in the data."""

    def estimate_place(self, part: dict[str, Any]) -> None:
        """Go on, with other workers than before, where all together were; ``part`` is of ``Resumption.parts``."""


class StepState:
    """The state of hpcdml's own loop.

    Attributes:
        step: the local step.
        sampler: the order of the samples, which may become another one as workers leave and come.
    """

    def __init__(self, step: LocalStep, sampler: Sampler, device: torch.device) -> None:
        self.step = step
        self.sampler = sampler
        self._device = device

    def now(self) -> dict[str, Any]:
        """Optimizer, scheduler, scaler, random numbers and the place in the data."""
        step = self.step
        name = type(step.optimizer).__name__
        scaler = step.precision.scaler
        return {
            "optimizer": to_arrays(step.optimizer.state_dict(), f"optimizer {name}"),
            "scheduler": None if step.scheduler is None else to_arrays(step.scheduler.state_dict(), "scheduler"),
            "scaler": None if scaler is None else to_arrays(scaler.state_dict(), "loss scaler"),
            "epoch": step.epoch,
            "random": random_state(self._device),
            "sampler": self.sampler.state,
        }

    def later(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def restore(self, tree: dict[str, Any]) -> None:
        """Take over all but the random numbers and the place in the data."""
        step = self.step
        load_optimizer(step.optimizer, tree["optimizer"])
        if step.scheduler is not None:
            step.scheduler.load_state_dict(to_tensors(tree["scheduler"]))
        if step.precision.scaler is not None and tree["scaler"]:
            step.precision.scaler.load_state_dict(to_tensors(tree["scaler"]))
        step.epoch = int(tree["epoch"])

    def restore_place(self, tree: dict[str, Any]) -> None:
        """Take over the place in the data."""
        self.sampler.restore(tree["sampler"])

    def estimate_place(self, part: dict[str, Any]) -> None:
        """About as much of every shard as of the whole has been seen in this pass."""
        whole, share = divmod(part["pass"], 1.0)
        self.sampler.restore(place_at(self.sampler, int(whole), share))
