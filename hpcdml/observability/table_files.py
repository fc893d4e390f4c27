"""The tables of a run as CSV files, for spreadsheets and for programs that do not read HDF5."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from hpcdml.observability.output import replacing
from hpcdml.storage import TABLES, RunReader

_ROWS_AT_ONCE = 1 << 16


def write_csv(run: RunReader, folder: str) -> list[Path]:
    """Write one file for each table, ``steps.csv`` and so on, and return their paths. The first row has the names.

    Raises:
        UsageError: the folder cannot be written, or the run file is damaged.
        MachineError: the disk is full or fails.
    """
    written = []
    for each in TABLES:
        rows = run.table(each.name)
        path = Path(folder) / f"{each.name}.csv"
        with replacing("--csv", str(path)) as place, open(place, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(column.name for column in each.columns)
            for at in range(0, len(rows), _ROWS_AT_ONCE):
                block = rows[at : at + _ROWS_AT_ONCE]
                writer.writerows(zip(*(_cells(block[column.name]) for column in each.columns), strict=True))
        written.append(path)
    return written


def _cells(values: np.ndarray) -> list[object]:
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    if values.dtype == np.float32:
        return values.astype(str).tolist()  # no more digits than tell it from its neighbours
    return values.tolist()
