"""Polling within a step, with a channel that only counts: hooks, thread, and who may poll when."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from hpcdml.errors import UsageError
from hpcdml.protocol.messages import Global
from hpcdml.training import polling
from hpcdml.training.polling import StepPoller


class Channel:
    """Counts polls by thread and fails if two overlap."""

    def __init__(self, any_thread: bool = True) -> None:
        self.any_thread = any_thread
        self.moved = False
        self.busy = True
        self.polls: dict[str, int] = {}
        self.message: Global | None = None
        self.error: Exception | None = None
        self._within = threading.Lock()

    def poll(self) -> Global | None:
        assert self._within.acquire(blocking=False), "two polls at once"
        try:
            name = threading.current_thread().name
            self.polls[name] = self.polls.get(name, 0) + 1
            if self.error is not None:
                raise self.error
            message, self.message = self.message, None
            return message
        finally:
            self._within.release()

    def by(self, thread: str) -> int:
        return sum(count for name, count in self.polls.items() if thread in name)


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))


def step(net: nn.Module, poller: StepPoller) -> None:
    with poller.computing():
        net(torch.ones(2, 4)).sum().backward()


def test_hooks_poll_in_forward_and_backward_and_are_removed() -> None:
    net, channel = model(), Channel()
    with StepPoller(channel, net, 0.0, "hooks") as poller:  # type: ignore[arg-type]
        step(net, poller)
        assert channel.by("MainThread") == 3 + 4, "three modules forward, four parameters backward"
        channel.message = Global(0, 3, 0, 0, 0)
        step(net, poller)
        found = poller.take()
        assert found is not None and found.version == 3 and poller.take() is None
    before = channel.by("MainThread")
    net(torch.ones(2, 4)).sum().backward()
    assert channel.by("MainThread") == before


def test_the_interval_bounds_the_polls() -> None:
    net, channel = model(), Channel()
    with StepPoller(channel, net, 3600.0, "hooks") as poller:  # type: ignore[arg-type]
        poller.poll()
        for _ in range(20):
            step(net, poller)
    assert channel.by("MainThread") == 1


def test_the_thread_polls_only_while_the_step_computes() -> None:
    net, channel = model(), Channel()
    with StepPoller(channel, net, 0.0, "thread") as poller:  # type: ignore[arg-type]
        time.sleep(0.05)
        assert channel.by("hpcdml polls") == 0, "the lock belongs to the training thread"
        with poller.computing():
            time.sleep(0.1)
        during = channel.by("hpcdml polls")
        assert during > 5
        time.sleep(0.05)
        assert channel.by("hpcdml polls") == during
        poller.poll()
    assert not any(t.name == "hpcdml polls" for t in threading.enumerate())


def test_auto_adds_the_thread_where_hooks_leave_long_gaps() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(2 * polling.LONG_GAP)
            return x

    net, channel = nn.Sequential(nn.Linear(4, 4), Slow(), nn.Linear(4, 1)), Channel()
    with StepPoller(channel, net, 0.0, "auto") as poller:  # type: ignore[arg-type]
        for _ in range(polling.LONG_GAPS + 2):
            step(net, poller)
        assert poller.threaded
    quick, channel = model(), Channel(any_thread=False)
    with StepPoller(channel, nn.Sequential(quick, Slow()), 0.0, "auto") as poller:  # type: ignore[arg-type]
        for _ in range(polling.LONG_GAPS + 2):
            step(quick, poller)
            time.sleep(2 * polling.LONG_GAP)
            poller.poll()
        assert not poller.threaded, "an MPI that allows one thread only"


def test_what_the_thread_raises_reaches_the_training_thread() -> None:
    net, channel = model(), Channel()
    channel.error = ConnectionError("gone")
    with StepPoller(channel, net, 0.0, "thread") as poller:  # type: ignore[arg-type]
        with poller.computing():
            time.sleep(0.05)
        with pytest.raises(ConnectionError, match="gone"):
            poller.poll()


def test_a_thread_that_mpi_does_not_allow_is_refused() -> None:
    with pytest.raises(UsageError, match="--progress thread"):
        StepPoller(Channel(any_thread=False), model(), 0.0, "thread")  # type: ignore[arg-type]
