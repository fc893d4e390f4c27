"""A run's curves as event files for TensorBoard, written after the run or while it goes on."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterator

import numpy as np

from hpcdml.errors import UsageError
from hpcdml.observability.output import writing
from hpcdml.observability.view import RunView


def check_tensorboard() -> None:
    """Check that event files can be written.

    Raises:
        UsageError: the package is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard: needs the tensorboard package: pip install 'hpcdml[tensorboard]'")


def write_tensorboard(view: RunView, folder: str) -> int:
    """Write all curves against the samples of all workers, and return the number of points.

    Raises:
        UsageError: tensorboard is missing, the folder cannot be written, or the run file is damaged.
        MachineError: the disk is full or fails.
    """
    check_tensorboard()
    started = datetime.datetime.fromisoformat(view.run.created).timestamp()
    points = [point for point in scalars(view) if np.isfinite(point[3])]
    with writing(f"--tensorboard {folder}"):
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(folder) as writer:
            for name, samples, seconds, value in points:
                writer.add_scalar(name, value, samples, walltime=started + seconds, new_style=True)
    return len(points)


def scalars(view: RunView) -> Iterator[tuple[str, int, float, float]]:
    """Name, samples of all workers, seconds and value of every point."""
    c = view.curves
    for at in range(len(c.seconds)):
        samples, seconds = int(c.samples[at]), float(c.seconds[at])
        yield "train/loss", samples, seconds, float(c.loss[at])
        yield "speed/samples_per_second", samples, seconds, float(c.rate[at])
        yield "speed/without_communication", samples, seconds, float(c.limit[at])
    for row in view.evaluations:
        for name in ("accuracy", "loss"):
            yield f"held-out/{name}", int(row["samples"]), float(row["time"]), float(row[name])
