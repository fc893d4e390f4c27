"""Plain Python values as JSON and back, with nothing lost: what the JSON of attributes in checkpoints means.

What JSON knows is written as it is; lists stay lists. Everything else is an object with one key that begins with "!":

    {"!tuple": [1, 2]}                  a tuple
    {"!dict": [[0, "a"], [1, "b"]]}     a dict with keys that are no texts, as pairs; also !OrderedDict and !Counter
    {"!bytes": "00ff"}                  bytes, in hexadecimal
    {"!complex": [1.0, 2.0]}            a complex number
    {"!numpy": ["<f4", "0000803f"]}     a numpy scalar: its type and its bytes in hexadecimal
    {"!int": "18446744073709551616"}    an integer of more than 64 bits, where it is the whole of an attribute

NaN, Infinity and -Infinity stand for themselves, as Python's ``json`` writes and reads them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np

from hpcdml.storage.hdf5 import numeric

MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "OrderedDict": OrderedDict, "Counter": Counter}
_DEEPEST = 200


def kind_of(mapping: dict[Any, Any]) -> str:
    """The name of a dict's type among ``MAPPINGS``; other kinds of dict become plain ones."""
    return next((name for name, kind in MAPPINGS.items() if type(mapping) is kind), "dict")


def encode(value: Any, where: str = "value", depth: int = 0) -> Any:
    """A value as what ``json`` can write.

    Args:
        value: None, bool, int, float, complex, str, bytes, a numpy scalar, or lists, tuples and dicts of them.
        where: its name in messages.
        depth: how deep it lies in the whole.

    Raises:
        TypeError: there is something else in it; the message names it.
        ValueError: it is nested too deep, or in itself.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{where[:60]}...: is nested more than {_DEEPEST} deep, or in itself")
    if isinstance(value, np.generic) and not isinstance(value, (float, complex)) and numeric(value.dtype):
        return {"!numpy": [value.dtype.str, value.tobytes().hex()]}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a text enum's own __str__ is another text
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"!complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"!bytes": bytes(value).hex()}
    if isinstance(value, dict):
        kind = kind_of(value)
        if kind == "dict" and all(isinstance(key, str) and key[:1] != "!" for key in value):
            return {key: encode(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
        pairs = [
            [encode(k, f"a key of {where}", depth + 1), encode(v, f"{where}[{k!r}]", depth + 1)]
            for k, v in value.items()
        ]
        return {"!" + kind: pairs}
    if isinstance(value, list) or type(value) is tuple:
        items = [encode(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"!tuple": items}
    raise TypeError(f"{where}: cannot be stored: it is a {type(value).__qualname__}")


def decode(value: Any) -> Any:
    """The inverse of ``encode``.

    Raises:
        ValueError: it is not what ``encode`` makes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if mark[:1] != "!":
        return {key: decode(item) for key, item in value.items()}
    name, content = mark[1:], value[mark]
    if name in MAPPINGS:
        # By way of a dict: a Counter counts pairs.
        return MAPPINGS[name]({decode(key): decode(item) for key, item in content})
    if name == "tuple":
        return tuple(decode(item) for item in content)
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    if name == "int":
        return int(content)
    if name == "numpy":
        dtype = np.dtype(content[0])
        if not numeric(dtype):
            raise ValueError(f"a number of type {dtype}")
        return np.frombuffer(bytes.fromhex(content[1]), dtype)[0]
    raise ValueError(f"an unknown kind of value {mark}")
