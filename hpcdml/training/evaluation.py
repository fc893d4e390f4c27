"""Evaluation on the held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hpcdml.training.data import TaskData
from hpcdml.training.data.losses import accuracy_counts

BATCH = 256


@dataclass(frozen=True)
class Score:
    """Accuracy (nan for a regression) from 0 to 1 and mean loss on the held-out data."""

    accuracy: float
    loss: float


def evaluate(
    model: nn.Module, criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], data: TaskData
) -> Score:
    """Return the model's score on ``data.test``; the model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    correct = total = 0
    loss = 0.0
    with torch.inference_mode():
        for start in range(0, len(data.test), BATCH):
            indices = np.arange(start, min(start + BATCH, len(data.test)))
            inputs, targets = data.test.batch(indices)
            inputs, targets = inputs.to(device), targets.to(device)
            output = model(inputs)
            loss += float(criterion(output, targets)) * len(indices)
            right, counted = accuracy_counts(output, targets, data.spec)
            correct += right
            total += counted
    return Score(correct / total if total else float("nan"), loss / len(data.test))
