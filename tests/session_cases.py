"""What a session must bear, case after case on each rank of one MPI job; every rank prints one JSON line for each case.

``session_cases.py FOLDER CASE...``; see ``test_session.py``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hpcdml
from hpcdml.launcher import launcher_rank

Outcome = tuple[nn.Module, dict[str, Any]]
RANK = launcher_rank() or 0
FOLDER = Path(sys.argv[1])
CASES: dict[str, Callable[[str], Outcome]] = {}


def case(work: Callable[[str], Outcome]) -> Callable[[str], Outcome]:
    CASES[work.__name__] = work
    return work


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def data(samples: int = 240) -> TensorDataset:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])).argmax(1))


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def step(session: hpcdml.Session, model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any) -> None:
    optimizer.zero_grad()
    session.loss(functional.cross_entropy(model(x), y)).backward()
    optimizer.step()


def loss_of(model: nn.Module) -> float:
    model.eval()
    x, y = data().tensors
    return float(functional.cross_entropy(model(x), y).detach())


@case
def plain(output: str) -> Outcome:
    """Different seeds on the ranks, a frozen layer, the names of the state, and a model that learns."""
    model = network(seed=RANK)
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    objects = [id(p) for p in model.parameters()]
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    before = loss_of(model)
    batches, lengths = 0, []
    with hpcdml.Session(model, optimizer, output=output) as session:
        loader = DataLoader(data(), batch_size=8, shuffle=True)
        for _ in session.epochs(6):
            model.train()
            lengths.append(len(session.batches(loader)))
            for x, y in session.batches(loader):
                batches += 1
                step(session, model, optimizer, x, y)
    return model, {
        "batches": batches,
        "lengths": sorted(set(lengths)),
        "same_objects": objects == [id(p) for p in model.parameters()],
        "same_shapes": shapes == {name: tuple(t.shape) for name, t in model.state_dict().items()},
        "before": before,
        "after": loss_of(model),
        "optimizer_sees_the_model": all(
            any(p is q for q in model.parameters()) for g in optimizer.param_groups for p in g["params"]
        ),
    }


def _uneven(policy: str, output: str, own: tuple[int, int], **options: Any) -> Outcome:
    """Workers whose loaders have different numbers of batches, and no epochs; the shorter one leaves."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    taken = 0
    with hpcdml.Session(model, optimizer, policy=policy, output=output, **options) as session:
        whole = [(x.unsqueeze(0).repeat(2, 1), y.repeat(2)) for x, y in data()]
        mine = whole[: own[session.worker]] if session.worker is not None else whole
        for x, y in session.batches(mine, shard=False):
            taken += 1
            step(session, model, optimizer, x, y)
    return model, {"taken": taken}


for _policy in ("bsp", "local-sgd", "asp", "ssp", "osp", "losp"):
    CASES[f"uneven_{_policy}"] = lambda output, policy=_policy: _uneven(policy, output, (5, 41))
for _number in range(4):
    # Every version is to be a checkpoint, the one at which a worker's loop ends as well.
    CASES[f"marked_{_number}"] = lambda output: _uneven("bsp", output, (7, 9), checkpoint_rounds=1)
CASES["idle_worker"] = lambda output: _uneven("losp", output, (0, 30))
CASES["nobody_steps"] = lambda output: _uneven("losp", output, (0, 0))
CASES["narrow"] = lambda output: _uneven("losp", output, (20, 30), wire_dtype="bf16")


@case
def leaves(output: str) -> Outcome:
    """The first worker breaks out of its loop."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    taken = 0
    with hpcdml.Session(model, optimizer, policy="bsp", output=output) as session:
        loader = DataLoader(data(), batch_size=8)
        for _ in session.epochs(3):
            for x, y in session.batches(loader):
                step(session, model, optimizer, x, y)
                taken += 1
                if session.is_first and taken == 7:
                    break
            if session.is_first:
                break
    return model, {"taken": taken}


@case
def bounded(output: str) -> Outcome:
    """The server stops the loops; an evaluation beside the serving; schedule and ranks' own loops of epochs."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    with hpcdml.Session(
        model,
        optimizer,
        epochs=20,
        output=output,
        eval_seconds=0.0,
        evaluate=lambda m: {"accuracy": float((m(data().tensors[0]).argmax(1) == data().tensors[1]).float().mean())},
    ) as session:
        batches = session.batches(DataLoader(data(), batch_size=8, shuffle=True))
        for _ in session.epochs():
            model.train()
            for x, y in batches:
                step(session, model, optimizer, x, y)
            schedule.step()
    return model, {"stopped": session.stopped, "after": loss_of(model)}


@case
def skipped(output: str) -> Outcome:
    """Accumulation, clipping and a scaler that skips the steps whose gradients are infinite."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    taken = steps = 0
    with hpcdml.Session(model, optimizer, output=output) as session:
        for x, y in session.batches(DataLoader(data(), batch_size=8)):
            loss = functional.cross_entropy(model(x), y) / 2
            scaler.scale(loss * (torch.inf if taken == 4 else 1.0)).backward()
            taken += 1
            if taken % 2 == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                steps += 1
    return model, {"taken": taken, "tried": steps, "scale": scaler.get_scale()}


@case
def closure(output: str) -> Outcome:
    """An optimizer that computes the loss several times in a step."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    with hpcdml.Session(model, optimizer, policy="local-sgd", local_steps=2, output=output) as session:
        for x, y in session.batches(DataLoader(data(), batch_size=40)):

            def again(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(again)
    return model, {"after": loss_of(model)}


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(data(64))


@case
def stream(output: str) -> Outcome:
    """An iterable data set, and a second session of the same model."""
    model = network()
    taken = 0
    for number in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with hpcdml.Session(model, optimizer, output=f"{output}-{number}") as session:
            for x, y in session.batches(DataLoader(Stream(), batch_size=8)):
                step(session, model, optimizer, x, y)
                taken += 1
    return model, {"taken": taken}


@case
def raises(output: str) -> Outcome:
    """The second worker's loop fails, without a ``with`` block."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    session = hpcdml.Session(model, optimizer, output=output).start()
    for number, (x, y) in enumerate(session.batches(DataLoader(data(), batch_size=8))):
        step(session, model, optimizer, x, y)
        if session.worker == 1 and number == 5:
            raise RuntimeError("the disk is\non fire")
    return model, {}


@case
def unsharded(output: str) -> Outcome:
    """A loop that does not ask the session for its minibatches."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with hpcdml.Session(model, optimizer, output=output) as session:
        for x, y in DataLoader(data(), batch_size=8):
            step(session, model, optimizer, x, y)
    return model, {}


@case
def unknown(output: str) -> Outcome:
    """A policy that there is not."""
    model = network()
    with hpcdml.Session(model, torch.optim.SGD(model.parameters(), lr=0.05), policy="lops", output=output):
        return model, {}


def main() -> None:
    for name in sys.argv[2:]:
        model, outcome = CASES[name](str(FOLDER / name))
        print(
            json.dumps(
                {"case": name, "rank": RANK, "digest": digest(model), "mpi": "mpi4py" in sys.modules, **outcome}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
