"""Makes the steps of a peer as long as ``--step-seconds`` and ``--slowdown`` of hpcdml do."""

from __future__ import annotations

import time

import torch
from torch import nn

FORWARD = 1 / 3
"""Share of a step that an emulated device takes for the forward pass; the backward pass costs twice as much."""

LEAST_SLEEP = 5e-4
"""Seconds below which a sleep for a slower CPU is put off until more are due: each costs the timer some 50 us."""


class Pace:
    """Sleeps gradient by gradient, as computing would go on.

    So DDP can hide the transfer of a bucket behind the gradients that come after it, as on a real device. Where the
    step waits for other ranks nothing computes, and no time is added: communication that is not hidden comes on top.

    Args:
        model: its gradients are hooked.
        optimizer: the end of its step is that of the computing; what comes after it is communication.
        factor: by which a step is longer, 1 or more.
        seconds: what a step takes on an emulated device, times ``factor``; None: there is none, and ``factor`` is that
            of the time for which this thread computes.
        minibatches: in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        factor: float,
        seconds: float | None,
        minibatches: int = 1,
    ) -> None:
        self._seconds = None if seconds is None else factor * seconds
        self._more = factor - 1.0
        self._minibatches = minibatches
        self._values = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._begin = self._mark = self._due = 0.0
        self._done = 0
        # The optimizer comes after the exchange, so the gradients must be through a little before the step is.
        self._optimizer_begin = self._optimizer_seconds = 0.0
        if seconds is None and factor <= 1.0:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                # It runs before DDP hears of the gradient.
                parameter.register_post_accumulate_grad_hook(self._after_gradient)
        optimizer.register_step_pre_hook(self._before_optimizer)
        optimizer.register_step_post_hook(self._after_optimizer)

    def begin(self) -> None:
        """A step begins now."""
        self._begin = time.perf_counter()
        self._mark = time.thread_time()
        self._done = 0

    def _after_gradient(self, parameter: torch.Tensor) -> None:
        if self._seconds is None:
            self._follow()
            return
        complete = self._done // self._values
        self._done += parameter.numel()
        share = complete + FORWARD + (1.0 - FORWARD) * (self._done / self._values - complete)
        self._sleep_until(share / self._minibatches * (self._seconds - self._optimizer_seconds))

    def _before_optimizer(self, *_: object) -> None:
        self._optimizer_begin = time.thread_time()

    def _after_optimizer(self, *_: object) -> None:
        if self._seconds is None:
            self._follow()
            return
        self._optimizer_seconds = min(time.thread_time() - self._optimizer_begin, 0.5 * self._seconds)
        self._sleep_until(self._seconds)

    def _sleep_until(self, seconds: float) -> None:
        """Let the emulated device compute until so many seconds after the begin of the step."""
        left = self._begin + seconds - time.perf_counter()
        if left > 0.0:
            time.sleep(left)

    def _follow(self) -> None:
        """Sleep for what this thread computed since the last call; what a sleep lasts too long, the next one lacks."""
        self._due += self._more * (time.thread_time() - self._mark)
        if self._due > LEAST_SLEEP:
            begin = time.perf_counter()
            time.sleep(self._due)
            self._due -= time.perf_counter() - begin
        self._mark = time.thread_time()
