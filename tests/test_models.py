"""Models: shapes, gradients, equal builds, arguments, and the messages for bad inputs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcdml.errors import UsageError
from hpcdml.training.data import DataSpec, default_loss
from hpcdml.training.models import MODELS, build_model

DIGITS = DataSpec((1, 8, 8), 10, "classification", ())
FEATURES = DataSpec((4,), 3, "classification", ())
REAL = DataSpec((4,), None, "regression", (3,))
NUMBER = DataSpec((4,), None, "regression", ())
TOKENS = DataSpec((16,), 11, "tokens", (16,))
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16},
    "lenet": {},
    "resnet18": {"width": 4},
    "alexnet": {"hidden": 16},
    "transformer": {"width": 16, "heads": 2},
}

names = (f"user_model_{i}" for i in itertools.count())


def image(channels: int, height: int, width: int) -> DataSpec:
    return DataSpec((channels, height, width), 10, "classification", ())


def usage_error(match: str, call: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def sample(spec: DataSpec, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    if spec.task == "tokens":
        assert spec.classes is not None
        return tuple(torch.randint(spec.classes, (2, batch, *spec.input_shape)))
    x = torch.randn(batch, *spec.input_shape)
    if spec.task == "regression":
        return x, torch.randn(batch, *spec.target_shape)
    assert spec.classes is not None
    return x, torch.randint(spec.classes, (batch,))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("mlp", FEATURES),
        ("mlp", DIGITS),
        ("mlp", REAL),
        ("mlp", NUMBER),
        ("mlp", DataSpec((), 2, "classification", ())),
        *[("lenet", image(*shape)) for shape in [(1, 4, 4), (1, 8, 8), (1, 28, 28), (3, 32, 32), (4, 17, 9)]],
        ("lenet", DataSpec((1, 8, 8), None, "regression", (2,))),
        *[("resnet18", image(*shape)) for shape in [(1, 8, 8), (3, 32, 32), (2, 9, 15)]],
        *[("alexnet", image(*shape)) for shape in [(1, 8, 8), (3, 32, 32), (3, 11, 20)]],
        ("transformer", TOKENS),
    ],
)
def test_forward_and_backward(name: str, spec: DataSpec) -> None:
    model = build_model(name, SMALL[name], spec, seed=0)
    x, y = sample(spec, batch=4)
    output = model(x)
    expected = (4, *spec.input_shape, spec.classes) if spec.task == "tokens" else (4, spec.outputs)
    assert output.shape == expected
    default_loss("auto", spec)(output, y).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


def test_alexnet_and_resnet18_have_their_size_by_default() -> None:
    assert sum(p.numel() for p in build_model("resnet18", {}, image(3, 32, 32), 0).parameters()) == 11_173_962
    assert sum(p.numel() for p in build_model("lenet", {}, image(1, 28, 28), 0).parameters()) == 61_706


@pytest.mark.parametrize("name", list(MODELS))
def test_equal_seeds_build_equal_models(name: str) -> None:
    spec = TOKENS if name == "transformer" else DIGITS
    torch.manual_seed(99)
    before = torch.get_rng_state()
    one = build_model(name, SMALL[name], spec, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    other = build_model(name, SMALL[name], spec, seed=5).state_dict()
    third = build_model(name, SMALL[name], spec, seed=6).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], third[key]) for key in one)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", list(MODELS))
def test_models_allow_full_backward_hooks(name: str) -> None:
    """The worker polls in such hooks; an operation in place behind them is an error."""
    spec = TOKENS if name == "transformer" else DIGITS
    model = build_model(name, SMALL[name], spec, seed=0)
    calls: list[str] = []
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: calls.append("hook"))
    x, y = sample(spec, batch=2)
    default_loss("auto", spec)(model(x), y).backward()
    assert calls


def test_models_learn() -> None:
    torch.manual_seed(0)
    model = build_model("transformer", SMALL["transformer"], TOKENS, seed=0)
    x = torch.arange(16).remainder(11).expand(8, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_of = default_loss("auto", TOKENS)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(model(x), (x + 1) % 11)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_transformer_sees_no_later_token() -> None:
    model = build_model("transformer", SMALL["transformer"], TOKENS, seed=0).eval()
    x, _ = sample(TOKENS, batch=1)
    changed = x.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    one, other = model(x), model(changed)
    torch.testing.assert_close(one[:, :9], other[:, :9])
    assert not torch.allclose(one[:, 9:], other[:, 9:])
    assert model(x[:, :5]).shape == (1, 5, 11)
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        model(torch.zeros(1, 17, dtype=torch.int64))


def test_mlp_arguments() -> None:
    linear = build_model("mlp", {"layers": 0}, FEATURES, 0)
    assert sum(p.numel() for p in linear.parameters()) == 4 * 3 + 3
    deep = build_model("mlp", {"hidden": 8, "layers": 3, "dropout": 0.5}, FEATURES, 0)
    assert sum(isinstance(m, nn.Dropout) for m in deep.modules()) == 3
    assert build_model("mlp", {}, FEATURES, 0)(torch.ones(2, 4, dtype=torch.int64)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "args", "spec", "message"),
    [
        ("mlp", {"hiden": 3}, DIGITS, "^--model-args hiden=3: mlp takes hidden, layers, dropout$"),
        ("lenet", {"width": 3}, DIGITS, "^--model-args width=3: lenet takes no arguments$"),
        ("mlp", {"hidden": 0}, DIGITS, "^--model-args hidden=0: must be a whole number, at least 1$"),
        ("mlp", {"hidden": 2.5}, DIGITS, "hidden=2.5: must be a whole number"),
        ("mlp", {"hidden": True}, DIGITS, "hidden=True: must be a whole number"),
        ("mlp", {"layers": -1}, DIGITS, "layers=-1: must be a whole number, at least 0"),
        ("mlp", {"dropout": 1}, DIGITS, "dropout=1: must be a number from 0 to below 1"),
        ("alexnet", {"dropout": float("nan")}, DIGITS, "dropout=nan: must be a number"),
        ("resnet18", {"width": "wide"}, DIGITS, "width=wide: must be a whole number"),
        ("transformer", {"heads": 3}, TOKENS, "heads=3: must divide width, which is 128"),
        ("mlp", {"hidden": 10**15}, DIGITS, "^--model-args hidden=1000000000000000: mlp of this size raised "),
        ("mlp", {}, TOKENS, "^--model mlp: takes no tokens; take transformer"),
        ("mlp", {}, DataSpec((4,), 3, "classification", (2, 2)), "one class for each sample"),
        ("lenet", {}, FEATURES, r"^--model lenet: takes images \(C, H, W\), .* shape \(4,\); take mlp$"),
        ("alexnet", {}, image(8, 8, 1), r"at least 8x8, not 8x1; store them as \(1, 8, 8\)$"),
        ("resnet18", {}, DataSpec((28, 28), 3, "classification", ()), r"take mlp, or store them as \(1, 28, 28\)$"),
        ("resnet18", {}, image(1, 7, 8), "^--model resnet18: takes images of at least 8x8, not 7x8$"),
        ("lenet", {}, TOKENS, "takes images"),
        ("transformer", {}, DIGITS, "^--model transformer: takes tokens, as characters has"),
        (
            "resnet",
            {},
            DIGITS,
            "^--model resnet: must be one of mlp, lenet, resnet18, alexnet, transformer, or package",
        ),
    ],
)
def test_wrong_use(name: str, args: dict[str, Any], spec: DataSpec, message: str) -> None:
    usage_error(message, lambda: build_model(name, args, spec, 0))


USER = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=2):
        super().__init__(nn.Linear(4, width), nn.Linear(width, 3))

def net(width):
    return Net(width)

def lazy():
    return nn.Sequential(nn.LazyLinear(3))

def lazy_norm():
    return nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False))

def frozen():
    return nn.Linear(2, 2).requires_grad_(False)

def empty():
    return nn.ReLU()

def wrong():
    return nn.Linear

def fails(width=1):
    raise RuntimeError("out of\\nideas")
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    name = next(names)
    (tmp_path / f"{name}.py").write_text(USER)
    return name


def test_user_models(user: str) -> None:
    one = build_model(f"{user}:net", {"width": 5}, FEATURES, seed=1)
    other = build_model(f"{user}:Net", {"width": 5}, FEATURES, seed=1)
    assert one[0].out_features == 5  # type: ignore[index]
    assert torch.equal(one[1].weight, other[1].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("net", {}, r"^--model-args \(none\): \w+:net takes width: missing a required argument: 'width'$"),
        ("net", {"wide": 1}, r"^--model-args wide=1: \w+:net takes width: "),
        ("empty", {"a": 1}, r":empty takes no arguments: got an unexpected keyword argument 'a'$"),
        ("lazy", {}, r"^--model \w+:lazy: 0.weight has no shape yet .a lazy module.; run one forward pass"),
        ("lazy_norm", {}, ":lazy_norm: 1.running_mean has no shape yet"),
        ("frozen", {}, ":frozen: has no trainable parameter"),
        ("empty", {}, ":empty: has no trainable parameter"),
        ("wrong", {}, ":wrong: returned type; must return a torch.nn.Module$"),
        ("fails", {}, ":fails: raised RuntimeError: out of ideas$"),
        ("nothing", {}, r":nothing: module \w+ has no function nothing$"),
    ],
)
def test_user_model_failures(user: str, function: str, args: dict[str, Any], message: str) -> None:
    usage_error(message, lambda: build_model(f"{user}:{function}", args, FEATURES, 0))
