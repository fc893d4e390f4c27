"""How fast a checkpoint is written and verified, beside ``dd conv=fsync`` on the same disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need_counts
from hpcdml.benchmarks.table import spread
from hpcdml.config import option
from hpcdml.errors import MachineError, UsageError
from hpcdml.storage import Checkpoint, TensorArray, newest_valid, write_checkpoint

_BLOCK = 8 << 20


@dataclass(frozen=True)
class CheckpointOptions:
    """Benchmark"""

    megabytes: int = option(1000, "size of the model's parameters")
    tensors: int = option(300, "number of its parameters")
    adam: bool = option(False, "add the state of Adam for one worker: twice the parameters again")
    repeats: int = option(7, "checkpoints and runs of dd, in turn")
    folder: str = option(".", "a folder on the disk")
    json: bool = option(False, "print JSON instead of a table")


def check(options: CheckpointOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    need_counts(options, "megabytes", "tensors", "repeats")
    if not Path(options.folder).is_dir():
        raise UsageError(f"--folder {options.folder}: is no folder")


def run(options: CheckpointOptions, log: Log) -> list[dict[str, Any]]:
    """Write checkpoints and as many bytes by dd, in turn.

    Returns:
        One row: size, MB/s of both sides (median, smallest, largest), the median of the ratios, GB/s of verifying.

    Raises:
        HpcdmlError: the folder cannot be written, or dd failed.
    """
    check(options)
    checkpoint = _checkpoint(options)
    ours, dd, verified, ratios = [], [], [], []
    size = 0
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-", dir=options.folder) as name:
        folder = Path(name)
        for repeat in range(options.repeats):
            start = time.perf_counter()
            path = write_checkpoint(folder, checkpoint)
            seconds = time.perf_counter() - start
            size = path.stat().st_size
            start = time.perf_counter()
            newest_valid(folder)
            verified.append(size / 1e9 / (time.perf_counter() - start))
            path.unlink()
            seconds_dd = _dd(folder / "dd", size)
            ours.append(size / 1e6 / seconds)
            dd.append(size / 1e6 / seconds_dd)
            ratios.append(seconds_dd / seconds)
            log.run({"repeat": repeat, "MB": size / 1e6, "checkpoint": ours[-1], "dd": dd[-1], "verify": verified[-1]})
            log(f"repeat {repeat}: {ours[-1]:.0f} MB/s, dd {dd[-1]:.0f} MB/s")
    return [
        {
            "MB": round(size / 1e6),
            "checkpoint MB/s": spread(ours),
            "dd MB/s": spread(dd),
            "ratio": median(ratios),
            "verify GB/s": spread(verified),
        }
    ]


def _checkpoint(options: CheckpointOptions) -> Checkpoint:
    length = max(1, options.megabytes * 10**6 // 4 // options.tensors)
    rng = np.random.default_rng(0)

    def values() -> dict[str, np.ndarray]:
        return {f"layer{i}.weight": rng.standard_normal(length, "f4") for i in range(options.tensors)}

    parameters = values()
    workers = {}
    if options.adam:
        averages = [[TensorArray(a, "float32") for a in values().values()] for _ in range(2)]
        state = {
            i: {"step": TensorArray(np.array(9, "f4"), "float32"), "exp_avg": first, "exp_avg_sq": second}
            for i, (first, second) in enumerate(zip(*averages, strict=True))
        }
        workers[1] = {"optimizer": {"state": state, "param_groups": [{"lr": 0.1, "params": list(state)}]}}
    return Checkpoint(1, parameters, workers=workers)


def _dd(path: Path, size: int) -> float:
    """Seconds that dd takes for as many bytes; the file is gone afterwards."""
    command = ["dd", "if=/dev/zero", f"of={path}", f"bs={_BLOCK}", f"count={-(-size // _BLOCK)}", "conv=fsync"]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except OSError as error:
        raise MachineError(f"bench checkpoint needs dd: {error.strerror}") from error
    seconds = time.perf_counter() - start
    path.unlink(missing_ok=True)
    if done.returncode:
        raise MachineError(f"{' '.join(command)}: {(done.stderr.splitlines() or ['failed'])[0]}")
    return seconds * size / (-(-size // _BLOCK) * _BLOCK)
