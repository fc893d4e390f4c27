"""A model's ``state_dict`` as numpy arrays, for files."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def state_types(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type (``float32``, ``bfloat16``, ...) of every entry of the ``state_dict``."""
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in _tensors(model).items()}


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Every entry of the ``state_dict`` in host memory; types that numpy has not, as float32, which holds them exactly.

    Arrays may share the model's memory: they are valid until it changes.
    """
    return {name: _array(t) for name, t in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.contiguous().numpy()
