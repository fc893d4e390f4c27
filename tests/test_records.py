"""A worker's records of its local steps."""

from __future__ import annotations

import numpy as np
import torch

from hpcdml.training.records import CAPACITY, COLUMNS, StepRecords, table_rows


def test_rows_come_out_as_they_went_in_and_a_block_is_taken_once() -> None:
    records = StepRecords(torch.device("cpu"))
    assert records.take().shape == (0, len(COLUMNS))
    names = [name for name in COLUMNS if name != "loss"]
    drawn = np.random.default_rng(1).integers(1, 1 << 20, (CAPACITY, len(COLUMNS))).astype(float)
    for index, row in enumerate(drawn):
        assert (records.count, records.full) == (index, False)
        # Given in another order than that of the columns; the loss has the type that a model computes in.
        loss = torch.tensor(row[-1], dtype=torch.float32, requires_grad=True)
        records.add(loss, **dict(reversed(list(zip(names, row[:-1], strict=True)))))
    assert records.full
    table = table_rows(7, records.take())
    assert (table["worker"] == 7).all() and (table["loss"] == drawn[:, -1]).all()
    for index, name in enumerate(names):
        assert (table[name] == drawn[:, index]).all(), name
    assert records.count == 0 and not records.full
