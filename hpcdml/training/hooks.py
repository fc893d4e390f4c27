"""Hooks of a model that call back in the middle of a step, as many as are needed and no more.

A hook costs some microseconds at each step whether it polls or not. So all of them only watch the first steps, to learn
when in a step each one is called; then those stay that are as far apart as polls are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

WATCHED_STEPS = 4
"""Steps with all hooks; the last one counts."""

REVIEW_STEPS = 64
"""Steps between two looks at whether other hooks are needed."""


class StepHooks:
    """Calls ``poll`` after forward passes of innermost modules and after parameters' gradients.

    Args:
        model: the model.
        poll: what is called.
        modules: whether modules get hooks; those of a compiled model must not.
    """

    def __init__(self, model: nn.Module, poll: Callable[[], None], modules: bool) -> None:
        inner = [m for m in model.modules() if next(m.children(), None) is None] if modules else []
        self.points: list[nn.Module | nn.Parameter] = [*inner, *(p for p in model.parameters() if p.requires_grad)]
        self.installed: frozenset[int] = frozenset()
        self._poll = poll
        self._handles: list[Any] = []
        self._calls: list[tuple[float, int]] = []
        self._begin = 0.0
        self._steps = 0

    def install(self) -> None:
        """Begin with all hooks."""
        self._install(frozenset(range(len(self.points))), watching=True)

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self) -> None:
        """A step begins."""
        if self._steps < WATCHED_STEPS:
            self._calls.clear()
            self._begin = time.perf_counter()

    def end(self, spacing: float) -> None:
        """A step has ended; ``spacing`` is the time between two polls, in seconds, 0: as many as there can be."""
        self._steps += 1
        if self._steps >= WATCHED_STEPS and (self._steps - WATCHED_STEPS) % REVIEW_STEPS == 0:
            wanted = choose(self._calls, spacing)
            if wanted != self.installed or self._steps == WATCHED_STEPS:
                self._install(wanted, watching=False)

    def _install(self, wanted: frozenset[int], watching: bool) -> None:
        self.remove()
        self.installed = wanted
        for number in sorted(wanted):
            point, call = self.points[number], self._watcher(number) if watching else self._poll
            if isinstance(point, nn.Module):
                self._handles.append(point.register_forward_hook(_after_forward(call)))
            else:
                self._handles.append(point.register_post_accumulate_grad_hook(_after_gradient(call)))

    def _watcher(self, number: int) -> Callable[[], None]:
        def watch() -> None:
            self._calls.append((time.perf_counter() - self._begin, number))
            self._poll()

        return watch


def choose(calls: Sequence[tuple[float, int]], spacing: float) -> frozenset[int]:
    """The points of which to keep the hooks: each at least ``spacing`` after the one before, or the step's begin.

    Args:
        calls: time in the step, in seconds, and number of the point, in order.
    """
    kept: set[int] = set()
    last = 0.0
    for moment, number in calls:
        if moment - last >= spacing:
            kept.add(number)
        if number in kept:
            last = moment
    return frozenset(kept)


def _after_forward(call: Callable[[], None]) -> Callable[..., None]:
    def after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        call()

    return after_forward


def _after_gradient(call: Callable[[], None]) -> Callable[..., None]:
    def after_gradient(parameter: torch.Tensor) -> None:
        call()

    return after_gradient
