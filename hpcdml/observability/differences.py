"""How two files differ: their options, and their parameters by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcdml.storage.contents import Contents
from hpcdml.storage.tree import TensorArray

_ABSENT = object()


def differences(one: Contents, other: Contents, few: int | None = 12) -> list[str]:
    """Lines about the differences between two verified files.

    Args:
        one, other: from ``storage.contents.read_contents``; of any kinds.
        few: how many parameters that differ are named at most; None: all.
    """
    lines = [f"{one.path} against {other.path}", *_options(one.config, other.config)]
    if one.checkpoint is not None and other.checkpoint is not None:
        lines.append(f"versions     {one.checkpoint.version} against {other.checkpoint.version}")
    if one.parameters is None or other.parameters is None:
        which = one if one.parameters is None else other
        return [*lines, f"parameters   not compared: {which.path} has none, the run has not finished"]
    return [*lines, *_parameters(one.parameters, other.parameters, few)]


def _options(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name, _ABSENT), other.get(name, _ABSENT)
        if a != b and not (a != a and b != b):
            lines.append(f"  {name} = {_value(a)} against {_value(b)}")
    return [f"options      {len(lines)} differ" if lines else "options      the same", *lines]


def _value(value: Any) -> str:
    return "(not there)" if value is _ABSENT else repr(value)


def _parameters(one: dict[str, TensorArray], other: dict[str, TensorArray], few: int | None) -> list[str]:
    names = list(dict.fromkeys([*one, *other]))
    different = [(name, text) for name in names if (text := _difference(one.get(name), other.get(name)))]
    if not different:
        return [f"parameters   the same in every bit, {len(names)} of them"]
    shown = different if few is None else different[:few]
    lines = [
        f"parameters   {len(different)} of {len(names)} differ, the first is {different[0][0]}",
        *(f"  {name}: {text}" for name, text in shown),
    ]
    if len(shown) < len(different):
        lines.append(f"  and {len(different) - len(shown):,} more; --all names them")
    return lines


def _difference(one: TensorArray | None, other: TensorArray | None) -> str:
    """What differs between two arrays; nothing where they are equal in every bit."""
    if one is None or other is None:
        return f"only in the {'second' if one is None else 'first'}"
    a, b = one.values, other.values
    if a.shape != b.shape or one.torch_dtype != other.torch_dtype:
        return f"{one.torch_dtype}{list(a.shape)} against {other.torch_dtype}{list(b.shape)}"
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return ""
    kind = np.complex128 if a.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(kind) - b.astype(kind)).reshape(-1)
    unequal = ~((a == b) | ((a != a) & (b != b))).reshape(-1)
    if not unequal.any():
        return "equal but for the bits of zeros or NaNs"
    first = tuple(int(i) for i in np.unravel_index(int(unequal.argmax()), a.shape))
    largest = float(np.max(gap[unequal])) if not np.isnan(gap[unequal]).any() else float("nan")
    return (
        f"{int(unequal.sum()):,} of {a.size:,} values differ, by {largest:.6g} at most; "
        f"the first at {list(first)}: {a[first]!r} against {b[first]!r}"
    )
