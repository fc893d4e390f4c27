"""CIFAR's Python batches: pickles, read without calling anything that they name.

A pickle is a program. Of the few names that these files need, each stands here for something that only notes its
arguments; every other name, and every call of another kind, ends the reading.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError

Bytes = npt.NDArray[np.uint8]


class _Array:
    """What numpy's array is in a pickle, before its values come in as the state."""

    def __init__(self) -> None:
        self.values: Bytes | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not (isinstance(kind, _Type) and kind.name in ("u1", "|u1", "uint8") and isinstance(data, (bytes, str))):
            raise pickle.UnpicklingError("holds an array that is not of bytes")
        if isinstance(data, str):
            data = data.encode("latin-1")
        if fortran or not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) != len(data):
            raise pickle.UnpicklingError("holds an array whose shape does not fit its bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(shape)


class _Type:
    """What numpy's dtype is in a pickle: its name."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: of no meaning for bytes."""


class _Shape:
    """Stands for the class of an array, which is handed to the function that makes one."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in the protocol of Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("holds a text where bytes are needed")
    return text.encode("latin-1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Shape,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"names {module}.{name}, which no batch of CIFAR does")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to something outside of the file")


def read_batch(where: str, data: bytes, labels: str) -> tuple[Bytes, Bytes]:
    """Pictures, (N, 3072), and labels, (N,), of a batch.

    Args:
        where: the file, for messages.
        labels: the name of the labels in the batch.

    Raises:
        UsageError: this is no such batch.
    """
    try:
        batch = _Reader(io.BytesIO(data), encoding="bytes").load()
        found = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
        pictures, numbers = found.get("data"), found.get(labels)
        if not isinstance(pictures, _Array) or pictures.values is None or not isinstance(numbers, list):
            raise pickle.UnpicklingError(f"has no data or no {labels}")
        if not all(type(n) is int and 0 <= n <= 255 for n in numbers):
            raise pickle.UnpicklingError(f"holds {labels} that are not from 0 to 255")
        values = np.array(numbers, np.uint8)
        if not len(values) or pictures.values.shape != (len(values), 3072):
            raise pickle.UnpicklingError(f"holds data of shape {pictures.values.shape} and {len(values)} {labels}")
        return pictures.values, values
    # A damaged pickle raises anything at all.
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{where}: is not a Python batch of CIFAR: {why}") from error


def _text(key: Any) -> Any:
    return key.decode("latin-1") if isinstance(key, bytes) else key
