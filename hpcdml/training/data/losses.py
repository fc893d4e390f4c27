"""The default losses and the count of right answers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from hpcdml.errors import UsageError
from hpcdml.training.data.spec import DataSpec
from hpcdml.training.factories import call_factory, is_factory, load_factory

Loss = Callable[[Tensor, Tensor], Tensor]


def default_loss(name: str, spec: DataSpec) -> Loss:
    """The function (output, target) -> scalar tensor that ``--loss`` names.

    Args:
        name: ``auto`` (mse for regression, else cross_entropy), ``cross_entropy``, ``mse`` or
            ``package.module:function``, whose failures become UsageError when it is called.

    Raises:
        UsageError: an unknown name, or a loss that does not fit the targets.
    """
    if name == "auto":
        name = "mse" if spec.task == "regression" else "cross_entropy"
    if name == "cross_entropy":
        if spec.task == "regression":
            raise UsageError("--loss cross_entropy: needs classes, and the targets are real numbers; take mse")
        return cross_entropy
    if name == "mse":
        if spec.task != "regression":
            raise UsageError("--loss mse: needs real numbers, and the targets are classes; take cross_entropy")
        return mse
    if is_factory(name):
        return _user_loss(name)
    raise UsageError(f"--loss {name}: must be auto, cross_entropy, mse or package.module:function")


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of scores (B, C) with classes (B,), or of (B, T, V) with (B, T); targets int64."""
    if target.ndim == 2 and output.ndim == 3:
        return functional.cross_entropy(output.flatten(0, 1), target.flatten())
    return functional.cross_entropy(output, target)


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error; the output is viewed in the target's shape, so that (B, 1) never broadcasts with (B,).

    Raises:
        ValueError: output and target have different numbers of samples or of values.
    """
    if output.numel() != target.numel() or output.shape[:1] != target.shape[:1]:
        raise ValueError(f"output must have the target's shape {tuple(target.shape)}, got {tuple(output.shape)}")
    return functional.mse_loss(output.reshape(target.shape), target)


def accuracy_counts(output: Tensor, target: Tensor, spec: DataSpec) -> tuple[int, int]:
    """How many classes of a batch (of tokens: characters) are right, and how many there are; (0, 0) for regression.

    Args:
        output: scores, (B, C), or (B, T, V) for tokens.
        target: int64, (B,), or (B, T) for tokens.

    Raises:
        ValueError: the output is not one dimension, the scores of the classes, more than the target.
    """
    if spec.task == "regression":
        return 0, 0
    axis = -1 if spec.task == "tokens" else 1
    if output.ndim != target.ndim + 1:
        raise ValueError(
            f"output must have scores for each class of targets {tuple(target.shape)}, got {tuple(output.shape)}"
        )
    right = output.argmax(dim=axis)
    if right.shape != target.shape:
        raise ValueError(f"output {tuple(output.shape)} must fit targets of shape {tuple(target.shape)}")
    return int((right == target).sum()), target.numel()


def _user_loss(name: str) -> Loss:
    function = load_factory("--loss", name)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = call_factory("--loss", name, lambda: function(output, target))
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"--loss {name}: returned {got}; must be a tensor with one number, as mean() gives it")
        return value

    return loss
