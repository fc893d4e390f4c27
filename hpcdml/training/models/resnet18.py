"""ResNet-18 in the form for CIFAR: a 3x3 stem and no pooling behind it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from hpcdml.training.data.spec import DataSpec
from hpcdml.training.models.arguments import flat_outputs, image_shape, whole


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        # No ReLU in place, here and in the other models: it is an error behind a module with a full backward hook.
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Four stages of two blocks, the last three at half the side and twice the channels of the one before."""

    def __init__(self, channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages = []
        inputs = width
        for stage in range(4):
            planes = width * 2**stage
            stages += [Block(inputs, planes, stride=1 if stage == 0 else 2), Block(planes, planes, stride=1)]
            inputs = planes
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(functional.relu(self.norm(self.conv(x))))
        out: Tensor = self.head(y.mean(dim=(2, 3)))
        return out


def build(spec: DataSpec, *, width: Any = 64) -> nn.Module:
    """Build the model: (B, C, H, W) float32, H and W at least 8 -> (B, outputs).

    Training needs at least two samples in a minibatch of 8x8 images, where the last BatchNorm sees one value of each.

    Args:
        width: channels of the first stage.

    Raises:
        UsageError: a wrong argument, or data that are no such images.
    """
    channels, _, _ = image_shape("resnet18", spec, least=8)
    return ResNet18(channels, flat_outputs("resnet18", spec), whole("width", width))
