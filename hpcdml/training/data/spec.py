"""What a model must know of the data: shapes and the kind of the task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Task = Literal["classification", "regression", "tokens"]


@dataclass(frozen=True)
class DataSpec:
    """Shapes of one sample, without the batch dimension.

    Attributes:
        input_shape: shape of one input, (C, H, W) for images, (T,) for tokens.
        classes: number of classes, or size of the vocabulary; None for regression.
        task: ``tokens`` has a class at each of the T positions of its input.
        target_shape: shape of one target, () for a class or a single number.
    """

    input_shape: tuple[int, ...]
    classes: int | None
    task: Task
    target_shape: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Values that a model gives for a sample (for tokens: for each position)."""
        return self.classes if self.classes is not None else math.prod(self.target_shape)
