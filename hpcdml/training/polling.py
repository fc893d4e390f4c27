"""Polling while a local step computes: MPI moves nothing while nobody calls it.

Two ways, which share one lock. *Hooks* of the model's innermost modules and of its parameters' gradients poll between
the operations of a step; they cost least, but an operation can last longer than a transfer may stand still. A *thread*
polls at its own pace while the operations run without Python's lock; it costs more where operations are short.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import nn

from hpcdml.config import ProgressName
from hpcdml.errors import UsageError
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.protocol.messages import Global
from hpcdml.training.compiling import is_compiled

LONGEST_PAUSE = 1e-3
"""Most seconds between two polls: so much of a transfer waits in the sockets' buffers."""

LONG_GAP = 4e-3
"""Seconds between two polls of the hooks that count as long: half a megabyte at 1 Gbit/s."""

LONG_GAPS = 16
"""Long gaps after which ``auto`` adds the thread."""


class Tempo:
    """How long polls may pause: an eighth of the usual time between two chunks, so that a transfer hardly notices.

    A poll costs about 15 microseconds, whatever the link: on a slow one, few polls do.

    Args:
        shortest: bound in seconds; the other one is ``LONGEST_PAUSE``, or this if it is longer. 0: never pause.
    """

    def __init__(self, shortest: float) -> None:
        self.shortest = shortest
        self.longest = max(shortest, LONGEST_PAUSE)
        self._gap = 0.0
        self._moved = 0.0

    def pause(self, now: float, moved: bool, busy: bool) -> float:
        """Seconds to the next poll after one at ``now``.

        Args:
            moved: the poll completed a chunk.
            busy: something is under way.
        """
        if moved:
            self._gap += (now - self._moved - self._gap) / 8.0
        if moved or not busy:
            self._moved = now
        if not self.shortest:
            return 0.0
        if not busy:
            return self.longest
        return min(self.longest, max(self.shortest, max(self._gap, now - self._moved) / 8.0))


class StepPoller:
    """Polls the channel while the model computes.

    The lock belongs to the training thread except within ``computing``: so only there hooks and thread poll.

    Args:
        channel: what is polled.
        model: the model whose steps are hooked.
        interval: least time between two polls, in seconds.
        progress: ``hooks``, ``thread``, or ``auto``: hooks, and the thread as well once they leave long gaps.
            Modules of a compiled model get no hooks, as each would break its graph; there ``auto`` is the thread.

    Raises:
        UsageError: ``thread`` where the MPI allows no polls of another thread.

    Attributes:
        message: the global message that has arrived whole, until ``take``.
        seconds: time in which the training thread was kept from computing by polls since the start, in seconds.
        threaded: whether the thread polls.
    """

    def __init__(
        self, channel: WorkerChannel, model: nn.Module, interval: float, progress: ProgressName = "auto"
    ) -> None:
        if progress == "thread" and not channel.any_thread:
            raise UsageError("--progress thread: this MPI allows calls of one thread only; take hooks")
        self.channel = channel
        self.model = model
        self.progress = progress
        self.compiled = is_compiled(model)
        self.message: Global | None = None
        self.seconds = 0.0
        self.threaded = False
        self.error: Exception | None = None
        self._tempo = Tempo(interval)
        self._next = self._last = 0.0
        self._long_gaps = 0
        self._hooks: list[Any] = []
        self._lock = threading.Lock()
        self._ending = False
        self._may_start = progress == "auto" and channel.any_thread
        self._thread = threading.Thread(target=self._run, name="hpcdml polls", daemon=True)

    def __enter__(self) -> StepPoller:
        self._lock.acquire()
        if self.progress == "thread" or (self.compiled and self._may_start):
            self._start_thread()
            return self

        def after_forward(module: nn.Module, inputs: Any, output: Any) -> None:
            if time.perf_counter() >= self._next:
                self.poll_within()

        def after_gradient(parameter: torch.Tensor) -> None:
            if time.perf_counter() >= self._next:
                self.poll_within()

        for module in self.model.modules():
            if next(module.children(), None) is None and not self.compiled:
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
        self._ending = True
        if self._lock.locked():
            self._lock.release()
        if self.threaded:
            self._thread.join()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within this block the training thread computes, and hooks and thread poll."""
        self._last = time.perf_counter()
        self._lock.release()
        try:
            yield
        finally:
            begin = time.perf_counter()
            self._lock.acquire()
            self.seconds += time.perf_counter() - begin

    def poll(self) -> None:
        """Poll now, outside ``computing``, and remember the message that this completes.

        Raises:
            Exception: whatever the thread raised.
        """
        begin = time.perf_counter()
        if self.error is not None:
            raise self.error
        self._look(begin)
        self._move()
        self._note(begin)

    def take(self) -> Global | None:
        """Return the message that has arrived, once."""
        message, self.message = self.message, None
        return message

    def sleep(self, seconds: float) -> None:
        """Let time pass, within ``computing``, as if the device were busy for so long: polls go on."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            time.sleep(min(left, max(self._next - time.perf_counter(), 1e-4)))
            self.poll_beside()

    def poll_within(self) -> None:
        """Poll within ``computing``, unless the thread is at it."""
        begin = time.perf_counter()
        if self._lock.acquire(blocking=False):
            try:
                self._look(begin)
                self._move()
            finally:
                self._lock.release()
        self._note(begin)

    def poll_beside(self) -> None:
        """Poll within ``computing`` while the device computes and the host has nothing else to do: it costs no time."""
        before = self.seconds
        self.poll_within()
        self.seconds = before

    def _move(self) -> bool:
        message = self.channel.poll()
        if message is not None:
            self.message = message
        return self.channel.moved

    def _note(self, begin: float) -> None:
        """The training thread has polled since ``begin``."""
        end = time.perf_counter()
        self._next = end + self._tempo.pause(end, self.channel.moved, self.channel.busy)
        self._last = end
        self.seconds += end - begin

    def _look(self, now: float) -> None:
        """Count a long gap since the last poll; too many of them, and the thread is needed."""
        if now - self._last > LONG_GAP and self._may_start:
            self._long_gaps += 1
            if self._long_gaps >= LONG_GAPS:
                self._start_thread()

    def _start_thread(self) -> None:
        self.threaded, self._may_start = True, False
        self._thread.start()

    def _run(self) -> None:
        tempo = Tempo(self._tempo.shortest)
        while True:
            with self._lock:
                if self._ending:
                    return
                try:
                    moved = self._move()
                except Exception as error:
                    self.error = error
                    return
                pause = tempo.pause(time.perf_counter(), moved, self.channel.busy)
            time.sleep(0 if moved else pause)
