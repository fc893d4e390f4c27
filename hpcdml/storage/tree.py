"""Nested dicts, lists and tuples of numbers, texts and arrays as HDF5 groups, without pickle and without loss.

A dict, list or tuple with an array somewhere inside is a group; an array is a dataset; everything else is an attribute
of the group that it belongs to (a number or a truth value as such, text as text, the rest as JSON, see ``values``), or
a dataset of text where it is too long for an attribute. Two attributes tell the rest: ``!kind`` is the type of the
whole, ``!keys`` its keys in their order (of a list or tuple: its length). A key's name is the key, as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from hpcdml.storage.hdf5 import escape, get_attribute, numeric, own_item, set_attribute
from hpcdml.storage.values import MAPPINGS, decode, encode, kind_of
from hpcdml.storage.whole_file import Place

KIND, KEYS, DTYPE = "!kind", "!keys", "torch_dtype"
_LONGEST_ATTRIBUTE = 32 << 10  # bytes; HDF5 allows 64 KiB for an attribute with its name and type
_DEEPEST = 200


@dataclass(frozen=True)
class TensorArray:
    """The values of a torch tensor: where numpy lacks its type, as float32, which holds them exactly.

    Attributes:
        values: an array in host memory, which may be the tensor's own.
        torch_dtype: name of the tensor's type: "float32", "bfloat16", ...
    """

    values: np.ndarray
    torch_dtype: str


def write_tree(group: h5py.Group, tree: Any, place: Place | None = None) -> None:
    """Write a tree into an empty group.

    Args:
        group: an open group of an HDF5 file.
        tree: None, bool, int, float, complex, str, bytes, numpy arrays and scalars of numbers, ``TensorArray``, and
            dicts, lists and tuples of them. Subclasses of dict become dict, but for OrderedDict and Counter; those of
            list become list; named tuples are refused.
        place: makes the dataset of an array (see ``whole_file``); it is written at once by default.

    Raises:
        TypeError: there is something else in it; the message names it by its path.
        ValueError: it is nested too deep, or in itself.
    """
    _write(group, tree, place or _write_now, group.name or "", 0)


def read_tree(group: h5py.Group) -> Any:
    """The inverse of ``write_tree``; bytearrays come back as bytes.

    Raises:
        ValueError, KeyError, TypeError, OSError: it is damaged, or none of ours.
    """
    return _read(group, 0)


def map_tree(tree: Any, where: str, leaf: Callable[[Any, str], Any]) -> Any:
    """A copy of nested dicts, lists and tuples with ``leaf(item, its path)`` in place of everything else in them."""
    if isinstance(tree, dict):
        kind = type(tree) if type(tree) in MAPPINGS.values() else dict
        return kind({key: map_tree(item, f"{where}[{key!r}]", leaf) for key, item in tree.items()})
    if isinstance(tree, list) or type(tree) is tuple:
        items = [map_tree(item, f"{where}[{i}]", leaf) for i, item in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    return leaf(tree, where)


def _write_now(group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    if not numeric(array.dtype):
        raise TypeError(f"{group.name}/{name}: must hold numbers, not {array.dtype}")
    return group.create_dataset(name, data=array)


def _write(group: h5py.Group, tree: Any, place: Place, path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"{path[:60]}...: is nested more than {_DEEPEST} deep, or in itself")
    if isinstance(tree, dict):
        keys = list(tree)
        _write_value(group, KIND, kind_of(tree))
        _write_value(group, KEYS, encode(keys, f"the keys of {path}"))
        items = list(zip(_names(keys), tree.values(), strict=True))
    elif isinstance(tree, list) or type(tree) is tuple:
        _write_value(group, KIND, "list" if isinstance(tree, list) else "tuple")
        _write_value(group, KEYS, len(tree))
        items = [(str(i), item) for i, item in enumerate(tree)]
    else:
        _write_value(group, KIND, "value")
        items = [("value", tree)]
    for name, item in items:
        where = f"{path}/{name}"
        if isinstance(item, TensorArray):
            set_attribute(place(group, name, item.values), DTYPE, item.torch_dtype)
        elif isinstance(item, np.ndarray):
            place(group, name, item)
        elif _has_array(item):
            _write(group.create_group(name), item, place, where, depth + 1)
        else:
            _write_value(group, name, encode(item, where))


def _write_value(group: h5py.Group, name: str, value: Any) -> None:
    """An encoded value as an attribute, or as a dataset of text where it is too long for one."""
    if type(value) is int and not -(2**63) <= value < 2**64:
        value = {"!int": str(value)}
    if isinstance(value, (str, list, dict)):
        text = json.dumps(value)
        if len(text) > _LONGEST_ATTRIBUTE:
            group.create_dataset(name, data=np.bytes_(text.encode()))
            return
    set_attribute(group, name, value)


def _read(group: h5py.Group, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    kind = _read_value(group, KIND)
    if kind == "value":
        return _read_item(group, "value", depth)
    keys = _read_value(group, KEYS)
    if kind in ("list", "tuple"):
        items = [_read_item(group, str(i), depth) for i in range(keys)]
        return items if kind == "list" else tuple(items)
    keys = decode(keys)
    names = zip(keys, _names(keys), strict=True)
    return MAPPINGS[kind]({key: _read_item(group, name, depth) for key, name in names})  # a Counter counts pairs


def _read_item(group: h5py.Group, name: str, depth: int) -> Any:
    if name in group.attrs:
        return decode(get_attribute(group, name))
    item = own_item(group, name)
    if isinstance(item, h5py.Group):
        return _read(item, depth + 1)
    if item.dtype.kind == "S":
        return decode(_read_value(group, name))
    if not numeric(item.dtype):
        raise ValueError(f"{name} does not hold numbers")
    values = np.asarray(item[...])  # [()] would give a scalar, in the byte order of the machine
    dtype = get_attribute(item, DTYPE) if DTYPE in item.attrs else None
    return values if dtype is None else TensorArray(values, str(dtype))


def _read_value(group: h5py.Group, name: str) -> Any:
    if name in group.attrs:
        return get_attribute(group, name)
    return json.loads(bytes(own_item(group, name)[()]))


def _names(keys: list[Any]) -> list[str]:
    """The keys as names of links and attributes, all different; those of texts and integers are the obvious ones."""
    names: list[str] = []
    taken = {escape(key) for key in keys if isinstance(key, str)}
    for position, key in enumerate(keys):
        name = escape(key) if isinstance(key, str) else str(key) if type(key) is int else f"!{position}"
        names.append(f"!{position}" if name in taken and not isinstance(key, str) else name)
    return names


def _has_array(tree: Any, depth: int = 0) -> bool:
    if isinstance(tree, (np.ndarray, TensorArray)):
        return True
    if depth > _DEEPEST:
        return False  # encode says what is wrong with it
    if isinstance(tree, dict):
        return any(_has_array(item, depth + 1) for item in tree.values())
    return isinstance(tree, (list, tuple)) and any(_has_array(item, depth + 1) for item in tree)
