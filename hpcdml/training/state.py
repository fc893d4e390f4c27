"""A model's ``state_dict``, and any other state that PyTorch hands out, as numpy arrays for files, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcdml.errors import UsageError
from hpcdml.storage.tree import TensorArray, map_tree

_NUMPY_HAS = (torch.float16, torch.float32, torch.float64)


def state_types(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type (``float32``, ``bfloat16``, ...) of every entry of the ``state_dict``."""
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in _tensors(model).items()}


def state_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Every entry of the ``state_dict`` in host memory; types that numpy has not, as float32, which holds them exactly.

    Arrays may share the model's memory: they are valid until it changes.
    """
    return {name: to_array(t).values for name, t in _tensors(model).items()}


def typed_state(model: nn.Module) -> dict[str, TensorArray]:
    """As ``state_arrays``, with the name of each entry's own type: the ``parameters`` of a checkpoint."""
    return {name: to_array(t) for name, t in _tensors(model).items()}


def load_state(model: nn.Module, state: Mapping[str, TensorArray]) -> None:
    """Load what ``typed_state`` gave into a model of the same kind.

    Raises:
        UsageError: an entry is missing, unknown or of another shape; the message names it.
    """
    own = _tensors(model)
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise UsageError(f"parameters: {name} is {'missing' if name in own else 'not in this model'}")
        if own[name].shape != state[name].values.shape:
            raise UsageError(
                f"parameters: {name} has shape {state[name].values.shape}; this model needs {tuple(own[name].shape)}"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(to_tensor(state[name]))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load what ``to_arrays`` made of an optimizer's ``state_dict`` into one of the same kind.

    Raises:
        UsageError: it is the state of another kind of optimizer or model.
    """
    saved = to_tensors(state)
    try:
        optimizer.load_state_dict(saved)
        # PyTorch turns all tensors of a parameter's state but "step" into the parameter's type: NAdam and ASGD, which
        # keep scalars in float32, would go on with other numbers for a model in float64 or bfloat16.
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=True):
            if i in saved["state"]:
                optimizer.state[parameter] = _as_saved(saved["state"][i], optimizer.state[parameter])
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"optimizer {type(optimizer).__name__}: this is another one's state: {why}") from error


def _as_saved(saved: Any, loaded: Any) -> Any:
    """The saved state, on the devices on which PyTorch put it."""
    if isinstance(saved, torch.Tensor):
        return saved.to(loaded.device) if saved.dtype != loaded.dtype else loaded
    if isinstance(saved, dict):
        return {key: _as_saved(item, loaded[key]) for key, item in saved.items()}
    if isinstance(saved, list):
        return [_as_saved(one, other) for one, other in zip(saved, loaded, strict=True)]
    return loaded


def to_arrays(tree: Any, what: str) -> Any:
    """A copy of nested dicts, lists and tuples (a ``state_dict``) with a ``TensorArray`` in place of every tensor.

    Arrays may share the tensors' memory: they are valid until these change. Tensors may be on any device.

    Args:
        tree: of what ``storage.write_tree`` can write, and tensors.
        what: its name in messages, as in "optimizer Adam".

    Raises:
        UsageError: something in it cannot be saved; the message names it.
    """
    return map_tree(tree, what, _leaf)


def to_tensors(tree: Any) -> Any:
    """The inverse of ``to_arrays``: tensors on the CPU, which own their memory or share the arrays'."""
    return map_tree(tree, "", lambda item, _: to_tensor(item) if isinstance(item, TensorArray) else item)


def to_array(tensor: torch.Tensor, what: str = "tensor") -> TensorArray:
    """A tensor's values in host memory, which may be its own.

    Raises:
        UsageError: it is sparse, quantized or of a type that cannot be saved.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UsageError(f"{what}: cannot be saved: it is a sparse, quantized or meta tensor")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype is torch.complex32:
        tensor = tensor.to(torch.complex64)
    elif tensor.is_floating_point() and tensor.dtype not in _NUMPY_HAS:
        try:
            tensor = tensor.float()
        except RuntimeError as error:
            raise UsageError(f"{what}: cannot be saved: its type is {name}") from error
    return TensorArray(tensor.numpy(), name)


def to_tensor(array: TensorArray) -> torch.Tensor:
    """The inverse of ``to_array``, bit for bit.

    Raises:
        UsageError: this version of PyTorch has no such type.
    """
    dtype = getattr(torch, array.torch_dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"dtype {array.torch_dtype}: PyTorch {torch.__version__} has no such type")
    values = np.ascontiguousarray(array.values).reshape(array.values.shape)
    if not values.dtype.isnative or not values.flags.writeable:
        values = values.astype(values.dtype.newbyteorder("="))
    tensor = torch.from_numpy(values)
    if dtype is torch.bfloat16 and tensor.dtype is torch.float32:
        # Rounding would turn every NaN into the same one.
        return (tensor.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)
    return tensor.to(dtype)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}


def _leaf(item: Any, where: str) -> Any:
    if isinstance(item, torch.Tensor):
        return to_array(item, where)
    known = (bool, int, float, complex, str, bytes, bytearray, np.ndarray, np.generic, TensorArray)
    if item is None or isinstance(item, known):
        return item
    kind = "a function" if callable(item) else f"a {type(item).__qualname__}"
    raise UsageError(f"{where}: cannot be saved: it is {kind}; only numbers, texts and tensors can")
