"""Trees as one piece of bytes, to be sent: the arrays as they lie in memory, and a description of everything else.

    head     16 bytes: the length of the description, and of all
    arrays   each at a multiple of 64 bytes
    JSON     the tree as ``values.encode`` has it, with {"!array": [place, type, shape, torch type]} for each array

HDF5 would take 0.2 ms for each array, during which a worker could train.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from hpcdml.storage.hdf5 import numeric
from hpcdml.storage.tree import TensorArray, map_tree
from hpcdml.storage.values import decode, encode

_ARRAY = "!array"
_ALIGNMENT = 64
_HEAD = struct.Struct("<QQ")


def pack(tree: Any) -> np.ndarray:
    """Return the bytes of a tree (see ``write_tree``) with a copy of its arrays: uint8 of shape (bytes,).

    Raises:
        TypeError, ValueError: something in it cannot be stored; the message names it.
    """
    places: list[tuple[int, np.ndarray]] = []
    end = _ALIGNMENT

    def place(item: Any, where: str) -> Any:
        nonlocal end
        if not isinstance(item, (np.ndarray, TensorArray)):
            return item
        values, dtype = (item.values, item.torch_dtype) if isinstance(item, TensorArray) else (item, None)
        if not numeric(values.dtype):
            raise TypeError(f"{where}: must hold numbers, not {values.dtype}")
        places.append((end, values))
        about = [end, values.dtype.str, list(values.shape), dtype]
        end = -(-(end + values.nbytes) // _ALIGNMENT) * _ALIGNMENT
        return {_ARRAY: about}

    text = json.dumps(encode(map_tree(tree, "state", place), "state")).encode()
    image = np.empty(end + len(text), np.uint8)
    image[: _HEAD.size] = np.frombuffer(_HEAD.pack(len(text), len(image)), np.uint8)
    image[end:] = np.frombuffer(text, np.uint8)
    for start, values in places:
        _view(image, start, values.dtype, values.shape)[...] = values
    return image


def unpack(image: np.ndarray) -> Any:
    """The tree in an image, uint8 of shape (bytes,), which its arrays share.

    Raises:
        ValueError: it is no image, or not whole.
    """
    length, size = _HEAD.unpack(image[: _HEAD.size].tobytes()) if len(image) >= _HEAD.size else (0, 0)
    if size != len(image) or not 0 < length <= size - _HEAD.size:
        raise ValueError(f"{len(image)} bytes are no state that was sent whole")
    return _unpack(image, decode(json.loads(image[size - length :].tobytes())))


def _unpack(image: np.ndarray, tree: Any) -> Any:
    if isinstance(tree, dict):
        if list(tree) == [_ARRAY]:
            start, dtype, shape, name = tree[_ARRAY]
            values = _view(image, start, np.dtype(dtype), tuple(shape))
            return values if name is None else TensorArray(values, name)
        return type(tree)({key: _unpack(image, item) for key, item in tree.items()})
    if isinstance(tree, list):
        return [_unpack(image, item) for item in tree]
    return tuple(_unpack(image, item) for item in tree) if isinstance(tree, tuple) else tree


def _view(image: np.ndarray, start: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return image[start : start + size].view(dtype).reshape(shape)
