"""AlexNet in the form for CIFAR: 3x3 convolutions, and pooling to 2x2 before the classifier."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpcdml.training.data.spec import DataSpec
from hpcdml.training.models.arguments import flat_outputs, image_shape, share, whole


def build(spec: DataSpec, *, hidden: Any = 4096, dropout: Any = 0.5) -> nn.Module:
    """Build the model: (B, C, H, W) float32, H and W at least 8 -> (B, outputs).

    Args:
        hidden: width of the two hidden layers of the classifier.
        dropout: share of their inputs that training leaves out.

    Raises:
        UsageError: a wrong argument, or data that are no such images.
    """
    channels, _, _ = image_shape("alexnet", spec, least=8)
    outputs = flat_outputs("alexnet", spec)
    hidden, dropout = whole("hidden", hidden), share("dropout", dropout)
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        # At 32x32 the same as a pool of 2; smaller images, 1x1 by now, are repeated.
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(256 * 2 * 2, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
