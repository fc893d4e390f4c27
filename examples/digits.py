"""An image classifier on scikit-learn's handwritten digits: python examples/digits.py, or mpirun -n 3 python ..."""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

import hpcdml


def data() -> tuple[TensorDataset, TensorDataset]:
    """1,797 pictures of 8x8 grey values, a fifth of them for the test."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    whole = TensorDataset(images, torch.tensor(digits.target))
    return random_split(whole, [0.8, 0.2], torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Two convolutions with batch normalisation, and two layers for the ten classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorDataset) -> float:
    """Share of the test pictures that are recognised."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in DataLoader(test, batch_size=256))
    return right / len(test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default="runs/example-digits")
    options = parser.parse_args()

    train, test = data()
    loader = DataLoader(train, batch_size=32, shuffle=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with hpcdml.Session(
        model, optimizer, policy="losp", output=options.output, overwrite=True, evaluate=lambda m: accuracy(m, test)
    ) as session:
        for epoch in session.epochs(options.epochs):
            model.train()
            for images, labels in session.batches(loader):
                optimizer.zero_grad()
                loss = session.loss(functional.cross_entropy(model(images), labels))
                loss.backward()
                optimizer.step()
            if session.is_first:
                print(f"epoch {epoch + 1}: accuracy {accuracy(model, test):.3f}", flush=True)
    if session.is_first:
        print(f"final accuracy {accuracy(model, test):.3f}")


if __name__ == "__main__":
    main()
