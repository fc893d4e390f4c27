"""A worker's whole state as a tree for a checkpoint, and back."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import numpy as np
import torch

from hpcdml.errors import UsageError
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.parameters import FlatModel
from hpcdml.protocol.messages import Push
from hpcdml.protocol.worker import Worker
from hpcdml.storage.tree import TensorArray
from hpcdml.training.data import Sampler
from hpcdml.training.local_step import LocalStep
from hpcdml.training.staging import Staging
from hpcdml.training.state import load_optimizer, to_array, to_arrays, to_tensor, to_tensors


class WorkerState:
    """Saves and restores the parts of a worker.

    Args:
        machine, flat, channel, staging, step, sampler: the parts.
    """

    def __init__(
        self,
        machine: Worker,
        flat: FlatModel,
        channel: WorkerChannel,
        staging: Staging,
        step: LocalStep,
        sampler: Sampler,
    ) -> None:
        self.machine = machine
        self.flat = flat
        self.channel = channel
        self.staging = staging
        self.step = step
        self.sampler = sampler
        self._again: tuple[Push, np.ndarray] | None = None

    def own(self) -> dict[str, Any]:
        """What the worker has beside the model: optimizer, scheduler, scaler, residuals, random numbers, place in its
        data. Arrays may share the memory of tensors.

        Raises:
            UsageError: something in it cannot be saved; the message names it.
        """
        step = self.step
        name = type(step.optimizer).__name__
        scaler = step.precision.scaler
        return {
            "machine": self.machine.state(),
            "optimizer": to_arrays(step.optimizer.state_dict(), f"optimizer {name}"),
            "scheduler": None if step.scheduler is None else to_arrays(step.scheduler.state_dict(), "scheduler"),
            "scaler": None if scaler is None else to_arrays(scaler.state_dict(), "loss scaler"),
            "epoch": step.epoch,
            "residual": [None if rest is None else to_array(rest) for rest in self.flat.residual],
            "random": random_state(self.flat.device),
            "sampler": self.sampler.state,
        }

    def at_mark(self, contained: int) -> dict[str, Any]:
        """All of the worker, in the midst of training.

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
        return self.own() | {
            "model": [to_array(flat) for flat in self.flat.flats],
            "base": [to_array(base) for base in self.flat.base],
            "integers": self.flat.integers(),
            "push": sent,
        }

    def restore_own(self, tree: dict[str, Any]) -> None:
        """Take over what ``own`` gave, but for the random numbers, which are to be set right before training.

        Raises:
            UsageError: it does not fit this worker.
        """
        step = self.step
        load_optimizer(step.optimizer, tree["optimizer"])
        if step.scheduler is not None:
            step.scheduler.load_state_dict(to_tensors(tree["scheduler"]))
        if step.precision.scaler is not None and tree["scaler"]:
            step.precision.scaler.load_state_dict(to_tensors(tree["scaler"]))
        step.epoch = int(tree["epoch"])
        _load("residual", self.flat.residual, tree["residual"])

    def restore_at_mark(self, tree: dict[str, Any]) -> None:
        """Go on as a worker that ``at_mark`` saved; ``send_again`` then sends the push that was under way.

        Raises:
            UsageError: it does not fit this worker.
        """
        self.restore_own(tree)
        self.sampler.restore(tree["sampler"])
        self.machine.restore(tree["machine"])
        self.flat.set_base()
        _load("model", self.flat.flats, tree["model"])
        _load("base", self.flat.base, tree["base"])
        self.flat.set_integers(np.array(tree["integers"]))
        sent = tree["push"]
        if sent is not None:
            _load("update", self.staging.update.segments, sent["update"])
            push = self.machine.sent_again(Push(**{**sent["header"], "records": 0}))
            self._again = push, np.array(sent["integers"])

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
        self.channel.send(push, integers)
        self._again = None
        return not push.local_steps


def contained_samples(tree: dict[str, Any]) -> int:
    """Training samples of a saved worker that the server's saved state contains."""
    sent = tree.get("push")
    return int(tree["machine"]["_pushed"]) - (int(sent["header"]["samples"]) if sent else 0)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of the random numbers of PyTorch (those of ``device`` as well), numpy and Python."""
    return {
        "torch": torch.get_rng_state().numpy(),
        "cuda": torch.cuda.get_rng_state(device).numpy() if device.type == "cuda" else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on with the random numbers of ``random_state``."""
    torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.from_numpy(np.array(state["cuda"])), device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])


def _load(what: str, own: list[Any], saved: list[TensorArray | None]) -> None:
    if [None if t is None else tuple(t.shape) for t in own] != [None if a is None else a.values.shape for a in saved]:
        raise UsageError(f"checkpoint: a worker's {what} is that of another model")
    with torch.no_grad():
        for tensor, array in zip(own, saved, strict=True):
            if array is not None:
                tensor.copy_(to_tensor(array))
