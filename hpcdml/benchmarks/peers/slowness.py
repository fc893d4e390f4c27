"""Makes the steps of a peer longer, as ``--slowdown`` of hpcdml does."""

from __future__ import annotations

import time

import torch
from torch import nn

LEAST_SLEEP = 5e-4
"""Seconds below which a sleep is put off until more are due: each costs the kernel's timer some 50 microseconds."""


class Slowness:
    """Sleeps ``factor - 1`` times the time that this thread computes, as if a slower device computed.

    Where the step waits for other ranks the thread computes nothing, and nothing is added. The sleeps follow the
    computing they stand for, gradient by gradient: what a slow device computes after DDP has sent a bucket hides the
    bucket's transfer, and so do these. What a sleep lasts too long is taken off the next one.

    Args:
        model: its gradients are hooked.
        optimizer: the end of its step is that of the computing; what comes after it is communication.
        factor: by which a step is longer; 1: nothing is done.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, factor: float) -> None:
        self._more = factor - 1.0
        self._mark = 0.0
        self._due = 0.0
        if self._more <= 0.0:
            return
        for parameter in model.parameters():
            if parameter.requires_grad:
                # It runs before DDP hears of the gradient.
                parameter.register_post_accumulate_grad_hook(lambda _: self._follow())
        optimizer.register_step_post_hook(lambda *_: self._follow())

    def begin(self) -> None:
        """A step begins now."""
        self._mark = time.thread_time()

    def _follow(self) -> None:
        """Sleep for what was computed since the last call."""
        self._due += self._more * (time.thread_time() - self._mark)
        if self._due > LEAST_SLEEP:
            begin = time.perf_counter()
            time.sleep(self._due)
            self._due -= time.perf_counter() - begin
        self._mark = time.thread_time()
