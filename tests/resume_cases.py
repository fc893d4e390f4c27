"""Run under mpirun by test_resume: trains straight, and broken at a round, and compares the results on rank 0.

Arguments: a folder, and a JSON list of cases. A case has ``name``, ``options`` (of hpcdml train), ``samples`` (of the
data set), ``cut`` and ``rounds``; it prints ``name how equal`` for each way to break a run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from hpcdml.config import TrainConfig
from hpcdml.mpi import once
from hpcdml.training import run


class Net(nn.Module):
    """With everything that has a state of its own: batch norm, dropout, a frozen layer, an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.frozen(self.norm(self.first(x))))))


def build() -> nn.Module:
    return Net()


def data() -> tuple[TensorDataset, TensorDataset]:
    count = int(os.environ["RESUME_SAMPLES"])
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(count + 40, 6, generator=draw)
    y = (x @ torch.randn(6, 3, generator=draw)).argmax(1)
    return TensorDataset(x[:count], y[:count]), TensorDataset(x[count:], y[count:])


def train(folder: Path, options: dict[str, Any], **more: Any) -> None:
    fixed = {
        "dataset": "resume_cases:data",
        "model": "resume_cases:build",
        "threads": 1,
        "debug": True,
        "output": str(folder),
    }
    status = run.train(TrainConfig.from_flat({**fixed, **options, **more}))
    assert status == 0, status


def result(folder: Path) -> dict[str, np.ndarray]:
    with h5py.File(folder / "run.h5") as file:
        found = {name: dataset[()] for name, dataset in file["parameters"].items()}
        return found | {"rounds": file["rounds"]["round"], "steps": np.sort(file["steps"]["step"])}


def same(one: Path, other: Path) -> str:
    a, b = result(one), result(other)
    return " ".join(n for n in a if not np.array_equal(a[n], b[n])) or "equal"


def run_case(folder: Path, case: dict[str, Any], rank: int) -> None:
    options, cut, rounds, workers = case["options"], case["cut"], case["rounds"], case["workers"]
    os.environ["RESUME_SAMPLES"] = str(case["samples"])
    of_a_round = options["batch_size"] * workers
    straight, stopped, killed = (folder / f"{case['name']}-{how}" for how in ("straight", "stopped", "killed"))
    train(straight, options, max_samples=rounds * of_a_round)
    train(stopped, options, max_samples=cut * of_a_round, checkpoint_rounds=1000)
    assert run.resume(str(stopped), {"max_samples": rounds * of_a_round}) == 0
    # As after a kill behind the checkpoint: what was written later is not there.
    train(killed, options, max_samples=rounds * of_a_round, checkpoint_rounds=cut)
    once.settle(0, "")
    if rank == 0:
        for path in (killed / "checkpoints").iterdir():
            if path.name != f"step-{cut:08d}.h5":
                path.unlink()
        shutil.copytree(killed, folder / "kept")
    once.settle(0, "")
    assert run.resume(str(killed), {}) == 0
    if rank == 0:
        print(case["name"], "stopped", same(straight, stopped))
        print(case["name"], "killed", same(straight, killed), flush=True)
        for path in (straight, stopped, killed, folder / "kept"):
            shutil.rmtree(path)


if __name__ == "__main__":
    from mpi4py import MPI

    for each in json.loads(sys.argv[2]):
        run_case(Path(sys.argv[1]), each, MPI.COMM_WORLD.Get_rank())
