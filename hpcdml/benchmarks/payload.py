"""A model whose vector is as large as asked for and whose step costs next to nothing: the link is then the limit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS, OUTPUTS = 64, 10
"""Those of the data set digits."""


class Payload(nn.Module):
    """A linear model of digits, and parameters that it does not use and that travel with it.

    They have no gradient, so that a local step neither reads nor writes them.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.linear = nn.Linear(INPUTS, OUTPUTS)
        self.payload = nn.Parameter(torch.zeros(parameters))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x.flatten(1))
        return scores


def build(megabytes: float) -> nn.Module:
    """Build the model with ``megabytes`` x 10^6 bytes of float32 parameters."""
    return Payload(max(0, round(megabytes * 250_000) - INPUTS * OUTPUTS - OUTPUTS))
