"""Mixed precision of a worker's forward and backward pass; parameters, updates and optimizer stay as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from hpcdml.config import AmpName

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What a local step does differently with ``--amp``.

    With fp16 the loss is scaled, so that small gradients do not vanish, and a step whose gradients overflow leaves the
    parameters as they are (Micikevicius et al., ICLR 2018); it counts as a local step all the same.

    Args:
        amp: ``off``, ``bf16`` or ``fp16``.
        device: the model's device.

    Attributes:
        scaler: scales the loss; None where nothing does. Its ``state_dict`` belongs to the worker's state.
    """

    def __init__(self, amp: AmpName, device: torch.device) -> None:
        self.dtype = _TYPES.get(amp)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type) if amp == "fp16" else None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of the forward pass and the loss."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to those of the parameters."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer, model: nn.Module, clip_norm: float | None) -> None:
        """Clip the gradients' norm, if asked to, take the optimizer's step and clear the gradients."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad()
