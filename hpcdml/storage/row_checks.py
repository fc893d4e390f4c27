"""A checksum of its own for every row of the tables in ``run.h5``.

It is there at once, also in a file that is being written or whose writer was killed, which no seal guards yet. A
checksum over HDF5's chunks (fletcher32) would do worse there: a chunk that was being rewritten when the writer was
killed would be lost whole, with all rows that had been in it before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CHECK = "check"
_AT_ONCE = 1 << 16  # rows


def stored_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of a row in the file: the columns of the table and the checksum."""
    return np.dtype([*((name, dtype[name]) for name in dtype.names or ()), (CHECK, "<u8")])


def with_checks(rows: np.ndarray, first: int) -> np.ndarray:
    """Rows as they are stored, shape (n,); ``first`` is the number of the first one in its table, from 0."""
    stored = np.empty(len(rows), stored_type(rows.dtype))
    _bytes(stored)[:, : rows.dtype.itemsize] = _bytes(rows)
    stored[CHECK] = _checks(rows, first)
    return stored


def checked(stored: np.ndarray, first: int) -> tuple[np.ndarray, int]:
    """The rows up to the first one that is not as it was written, without their checksums.

    Rows at the end of the table that do not match are such that were being written; a reader sees a table's new length
    before the rows themselves, which are zeros then.

    Returns:
        The rows, shape (n,), and how many there are behind them.

    Raises:
        ValueError: a row does not match, but a later one does: the table is damaged.
    """
    dtype = np.dtype([(name, stored.dtype[name]) for name in (stored.dtype.names or ())[:-1]])
    rows = np.ascontiguousarray(_bytes(stored)[:, : dtype.itemsize]).reshape(-1).view(dtype)
    good = _checks(rows, first) == stored[CHECK]
    if good.all():
        return rows, 0
    count = int(good.argmin())
    if good[count:].any():
        raise ValueError(f"row {first + count} does not match its checksum")
    return rows[:count], len(rows) - count


def _bytes(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


def _checks(rows: np.ndarray, first: int) -> np.ndarray:
    """A number of 64 bits for each row: the sum of its 32-bit words and its number, each times an odd constant.

    So a change within one word, and a row in another's place, is found for certain, any other but for 1 in 1e19.
    """
    words = -(-rows.dtype.itemsize // 4)
    constants = _constants(words + 2)
    result = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        padded = np.zeros((len(part), 4 * words), np.uint8)
        padded[:, : rows.dtype.itemsize] = _bytes(part)
        numbers = np.arange(first + start, first + start + len(part), dtype=np.uint64)
        sums = (padded.view("<u4").astype(np.uint64) * constants[2:]).sum(axis=1, dtype=np.uint64)
        result[start : start + len(part)] = sums + numbers * constants[0] + constants[1]
    return result


def _constants(count: int) -> np.ndarray:
    """Odd numbers of 64 bits without a pattern (SplitMix64)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)
