"""Polling during a local step, from module and gradient hooks: MPI moves nothing while nobody calls it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch
from torch import nn

from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.protocol.messages import Global


class StepPoller:
    """Polls the channel while the model computes, at most once every ``interval`` seconds.

    Within the ``with`` block, forward hooks of the model's innermost modules and gradient hooks of its parameters call
    ``poll``. While the GPU runs kernels these hooks run ahead of it on the host, so they poll then as well.

    Args:
        channel: what is polled.
        model: the model whose steps are hooked.
        interval: least time between two polls of the hooks, in seconds.

    Attributes:
        message: the global message that has arrived whole, until ``take``.
        seconds: time spent in polls since the start, in seconds.
    """

    def __init__(self, channel: WorkerChannel, model: nn.Module, interval: float) -> None:
        self.channel = channel
        self.model = model
        self.interval = interval
        self.message: Global | None = None
        self.seconds = 0.0
        self._next = 0.0
        self._hooks: list[Any] = []

    def __enter__(self) -> StepPoller:
        def after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
            if time.perf_counter() >= self._next:
                self.poll()

        def after_gradient(parameter: torch.Tensor) -> None:
            if time.perf_counter() >= self._next:
                self.poll()

        for module in self.model.modules():
            if next(module.children(), None) is None:
                self._hooks.append(module.register_forward_hook(after_forward))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(after_gradient))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def poll(self) -> None:
        """Poll now, and remember the message that this completes."""
        start = time.perf_counter()
        message = self.channel.poll()
        if message is not None:
            self.message = message
        end = time.perf_counter()
        self._next = end + self.interval
        self.seconds += end - start

    def take(self) -> Global | None:
        """Return the message that has arrived, once."""
        message, self.message = self.message, None
        return message

    def sleep(self, seconds: float) -> None:
        """Let time pass as if the device were computing for so long: polls go on."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            time.sleep(min(left, max(self.interval, 1e-4)))
            self.poll()
