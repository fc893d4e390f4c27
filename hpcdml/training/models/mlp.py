"""A multi-layer perceptron."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hpcdml.training.data.spec import DataSpec
from hpcdml.training.models.arguments import flat_inputs, flat_outputs, share, whole


class Rows(nn.Module):
    """One row of float values for each sample, also where a sample is a single number or of integers."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1)
        return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())


def build(spec: DataSpec, *, hidden: Any = 128, layers: Any = 2, dropout: Any = 0.0) -> nn.Module:
    """Build the model: (B, ...) float32 -> (B, outputs).

    Args:
        hidden: width of the hidden layers.
        layers: number of hidden layers; 0 for a linear model.
        dropout: share of a hidden layer's values that training leaves out.

    Raises:
        UsageError: a wrong argument, or data that are tokens.
    """
    outputs = flat_outputs("mlp", spec)
    hidden, layers, dropout = whole("hidden", hidden), whole("layers", layers, least=0), share("dropout", dropout)
    stack: list[nn.Module] = [Rows()]
    width = flat_inputs(spec)
    for _ in range(layers):
        stack += [nn.Linear(width, hidden), nn.ReLU()]
        if dropout > 0:
            stack.append(nn.Dropout(dropout))
        width = hidden
    stack.append(nn.Linear(width, outputs))
    return nn.Sequential(*stack)
