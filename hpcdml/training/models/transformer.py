"""A decoder-only transformer for tokens: every position sees itself and what is before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcdml.errors import UsageError
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.models.arguments import share, whole


class Layer(nn.Module):
    """Causal self-attention and a feed-forward part, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        parts = self.attend(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        left_out = self.dropout.p if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, dropout_p=left_out, is_causal=True)
        x = x + self.dropout(self.project(seen.transpose(1, 2).reshape(batch, time, width)))
        y: Tensor = x + self.dropout(self.feed(self.norm2(x)))
        return y


class Transformer(nn.Module):
    """Token and position embeddings, the layers, and scores for the next token."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(context, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(Layer(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        # Not shared with the embedding: each parameter has its own place in the vector that travels.
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[1]
        if time > len(self.positions):
            raise ValueError(f"x must have at most {len(self.positions)} tokens, got {time}")
        y: Tensor = self.layers(self.dropout(self.tokens(x) + self.positions[:time]))
        out: Tensor = self.head(self.norm(y))
        return out


def build(spec: DataSpec, *, width: Any = 128, heads: Any = 4, layers: Any = 2, dropout: Any = 0.0) -> nn.Module:
    """Build the model: (B, T) int64 -> (B, T, vocabulary).

    Args:
        width: values of an embedding; a multiple of ``heads``.
        heads: attention heads.
        layers: number of layers.
        dropout: share of the values that training leaves out.

    Raises:
        UsageError: a wrong argument, or data that are no tokens.
    """
    if spec.task != "tokens" or spec.classes is None:
        raise UsageError(
            f"--model transformer: takes tokens, as characters has, and these are inputs of shape {spec.input_shape} "
            f"for {spec.task}"
        )
    width, heads, layers = whole("width", width), whole("heads", heads), whole("layers", layers)
    if width % heads != 0:
        raise UsageError(f"--model-args heads={heads}: must divide width, which is {width}")
    return Transformer(spec.classes, spec.input_shape[0], width, heads, layers, share("dropout", dropout))
