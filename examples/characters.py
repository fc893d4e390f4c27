"""A character transformer on text that comes with Python: python examples/characters.py, or mpirun -n 3 python ..."""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import hpcdml

CONTEXT = 32


def text() -> str:
    """Python's licence where the installation has it, else the documentation strings of a module."""
    places = [Path(sys.prefix), Path(sys.base_prefix), Path(inspect.getfile(statistics)).parent]
    names = [place / name for place in places for name in ("LICENSE.txt", "LICENSE")]
    found = next((path for path in names if path.is_file()), None)
    return found.read_text(errors="replace") if found else inspect.getsource(statistics)


class Characters(Dataset):
    """Pieces of a text, each with itself one character later."""

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes) - CONTEXT

    def __getitem__(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.codes[start : start + CONTEXT], self.codes[start + 1 : start + CONTEXT + 1]


class Transformer(nn.Module):
    """Predicts at each place the next character from those before it."""

    def __init__(self, symbols: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) / 10)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1])
        return self.head(self.body(self.symbols(codes) + self.places[: codes.shape[1]], mask=mask, is_causal=True))


@torch.no_grad()
def loss_on(model: nn.Module, codes: torch.Tensor) -> float:
    """Mean cross entropy of a text, in nats a character."""
    model.eval()
    pieces = codes[: (len(codes) - 1) // CONTEXT * CONTEXT + 1]
    inputs, targets = pieces[:-1].view(-1, CONTEXT), pieces[1:].view(-1, CONTEXT)
    return float(functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60000, help="to train on, of all workers together")
    parser.add_argument("--output", default="runs/example-characters")
    options = parser.parse_args()

    whole = text()
    alphabet = sorted(set(whole))
    codes = torch.tensor([alphabet.index(c) for c in whole])
    train, test = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]
    torch.manual_seed(0)
    model = Transformer(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(Characters(train), batch_size=16, shuffle=True)
    before = loss_on(model, test)
    with hpcdml.Session(
        model,
        optimizer,
        policy="losp",
        max_samples=options.samples,
        output=options.output,
        overwrite=True,
        evaluate=lambda m: {"loss": loss_on(m, test)},
    ) as session:
        for _ in session.epochs():
            model.train()
            for inputs, targets in session.batches(loader):
                optimizer.zero_grad()
                loss = session.loss(functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()))
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    if session.is_first:
        print(f"{len(whole)} characters: loss {before:.3f} before, {loss_on(model, test):.3f} now")


if __name__ == "__main__":
    main()
