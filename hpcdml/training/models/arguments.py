"""Checks that the models share: of their arguments, and of data that they cannot take."""

from __future__ import annotations

import math
from typing import Any

from hpcdml.errors import UsageError
from hpcdml.training.data.spec import DataSpec


def whole(name: str, value: Any, least: int = 1) -> int:
    """The whole number that ``--model-args`` gives for ``name``.

    Raises:
        UsageError: not a whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"--model-args {name}={value}: must be a whole number, at least {least}")
    return value


def share(name: str, value: Any) -> float:
    """The number from 0 to below 1 that ``--model-args`` gives for ``name``.

    Raises:
        UsageError: not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UsageError(f"--model-args {name}={value}: must be a number from 0 to below 1")
    return float(value)


def flat_outputs(model: str, spec: DataSpec) -> int:
    """Number of outputs of a model that gives one vector for each sample.

    Raises:
        UsageError: the data are tokens, or have more than one class for each sample.
    """
    if spec.task == "tokens":
        raise UsageError(f"--model {model}: takes no tokens; take transformer or package.module:function")
    if spec.task == "classification" and spec.target_shape != ():
        raise UsageError(
            f"--model {model}: gives one class for each sample, and the targets have shape {spec.target_shape}; "
            "take package.module:function"
        )
    return spec.outputs


def image_shape(model: str, spec: DataSpec, least: int) -> tuple[int, int, int]:
    """Channels, height and width of the images of the data.

    Raises:
        UsageError: the inputs are not (C, H, W), or smaller than ``least`` in height or width.
    """
    shape = spec.input_shape
    if len(shape) != 3:
        flat = f"; take mlp, or store them as {(1, *shape)}" if len(shape) == 2 else "; take mlp"
        raise UsageError(f"--model {model}: takes images (C, H, W), and the inputs have shape {shape}{flat}")
    channels, height, width = shape
    if min(height, width) < least:
        hint = f"; store them as {(width, channels, height)}" if width in (1, 3, 4) and channels >= least else ""
        raise UsageError(f"--model {model}: takes images of at least {least}x{least}, not {height}x{width}{hint}")
    return channels, height, width


def flat_inputs(spec: DataSpec) -> int:
    """Number of values of one input."""
    return math.prod(spec.input_shape)
