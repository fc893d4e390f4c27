"""State as PyTorch knows it, through a file and back: every optimizer, scheduler, scaler and type of tensor."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from hpcdml.errors import UsageError
from hpcdml.storage import Checkpoint, read_checkpoint, read_tree, write_checkpoint, write_tree
from hpcdml.training.state import load_optimizer, load_state, to_array, to_arrays, to_tensor, to_tensors, typed_state


def through_a_file(tree: Any) -> Any:
    with h5py.File("memory", "w", driver="core", backing_store=False, libver="latest") as file:
        write_tree(file.create_group("tree"), to_arrays(tree, "state"))
        return to_tensors(read_tree(file["tree"]))


def same(one: Any, other: Any) -> bool:
    """Equal in type, dtype, shape and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype is torch.complex32:
            one, other = torch.view_as_real(one), torch.view_as_real(other)
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        if one.is_complex():
            one, other = torch.view_as_real(one), torch.view_as_real(other)
        flat = (t.contiguous().reshape(-1).view(bits[t.element_size()]) for t in (one, other))
        return torch.equal(*flat)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


# Tensors

DTYPES = sorted(
    (d for d in vars(torch).values() if isinstance(d, torch.dtype) and not str(d).startswith("torch.q")), key=str
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    raw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 4096, np.uint8))
    try:
        tensor = (raw & 1).bool() if dtype is torch.bool else raw.view(dtype)
        shapes = [tensor.reshape(8, -1), tensor[:1].reshape(()), tensor[:0].reshape(0, 3)]
        if dtype.is_floating_point and not name.startswith(("bfloat16", "float16", "float32", "float64")):
            for item in shapes:  # a NaN of these comes back as the one that the conversion makes
                item.copy_(item.float().nan_to_num(1.0, 1.0, 1.0).to(dtype))
        if dtype is torch.complex32:
            torch.view_as_real(tensor).nan_to_num_(1.0, 1.0, 1.0)
        to_array(tensor[:3])
    except (RuntimeError, UsageError, AttributeError, TypeError, NotImplementedError):
        if name in ("bfloat16", "float16", "float32", "float64", "bool", "int64", "int32", "uint8", "complex64"):
            raise
        with pytest.raises((UsageError, RuntimeError, AttributeError, TypeError, NotImplementedError)):
            to_array(raw.view(dtype))
        return
    tree = {"all": shapes, "turned": shapes[0].t()}
    assert same(through_a_file(tree), tree)


def test_tensors_that_cannot_be_saved_are_named() -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.zeros(3, device="meta")):
        with pytest.raises(UsageError, match=r"state\['a'\]\[0\]: cannot be saved: it is a sparse"):
            to_arrays({"a": [tensor]}, "state")


def test_a_type_that_this_torch_lacks_is_told() -> None:
    from hpcdml.storage import TensorArray

    with pytest.raises(UsageError, match="dtype float3: PyTorch .* has no such type"):
        to_tensor(TensorArray(np.zeros(3, "f4"), "float3"))


# Optimizers

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "LBFGS": {"lr": 0.5, "max_iter": 3, "history_size": 4, "line_search_fn": "strong_wolfe"},
    "Muon": {"lr": 0.01},
    "RMSprop": {"momentum": 0.9, "centered": True},
}
ALL_OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)


def model_for(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(1)
    if name == "SparseAdam":
        return nn.EmbeddingBag(20, 3, mode="sum", sparse=True).to(dtype)
    return nn.Sequential(nn.Linear(5, 4, bias=name != "Muon"), nn.Tanh(), nn.Linear(4, 2, bias=name != "Muon")).to(
        dtype
    )


def train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)

        def closure(generator: torch.Generator = generator, step: int = step) -> torch.Tensor:
            generator.manual_seed(step)
            optimizer.zero_grad()
            if name == "SparseAdam":
                loss = model(torch.randint(0, 20, (4, 3), generator=generator)).square().mean()
            else:
                kind = next(model.parameters()).dtype
                loss = (model(torch.randn(7, 5, generator=generator).to(kind)) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ALL_OPTIMIZERS)
def test_every_optimizer_goes_on_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: Any) -> None:
    if name == "LBFGS" and dtype is torch.bfloat16:
        monkeypatch.setitem(OPTIMIZERS, name, {"lr": 0.5, "max_iter": 3})  # no line search: it does not get on
    model = model_for(name, dtype)
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS.get(name, {}))
    train(name, model, optimizer, range(3))
    state = {"optimizer": to_arrays(optimizer.state_dict(), f"optimizer {name}")}
    path = write_checkpoint(tmp_path, Checkpoint(3, typed_state(model), workers={1: state}))
    train(name, model, optimizer, range(3, 6))

    found = read_checkpoint(path)
    other = model_for(name, dtype)
    load_state(other, found.parameters)  # type: ignore[arg-type]
    fresh = getattr(torch.optim, name)(other.parameters(), **OPTIMIZERS.get(name, {}))
    load_optimizer(fresh, found.workers[1]["optimizer"])
    train(name, other, fresh, range(3, 6))
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(fresh.state_dict(), optimizer.state_dict())
    assert any((p != q).any() for p, q in zip(model.parameters(), model_for(name, dtype).parameters(), strict=True))


