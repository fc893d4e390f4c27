"""Training from a file that is larger than the memory for data, beside the same file held in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcdml.benchmarks import witness
from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need, need_counts
from hpcdml.benchmarks.runs import train_job
from hpcdml.benchmarks.table import spread
from hpcdml.config import option
from hpcdml.errors import UsageError
from hpcdml.storage.sample_file import write_parts

SHAPE = (3, 32, 32)
CLASSES = 10
TEST_ROWS = 2000
PART_ROWS = 10_000
TYPES: dict[str, np.dtype[Any]] = {"bytes": np.dtype("u1"), "real": np.dtype("f4")}


@dataclass(frozen=True)
class DataOptions:
    """Benchmark"""

    gigabytes: float = option(4.0, "size of the file")
    types: str = option("real", "what the file holds: real (float32) or bytes")
    hidden: int = option(512, "units of the hidden layer, which decide how long a step takes")
    batch_size: int = option(64, "as for train")
    workers: int = option(2, "number of workers")
    data_memory_mb: float = option(256.0, "as for train, where the file is read by blocks")
    folder: str | None = option(None, "where the file is made, and deleted afterwards; none: the system's place")
    seconds: float = option(15.0, "length of each run")
    repeats: int = option(5, "runs of each side, in turn")
    json: bool = option(False, "print JSON instead of a table")


def check(options: DataOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    need_counts(options, "hidden", "batch_size", "workers", "repeats")
    for name in ("gigabytes", "data_memory_mb", "seconds"):
        need(options, name, getattr(options, name) > 0, "above 0")
    if options.types not in TYPES:
        raise UsageError(f"--types {options.types}: must be one of {', '.join(TYPES)}")


def run(options: DataOptions, log: Log) -> list[dict[str, Any]]:
    """Make the file and train from it, by blocks and from memory in turn.

    Returns:
        One row: samples/s both ways, the ratios within each turn, and each way's largest peak memory of a rank in MB.

    Raises:
        HpcdmlError: the file could not be written, or a run failed.
    """
    check(options)
    site = Site()
    ways = {"memory": 1e6, "blocks": options.data_memory_mb}
    speed: dict[str, list[float]] = {way: [] for way in ways}
    peak: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-", dir=options.folder) as folder:
        path = Path(folder) / "data.h5"
        _make(path, options)
        log(f"made a file of {path.stat().st_size / 1e9:.2f} GB")
        for repeat in range(options.repeats):
            # Each way goes first in every other turn.
            for way in sorted(ways, reverse=bool(repeat % 2)):
                rate, megabytes = _train(site, options, str(path), ways[way])
                speed[way].append(rate)
                peak[way].append(megabytes)
                log.run({"way": way, "samples_per_second": rate, "peak_MB": megabytes})
                log(f"repeat {repeat}, {way}: {rate:.0f} samples/s, {megabytes:.0f} MB in the largest rank")
    ratios = [blocks / memory for blocks, memory in zip(speed["blocks"], speed["memory"], strict=True)]
    return [
        {
            "holds": options.types,
            "GB": options.gigabytes,
            "memory": spread(speed["memory"]),
            "blocks": spread(speed["blocks"]),
            "ratio": spread(ratios),
            "peak_MB_memory": max(peak["memory"]),
            "peak_MB_blocks": max(peak["blocks"]),
        }
    ]


def _train(site: Site, options: DataOptions, path: str, memory: float) -> tuple[float, float]:
    """Samples/s of all workers, and the peak memory of the largest rank in MB."""
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder:
        model = {"inputs": int(np.prod(SHAPE)), "hidden": options.hidden, "classes": CLASSES, "folder": folder}
        summary = train_job(
            site,
            options.workers,
            {
                "dataset": path,
                "data_memory_mb": memory,
                "model": "hpcdml.benchmarks.witness:build",
                "model_args": model,
                "batch_size": options.batch_size,
                "lr": 0.01,
                "max_seconds": options.seconds,
                "eval_seconds": 1e6,
                "threads": 1,
            },
        )
        return summary["samples_per_second"], witness.peaks(folder)[-1] / 1e6


def _make(path: Path, options: DataOptions) -> None:
    dtype = TYPES[options.types]
    rows = max(options.workers, round(options.gigabytes * 1e9 / (np.prod(SHAPE) * dtype.itemsize)))
    counts = {"x": rows, "y": rows, "x_test": TEST_ROWS, "y_test": TEST_ROWS}
    write_parts(path, counts, _parts(rows, dtype))


def _parts(rows: int, dtype: np.dtype[Any]) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    centres = random.integers(60, 196, (CLASSES, *SHAPE))

    def samples(count: int, suffix: str) -> dict[str, np.ndarray]:
        y = random.integers(0, CLASSES, count)
        x = centres[y] + random.integers(-60, 60, (count, *SHAPE))
        return {"x" + suffix: x.astype(dtype) if dtype == "u1" else (x / 255).astype(dtype), "y" + suffix: y}

    for start in range(0, rows, PART_ROWS):
        yield samples(min(PART_ROWS, rows - start), "")
    yield samples(TEST_ROWS, "_test")
