"""LeNet-5 with maximum pooling and ReLU, for small images."""

from __future__ import annotations

from torch import nn

from hpcdml.training.data.spec import DataSpec
from hpcdml.training.models.arguments import flat_outputs, image_shape

_PLAIN = 16


def build(spec: DataSpec) -> nn.Module:
    """Build the model: (B, C, H, W) float32, H and W at least 4 -> (B, outputs).

    Raises:
        UsageError: data that are no such images.
    """
    channels, height, width = image_shape("lenet", spec, least=4)
    outputs = flat_outputs("lenet", spec)
    # The second convolution shrinks the image as in LeNet-5 where that leaves something of it.
    padding = 0 if min(height, width) >= _PLAIN else 2
    rows, columns = ((side // 2 - 4 + 2 * padding) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rows * columns, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, outputs),
    )