# Schedulers and the scaler


class Halve:
    """A callable that LambdaLR saves: it has a state."""

    def __init__(self, calls: Any = 0) -> None:
        self.calls = calls

    def __call__(self, epoch: int) -> float:
        return 0.5**epoch


Maker = Callable[[torch.optim.Optimizer], Any]
SCHEDULERS: dict[str, Maker] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR object": lambda o: lr_scheduler.LambdaLR(o, Halve()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "CyclicLR own": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, scale_fn=lambda x: 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.MultiStepLR(o, [2, 3])], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=4),
}


def test_no_scheduler_is_forgotten() -> None:
    kinds = [k for k in vars(lr_scheduler).values() if isinstance(k, type) and issubclass(k, lr_scheduler.LRScheduler)]
    names = {kind.__name__ for kind in kinds} - {"LRScheduler", "_LRScheduler"}
    assert names <= {name.split()[0] for name in SCHEDULERS}


def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        optimizer.step()
        scheduler.step(*([1.0 + step % 2] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_as_if_nothing_had_been(name: str) -> None:
    def both() -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    optimizer, scheduler = both()
    rates(optimizer, scheduler, 3)
    saved = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    assert same(saved["scheduler"], scheduler.state_dict())
    other, fresh = both()
    other.load_state_dict(saved["optimizer"])
    fresh.load_state_dict(saved["scheduler"])
    assert rates(other, fresh, 9) == rates(optimizer, scheduler, 9)


def test_a_scheduler_with_a_function_in_its_state_is_refused_by_name() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, Halve(calls=print))
    with pytest.raises(UsageError) as error:
        to_arrays(scheduler.state_dict(), "scheduler LambdaLR")
    assert str(error.value) == (
        "scheduler LambdaLR['lr_lambdas'][0]['calls']: cannot be saved: it is a function; "
        "only numbers, texts and tensors can"
    )


def test_the_scaler_goes_on() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        scaler.scale((weight * (float("inf") if step == 3 else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    fresh = torch.amp.GradScaler("cpu")
    fresh.load_state_dict(through_a_file(scaler.state_dict()))
    assert fresh.state_dict() == scaler.state_dict() and fresh.get_scale() == scaler.get_scale() < 65536


# Random numbers


def test_all_random_number_states_come_back() -> None:
    generator = np.random.default_rng(5)
    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "generator": generator.bit_generator.state,
        "python": random.getstate(),
    }
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), generator.random(3).tolist(), random.random())
    found = through_a_file(state)
    torch.set_rng_state(found["torch"])
    np.random.set_state(found["numpy"])
    generator.bit_generator.state = found["generator"]
    random.setstate(found["python"])
    again = (torch.rand(3).tolist(), np.random.rand(3).tolist(), generator.random(3).tolist(), random.random())
    assert again == expected


# Models


def test_the_state_of_another_optimizer_is_refused() -> None:
    one = torch.optim.Adam([nn.Parameter(torch.zeros(2)) for _ in range(2)])
    other = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
    with pytest.raises(UsageError, match="optimizer Adam: this is another one's state: "):
        load_optimizer(other, to_arrays(one.state_dict(), "optimizer"))
    with pytest.raises(UsageError, match="optimizer Adam: this is another one's state: "):
        load_optimizer(other, {"nothing": 1})


def test_a_model_of_another_kind_is_refused_by_the_first_difference() -> None:
    state = typed_state(nn.Linear(3, 2))
    with pytest.raises(UsageError, match="parameters: bias is not in this model"):
        load_state(nn.Linear(3, 2, bias=False), state)
    with pytest.raises(UsageError, match="parameters: bias is missing"):
        load_state(nn.Linear(3, 2), {"weight": state["weight"]})
    with pytest.raises(UsageError, match=r"parameters: weight has shape \(2, 3\); this model needs \(2, 4\)"):
        load_state(nn.Linear(4, 2), state)


def test_arrays_share_the_tensors_memory() -> None:
    tensor = torch.zeros(3)
    array = to_arrays([tensor], "x")[0].values
    tensor[1] = 7
    assert array.tolist() == [0, 7, 0]
