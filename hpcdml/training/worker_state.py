"""A worker's whole state as a tree for a checkpoint, and back."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hpcdml.errors import UsageError
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.parameters import FlatModel
from hpcdml.protocol.messages import Push
from hpcdml.protocol.worker import Worker
from hpcdml.storage.tree import TensorArray, map_tree
from hpcdml.training.staging import Staging
from hpcdml.training.state import to_array, to_tensor
from hpcdml.training.step_state import TrainingState


class WorkerState:
    """Saves and restores the parts of a worker.

    Args:
        machine, flat, channel, staging: the parts.
        training: what the worker trains by.
    """

    def __init__(
        self,
        machine: Worker,
        flat: FlatModel,
        channel: WorkerChannel,
        staging: Staging,
        training: TrainingState,
    ) -> None:
        self.machine = machine
        self.flat = flat
        self.channel = channel
        self.staging = staging
        self.training = training
        self._again: tuple[Push, np.ndarray] | None = None

    def own(self) -> dict[str, Any]:
        """What the worker has beside the model, when the body of its loop has been gone through: optimizer, scheduler,
        scaler, residuals, random numbers, place in its data. Arrays may share the memory of tensors.

        Raises:
            UsageError: something in it cannot be saved; the message names it.
        """
        return self._now() | self.training.later()

    def at_mark(self, contained: int) -> dict[str, Any]:
        """All of the worker, in the midst of training, but for what ``training.later`` gives.

        Args:
            contained: number of its pushes that the server's saved state contains; the one after that is under way.
        """
        push = self.machine.under_way(contained)
        sent = None
        if push is not None:
            while (norm := self.staging.norm) is None:
                time.sleep(0)
            sent = {
                "header": dataclasses.asdict(push) | {"norm": norm},
                "integers": self.channel.pushed_integers.copy(),
                "update": [to_array(segment) for segment in self.staging.update.segments],
            }
        return self._now() | {
            "model": [to_array(flat) for flat in self.flat.flats],
            "base": [to_array(base) for base in self.flat.base],
            "integers": self.flat.integers(),
            "push": sent,
        }

    def at_mark_and_later(self, contained: int) -> Callable[[], dict[str, Any]]:
        """A function that completes what ``at_mark`` gives now, to be called when the body of the loop has been gone
        through; it raises as ``at_mark`` does.
        """
        saved: list[dict[str, Any]] = []
        failure: list[UsageError] = []
        try:
            saved.append(map_tree(self.at_mark(contained), "", lambda item, _: copy.deepcopy(item)))
        except UsageError as error:
            failure.append(error)

        def complete() -> dict[str, Any]:
            if failure:
                raise failure[0]
            return saved[0] | self.training.later()

        return complete

    def _now(self) -> dict[str, Any]:
        return {
            "machine": self.machine.state(),
            "residual": [None if rest is None else to_array(rest) for rest in self.flat.residual],
            **self.training.now(),
        }

    def restore_own(self, tree: dict[str, Any]) -> None:
        """Take over what ``own`` gave, but for the random numbers, which are to be set right before training, and the
        place in the data.

        Raises:
            UsageError: it does not fit this worker.
        """
        self.training.restore(tree)
        _load("residual", self.flat.residual, tree["residual"])

    def restore_at_mark(self, tree: dict[str, Any]) -> None:
        """Go on as a worker that ``at_mark`` saved; ``send_again`` then sends the push that was under way.

        Raises:
            UsageError: it does not fit this worker.
        """
        self.restore_own(tree)
        self.training.restore_place(tree)
        self.machine.restore(tree["machine"])
        self.flat.set_base()
        _load("model", self.flat.flats, tree["model"])
        _load("base", self.flat.base, tree["base"])
        self.flat.set_integers(np.array(tree["integers"]))
        sent = tree["push"]
        if sent is not None:
            _load("update", self.staging.update.segments, sent["update"])
            push = self.machine.sent_again(Push(**{**sent["header"], "records": 0, "marked": 0}))
            self._again = push, np.array(sent["integers"])

    def go_on(self, part: dict[str, Any]) -> None:
        """Go on with a run as ``give_states`` says.

        Raises:
            UsageError: the saved state does not fit this worker.
        """
        tree = part["state"]
        if part["exact"]:
            self.restore_at_mark(tree)
            return
        if tree is not None:
            self.restore_own(tree)
        if part["same_workers"]:
            self.training.restore_place(tree)
        else:
            self.training.estimate_place(part)
        samples = _contained_samples(tree) if part["own"] else part.get("samples", 0)
        self.machine.restart(part["version"], part["seen"], part["clock"], samples, part["sequence"])

    def join(self) -> None:
        """In a process that is new in the run: a push without payload is to be sent, whose answer is its beginning."""
        self._again = self.machine.join(), self.flat.integers()

    def send_again(self) -> bool:
        """When training begins: send the push that was under way, or is to be the first one.

        Returns:
            Whether the first step waits for the answer.
        """
        if self.machine.awaiting:
            self.channel.expect()
        if self._again is None:
            return False
        push, integers = self._again
        self.staging.written(torch.tensor(push.norm, dtype=torch.float64))
        self.channel.send(push, lambda: integers)
        self._again = None
        return not push.local_steps


def _contained_samples(tree: dict[str, Any]) -> int:
    """Training samples of a saved worker that the server's saved state contains."""
    sent = tree.get("push")
    return int(tree["machine"]["_pushed"]) - (int(sent["header"]["samples"]) if sent else 0)


def _load(what: str, own: list[Any], saved: list[TensorArray | None]) -> None:
    if [None if t is None else tuple(t.shape) for t in own] != [None if a is None else a.values.shape for a in saved]:
        raise UsageError(f"checkpoint: a worker's {what} is that of another model")
    with torch.no_grad():
        for tensor, array in zip(own, saved, strict=True):
            if array is not None:
                tensor.copy_(to_tensor(array))
