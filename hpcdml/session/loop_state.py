"""What a user's own loop trains by, beside its model, as a tree for a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from hpcdml.errors import UsageError
from hpcdml.session.places import Places
from hpcdml.training.random_state import random_state
from hpcdml.training.state import load_optimizer, to_arrays, to_tensors


class Stateful(Protocol):
    """What has a state to save: a scheduler, a ``GradScaler``, an averaged model."""

    def state_dict(self) -> Any:
        """The state."""

    def load_state_dict(self, state: Any) -> Any:
        """Take it over."""


class LoopState:
    """The state of a user's loop.

    Args:
        stateful: what the loop has beside model and optimizer, by name.
        places: where it is in its data.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stateful: Mapping[str, Stateful],
        places: Places,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.stateful = stateful
        self.places = places
        self._device = device

    def now(self) -> dict[str, Any]:
        """Nothing: the loop's body may go on to change all of it, the optimizer's learning rate for one."""
        return {}

    def later(self) -> dict[str, Any]:
        """Optimizer, schedulers and the like, random numbers, the place.

        Raises:
            UsageError: something in it cannot be saved; the message names it.
        """
        name = type(self.optimizer).__name__
        return {
            "optimizer": to_arrays(self.optimizer.state_dict(), f"optimizer {name}"),
            "stateful": {n: to_arrays(part.state_dict(), f"stateful[{n!r}]") for n, part in self.stateful.items()},
            "random": random_state(self._device),
            "loop": self.places.state(),
        }

    def restore(self, tree: dict[str, Any]) -> None:
        """Take over all but the random numbers and the place.

        Raises:
            UsageError: it does not fit; the message says what.
        """
        load_optimizer(self.optimizer, tree["optimizer"])
        saved = tree["stateful"]
        if set(saved) != set(self.stateful):
            raise UsageError(
                f"Session(stateful=...): has {_names(self.stateful)}; the checkpoint has {_names(saved)}; a run goes "
                "on only with the same"
            )
        for name, part in self.stateful.items():
            try:
                part.load_state_dict(to_tensors(saved[name]))
            except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
                why = " ".join(str(error).split())
                raise UsageError(f"Session(stateful=...): {name}: this is another one's state: {why}") from error

    def restore_place(self, tree: dict[str, Any]) -> None:
        """Take over the place in the data."""
        self.places.restore(tree["loop"])

    def estimate_place(self, part: dict[str, Any]) -> None:
        """Go on, with other workers than before, where all together were."""
        tree = part["state"]
        self.places.epoch_samples = None if tree is None else tree["loop"]["epoch_samples"]
        self.places.estimate(int(part["seen"]))


def _names(stateful: Mapping[str, Any]) -> str:
    return ", ".join(sorted(stateful)) or "nothing"
