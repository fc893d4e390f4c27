"""The user's own functions: data sets, factories and losses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from hpcdml.errors import UsageError
from hpcdml.training.data import DatasetSource, DataSpec, accuracy_counts, default_loss
from hpcdml.training.factories import call_factory, load_factory
from samples import everything, load, names, usage_error


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder, under a new name, which is returned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def write(text: str) -> str:
        name = next(names)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


# The user's own data


COMMON = "import torch\nfrom torch.utils.data import TensorDataset, random_split\n"
PAIR = "TensorDataset(torch.rand(8, 2), torch.arange(8) % 3)"


def test_user_pair_and_single(module: Callable[[str], str]) -> None:
    pair = module(COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 2, 7]))")
    data = load(f"{pair}:f")
    assert data.spec == DataSpec((2,), 8, "classification", ())
    assert (len(data.train), len(data.test), data.sharded, data.name) == (8, 4, False, f"{pair}:f")
    single = module(COMMON + f"def f():\n    return {PAIR}")
    data = load(f"{single}:f", test_fraction=0.25)
    assert (len(data.train), len(data.test)) == (6, 2)
    parts = module(COMMON + f"def f():\n    return random_split({PAIR}, [5, 3])")
    data = load(f"{parts}:f")
    assert (len(data.train), len(data.test)) == (5, 3)


def test_user_items_are_scanned_for_classes(module: Callable[[str], str]) -> None:
    text = "def f():\n    return [([float(i)] * 3, i % 5) for i in range(600)]"
    usage_error("the input of a sample must be .* not of type list", lambda: load(f"{module(text)}:f"))
    text = "import numpy as np\ndef f():\n    return [(np.ones((1, 8, 8)), i % 5) for i in range(600)]"
    data = load(f"{module(text)}:f")
    assert data.spec == DataSpec((1, 8, 8), 5, "classification", ())
    assert (len(data.train), len(data.test)) == (480, 120)
    assert isinstance(data.train, DatasetSource)


def test_user_tokens_and_regression(module: Callable[[str], str]) -> None:
    text = COMMON + (
        "def tokens():\n    x = torch.arange(40).view(5, 8)\n    return TensorDataset(x, x // 2)\n"
        "def real():\n    return TensorDataset(torch.rand(5, 2).double(), torch.rand(5, 3).double())\n"
    )
    name = module(text)
    assert load(f"{name}:tokens").spec == DataSpec((8,), 40, "tokens", (8,))
    data = load(f"{name}:real")
    assert data.spec == DataSpec((2,), None, "regression", (3,))
    assert [part.dtype for part in everything(data.train)] == [torch.float32] * 2


HUGE = """
class Huge:
    {classes}
    def __len__(self): return 300000
    def __getitem__(self, i): return 1.0 * i, i % 3
