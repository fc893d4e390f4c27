"""Blocks: runs of rows that are read at once, and the unit in which large data sets are shuffled and held out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hpcdml.training.data.fileset import Part
from hpcdml.training.data.split import SPLIT_SEED, test_size

Indices = npt.NDArray[np.int64]

BLOCK_BYTES = 1 << 20
"""Bytes of inputs in a block: as little as a disk or a file system reads with most of its speed."""
MOST_BLOCKS = 1 << 20
"""Blocks grow with the data beyond that, so that an order of them stays small."""


@dataclass(frozen=True)
class Blocks:
    """Runs of rows of one part of a data set, in rising order; none goes beyond a file.

    Attributes:
        first: number of the first row of each.
        count: number of its rows, at least 1.
    """

    first: Indices
    count: Indices

    def __len__(self) -> int:
        return len(self.count)

    @property
    def rows(self) -> int:
        """Rows of all blocks together."""
        return int(self._ends[-1])

    def rows_at(self, indices: Indices) -> Indices:
        """Row numbers of samples that are counted through all blocks."""
        block = np.searchsorted(self._ends, indices, side="right")
        result: Indices = indices - (self._ends[block] - self.count[block]) + self.first[block]
        return result

    @cached_property
    def _ends(self) -> Indices:
        return np.cumsum(self.count)

    def split(self, fraction: float) -> tuple[Blocks, Blocks]:
        """Training and test blocks, by a fixed seed; one block may be divided, so that the number of rows is exact.

        Args:
            fraction: share of the test rows; at least one row is left on either side.

        Raises:
            UsageError: fewer than two rows.
        """
        wanted = test_size(self.rows, fraction)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(self))
        before = np.cumsum(self.count[order]) - self.count[order]
        taken = np.zeros(len(self), np.int64)
        taken[order] = np.clip(wanted - before, 0, self.count[order])
        # A block's test rows are its first ones.
        return self._kept(self.first + taken, self.count - taken), self._kept(self.first, taken)

    @staticmethod
    def _kept(first: Indices, count: Indices) -> Blocks:
        return Blocks(first[count > 0], count[count > 0])


def cut(part: Part) -> Blocks:
    """Blocks of a part: whole chunks of ``x``, of about ``BLOCK_BYTES``; they depend on the files alone."""
    x = part.x
    total = sum(len(file.rows[x.name]) * file.rows[x.name].row_bytes for file in x.files)
    size = max(BLOCK_BYTES, total // MOST_BLOCKS)
    firsts, counts = [], []
    for file, start in zip(x.files, x.starts[:-1], strict=True):
        rows = file.rows[x.name]
        step = max(1, size // max(1, rows.row_bytes) // rows.chunk_rows) * rows.chunk_rows
        first = np.arange(0, len(rows), step, dtype=np.int64)
        firsts.append(start + first)
        counts.append(np.minimum(step, len(rows) - first))
    return Blocks(np.concatenate(firsts), np.concatenate(counts))
