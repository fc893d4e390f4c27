"""Data of HDF5 files: held in memory where they fit, read by blocks where not."""

from __future__ import annotations

import numpy as np
import torch

from hpcdml.config import DataOptions
from hpcdml.storage.datasets import DataFile
from hpcdml.training.data.blocks import cut
from hpcdml.training.data.fileset import Part
from hpcdml.training.data.form import find_form
from hpcdml.training.data.paths import find_files
from hpcdml.training.data.source import TensorSource
from hpcdml.training.data.split import split_indices
from hpcdml.training.data.stream import HELD_SHARE, LABELS, FileSource
from hpcdml.training.data.task import Opened, TaskData


class OpenedFiles(Opened):
    """Files whose shapes and types are right.

    Raises:
        UsageError: a file cannot be read, or shapes or types are wrong.
    """

    def __init__(self, options: DataOptions) -> None:
        self._options = options
        self._files = [DataFile(path) for path in find_files(options.dataset)]
        self._form = find_form(self._files)
        suffixes = ("", "_test") if self._form.has_test else ("",)
        self._parts = [Part(self._files, self._form, suffix) for suffix in suffixes]
        size = sum(len(part) * part.row_bytes("i8") for part in self._parts)
        self._memory = options.data_memory_mb * 1e6
        self._small = size <= self._memory
        self._loaded: list[TensorSource] = []

    def check(self, part: int, parts: int) -> int:
        """Check all values of small files, which are held in memory from now on, and one part of those of large ones.

        Raises:
            UsageError: a value is wrong; the message names file, data set and row.
            MachineError: the disk fails.
        """
        if self._small:
            return max(self._load(one) for one in self._parts)
        return max(column.check(part, parts) for one in self._parts for column in one.columns)

    def data(self, largest: int) -> TaskData:
        """The data, once all parts have been checked; ``largest`` is the largest label that any check has found.

        Raises:
            UsageError: there are too few samples to hold some out.
        """
        spec, name = self._form.spec(largest), self._options.dataset
        if self._small:
            sources = self._loaded
            if len(sources) == 1:
                labels = sources[0].y.numpy() if spec.task == "classification" else None
                rows = split_indices(len(sources[0]), self._options.test_fraction, labels)
                sources = [sources[0].subset(part) for part in rows]
            for file in self._files:
                file.close()
            return TaskData(sources[0], sources[1], spec, name)
        for part in self._parts:
            if _target_bytes(part) <= HELD_SHARE * self._memory / 2:
                part.y.hold(part.form.held_type(part.y.name, LABELS))
        blocks = [cut(part) for part in self._parts]
        parts = self._parts
        if len(parts) == 1:
            blocks, parts = list(blocks[0].split(self._options.test_fraction)), parts * 2
        train, test = (FileSource(p, b, self._memory, name) for p, b in zip(parts, blocks, strict=True))
        return TaskData(train, test, spec, name)

    def _load(self, part: Part) -> int:
        x, y = part.empty(len(part), "i8")
        largest = max(part.x.read(0, x, check=True), part.y.read(0, y, check=True))
        scale = 1 / 255 if part.x.kind == "bytes" else None
        self._loaded.append(TensorSource(torch.from_numpy(x), torch.from_numpy(y), scale))
        return largest


def _target_bytes(part: Part) -> int:
    return int(len(part) * np.prod(part.y.shape, dtype=np.int64)) * part.form.held_type(part.y.name, LABELS).itemsize