def f(): return Huge(), Huge()
"""


def test_user_classes(module: Callable[[str], str]) -> None:
    huge = module(HUGE.format(classes="pass"))
    usage_error("300000 samples are too many .* set the attribute num_classes", lambda: load(f"{huge}:f"))
    assert load(module(HUGE.format(classes="num_classes = 11")) + ":f").spec.classes == 11
    assert load(module(HUGE.format(classes="classes = ['a', 'b', 'c', 'd']")) + ":f").spec.classes == 4
    wrong = module(HUGE.format(classes="num_classes = 2.5"))
    usage_error("num_classes is 2.5; must be a whole number", lambda: load(f"{wrong}:f"))
    few = module(COMMON + f"def f():\n    d = {PAIR}\n    d.num_classes = 2\n    return d")
    usage_error("holds the label 2; must be below its 2 classes", lambda: load(f"{few}:f"))
    negative = module(COMMON + "def f():\n    return TensorDataset(torch.rand(3, 2), torch.arange(3) - 1)")
    usage_error("holds the label -1; labels count from 0", lambda: load(f"{negative}:f"))


def test_user_shards(module: Callable[[str], str]) -> None:
    text = COMMON + (
        "def f(worker, workers):\n"
        "    n = 2 if worker is None else 10 + worker\n"
        "    d = TensorDataset(torch.full((n, 2), float(workers)), torch.arange(n) % 2)\n"
        "    d.num_classes = 5\n    return d, d\n"
        "def g(worker=0, workers=1):\n    return TensorDataset(torch.ones(4, 1), torch.arange(4))\n"
    )
    name = module(text)
    data = load(f"{name}:f", worker=3, workers=4)
    assert data.sharded and len(data.train) == 13 and data.spec.classes == 5
    assert float(everything(data.train)[0].max()) == 4
    assert len(load(f"{name}:f", worker=None, workers=4).train) == 2
    usage_error("shards of the workers do not tell the number of classes", lambda: load(f"{name}:g"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f():\n    raise ValueError('no\\nnet')", ":f: raised ValueError: no net$"),
        ("def f():\n    raise ValueError", ":f: raised ValueError$"),
        ("import sys\ndef f():\n    sys.exit(3)", ":f: raised SystemExit: 3$"),
        ("def f(path):\n    pass", ":f: raised TypeError: .*missing 1 required positional argument: 'path'"),
        ("def f():\n    return None", ":f: returned None"),
        ("def f():\n    return 1, 2, 3", ":f: returned 3 things"),
        ("def f():\n    return 5", ":f: gives no sample by its index .int."),
        (COMMON + "def f():\n    return torch.ones(2), torch.ones(2)", ":f: returned a tensor"),
        (
            COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 5), torch.arange(4))",
            r":f: inputs are torch.float32 of shape \(2,\) for training and torch.float32 of shape \(5,\) for the test",
        ),
        (COMMON + f"def f():\n    return {PAIR}, TensorDataset(torch.rand(4, 2), torch.rand(4))", ":f: targets are"),
        ("def g():\n    pass", r":f: module \w+ has no function f$"),
        ("f = 3", ":f: f is not a function but of type int$"),
        ("1 / 0", r":f: importing \w+ raised ZeroDivisionError: division by zero$"),
        ("import no_such_thing", r":f: importing \w+ raised ModuleNotFoundError: No module named 'no_such_thing'$"),
        ("def f(:", r":f: importing \w+ raised SyntaxError: "),
    ],
)
def test_user_failures(module: Callable[[str], str], text: str, message: str) -> None:
    name = module(text)
    usage_error(f"^--dataset {name}{message}", lambda: load(f"{name}:f"))


# Factories


def test_factory_of_an_installed_module_and_of_a_class() -> None:
    assert load_factory("--model", "json:dumps")([1]) == "[1]"
    assert load_factory("--model", "collections:OrderedDict.fromkeys")("ab") == {"a": None, "b": None}


def test_factory_errors() -> None:
    usage_error("^--model nope.sub:f: there is no module nope ", lambda: load_factory("--model", "nope.sub:f"))
    usage_error("there is no module json.nope ", lambda: load_factory("--model", "json.nope:f"))
    for spec in ("json", "json:", ":f", "a/b.py:f", "json:dumps:x", "json: dumps"):
        usage_error("must have the form package.module:function", partial(load_factory, "--model", spec))


def test_call_factory_keeps_the_cause_and_any_argument_name() -> None:
    with pytest.raises(UsageError, match="^--model json:loads: raised JSONDecodeError: Expecting value") as caught:
        call_factory("--model", "json:loads", load_factory("--model", "json:loads"), s="nope")
    assert isinstance(caught.value.__cause__, ValueError)
    assert call_factory("--model", "b:dict", dict, option=1, spec=2, function=3) == {
        "option": 1,
        "spec": 2,
        "function": 3,
    }


# Losses

CLASSES = DataSpec((4,), 3, "classification", ())
TOKENS = DataSpec((5,), 7, "tokens", (5,))
REAL = DataSpec((4,), None, "regression", ())


def test_auto_loss_follows_the_task() -> None:
    scores, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = torch.nn.functional.cross_entropy(scores, target)
    assert torch.equal(default_loss("auto", CLASSES)(scores, target), expected)
    # One token at a time is the same as all of them flat.
    flat = default_loss("auto", TOKENS)(scores.view(2, 3, 3), target.view(2, 3))
    torch.testing.assert_close(flat, expected)


def test_mse_never_broadcasts() -> None:
    mse = default_loss("auto", REAL)
    output, target = torch.arange(4.0).view(4, 1), torch.arange(4.0) + 2
    assert float(mse(output, target)) == 4.0
    with pytest.raises(ValueError, match=r"output must have the target's shape \(4,\), got \(4, 2\)"):
        mse(torch.ones(4, 2), target)
    with pytest.raises(ValueError, match="shape"):
        mse(torch.ones(2, 3), torch.ones(3, 2))


def test_loss_errors(module: Callable[[str], str]) -> None:
    usage_error("^--loss mse: needs real numbers", lambda: default_loss("mse", CLASSES))
    usage_error("^--loss cross_entropy: needs classes", lambda: default_loss("cross_entropy", REAL))
    usage_error("^--loss hinge: must be auto, cross_entropy, mse or", lambda: default_loss("hinge", CLASSES))
    name = module("def f(a, b):\n    return (a - b).abs()\ndef g(a, b):\n    return f(a, b).mean()\n")
    assert float(default_loss(f"{name}:g", REAL)(torch.ones(3), torch.zeros(3))) == 1
    loss = default_loss(f"{name}:f", REAL)
    usage_error(r"returned a tensor of shape \(3,\); must be", lambda: loss(torch.ones(3), torch.zeros(3)))
    usage_error(f"^--loss {name}:f: raised RuntimeError: The size", lambda: loss(torch.ones(3), torch.zeros(2)))


def test_accuracy_counts() -> None:
    scores = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert accuracy_counts(scores, torch.tensor([0, 1, 1, 2]), CLASSES) == (2, 4)
    assert accuracy_counts(scores.view(2, 2, 3), torch.tensor([[0, 1], [2, 0]]), TOKENS) == (4, 4)
    assert accuracy_counts(torch.ones(4, 1), torch.ones(4), REAL) == (0, 0)
    with pytest.raises(ValueError, match="scores for each class"):
        accuracy_counts(torch.ones(4), torch.zeros(4, dtype=torch.int64), CLASSES)
