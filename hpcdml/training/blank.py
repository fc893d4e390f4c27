"""An optimizer's state as it was when nothing had been trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch


class BlankState:
    """Gives an optimizer back the state that it has now, but for its learning rate and other settings.

    Args:
        optimizer: it has taken no step yet, so that its state is small: most have none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._state = _copy(optimizer.state)

    def restore_unless_finite(self) -> bool:
        """Restore it if the present state holds a value that is not finite; returns whether it did."""
        if all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(self.optimizer.state)):
            return False
        self.optimizer.state.clear()
        self.optimizer.state.update(_copy(self._state))
        return True


def _copy(state: Any) -> dict[Any, Any]:
    # The keys are the parameters themselves.
    return {parameter: copy.deepcopy(values) for parameter, values in state.items()}


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)
