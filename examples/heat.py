"""A surrogate of the heat equation, from an HDF5 file that it writes: python examples/heat.py, or mpirun -n 3 ..."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

import hpcdml

POINTS, MODES = 32, 6


def write_solutions(path: Path, count: int) -> None:
    """Solve ``u_t = k u_xx`` on a rod with cold ends for random beginnings, conductivities and times.

    Dataset ``x``: the beginning at 32 points, then k and t; ``y``: the solution there. By Fourier's series, exactly.
    """
    numbers = np.random.default_rng(0)
    places = np.linspace(0, 1, POINTS)
    modes = np.arange(1, MODES + 1)
    shapes = np.sin(np.pi * np.outer(modes, places))
    amplitudes = numbers.normal(size=(count, MODES)) / modes
    k, t = numbers.uniform(0.01, 0.1, (count, 1)), numbers.uniform(0.0, 1.0, (count, 1))
    decay = np.exp(-k * (np.pi * modes) ** 2 * t)
    temporary = path.with_name(f".{path.name}-{platform.node()}-{os.getpid()}")
    with h5py.File(temporary, "w") as file:
        file["x"] = np.hstack([amplitudes @ shapes, 10 * k, t]).astype("f4")
        file["y"] = ((amplitudes * decay) @ shapes).astype("f4")
    os.replace(temporary, path)  # every rank may write it: the last one wins, and all are equal


class Solutions(Dataset):
    """Samples read one at a time from the file, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        file = h5py.File(path, "r")
        self.x, self.y = file["x"], file["y"]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(self.x[index]), torch.from_numpy(self.y[index])


@torch.no_grad()
def error(model: nn.Module, test: Subset) -> float:
    """Mean squared error on the test part, as a share of the solutions' variance."""
    model.eval()
    x, y = next(iter(DataLoader(test, batch_size=len(test))))
    return float(functional.mse_loss(model(x), y) / y.var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", default="runs/example-heat")
    options = parser.parse_args()

    path = Path(options.output).with_suffix(".h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_solutions(path, 2500)
    data = Solutions(path)
    train, test = Subset(data, range(2000)), Subset(data, range(2000, 2500))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(POINTS + 2, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, POINTS))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with hpcdml.Session(model, optimizer, policy="losp", output=options.output, overwrite=True) as session:
        batches = session.batches(DataLoader(train, batch_size=32, shuffle=True))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=options.epochs * len(batches))
        for _ in session.epochs(options.epochs):
            model.train()
            for x, y in batches:
                optimizer.zero_grad()
                loss = session.loss(functional.mse_loss(model(x), y))
                loss.backward()
                optimizer.step()
                schedule.step()
    if session.is_first:
        print(f"error {error(model, test):.4f} of the variance")


if __name__ == "__main__":
    main()
