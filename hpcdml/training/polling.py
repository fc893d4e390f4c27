"""Polling while a local step computes: MPI moves nothing while nobody calls it.

Two ways, which share one lock. *Hooks* of the model's innermost modules and of its parameters' gradients poll between
the operations of a step; they cost least, but an operation can last longer than a transfer may stand still. A *thread*
polls at its own pace while the operations run without Python's lock; it costs more where operations are short.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType

import torch
from torch import nn

from hpcdml.config import ProgressName
from hpcdml.errors import UsageError
from hpcdml.mpi.tempo import Tempo
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.protocol.messages import Global
from hpcdml.training.compiling import is_compiled
from hpcdml.training.hooks import StepHooks

LONGEST_PAUSE = 1e-3
"""Most seconds between two polls: so much of a transfer waits in the sockets' buffers."""

LONG_GAP = 4e-3
"""Seconds between two polls of the hooks that count as long: half a megabyte at 1 Gbit/s."""

LONG_GAPS = 16
"""Long gaps after which ``auto`` adds the thread."""


class _Computing(AbstractContextManager[None]):
    """``StepPoller.computing``; a class, as a generator would cost a short step some microseconds more."""

    def __init__(self, poller: StepPoller) -> None:
        self.poller = poller

    def __enter__(self) -> None:
        poller = self.poller
        poller._last = time.perf_counter()
        if poller._hooks is not None:
            poller._hooks.begin()
        poller._lock.release()

    def __exit__(self, *error: object) -> None:
        poller = self.poller
        if poller._hooks is not None:
            poller._hooks.end(poller._pause)
        if not poller._lock.acquire(blocking=False):
            begin = time.perf_counter()
            poller._lock.acquire()
            poller.seconds += time.perf_counter() - begin


class StepPoller:
    """Polls the channel while the model computes.

    The lock belongs to the training thread except within ``computing``: so only there hooks and thread poll.

    Args:
        channel: what is polled.
        model: the model whose steps are hooked.
        interval: least time between two polls, in seconds; they pause longer where chunks take longer. 0: no pause.
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
        self._interval = interval
        self._tempo = self._new_tempo()
        # Where nothing is under way; 0: poll at every chance.
        self._idle = self._tempo.longest if interval else 0.0
        self._pause = self._idle
        self._next = self._last = 0.0
        self._long_gaps = 0
        self._hooks: StepHooks | None = None
        self._computing = _Computing(self)
        self._lock = threading.Lock()
        self._ending = False
        self._may_start = progress == "auto" and channel.any_thread
        self._thread = threading.Thread(target=self._run, name="hpcdml polls", daemon=True)

    def __enter__(self) -> StepPoller:
        self._lock.acquire()
        if self.progress == "thread" or (self.compiled and self._may_start):
            self._start_thread()
            return self

        self._hooks = StepHooks(self.model, self._by_hook, modules=not self.compiled)
        self._hooks.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hooks is not None:
            self._hooks.remove()
        self._ending = True
        if self._lock.locked():
            self._lock.release()
        if self.threaded:
            self._thread.join()

    def computing(self) -> AbstractContextManager[None]:
        """Within this block the training thread computes, and hooks and thread poll."""
        return self._computing

    @property
    def undisturbed(self) -> AbstractContextManager[object]:
        """Within this block, of the training thread within ``computing`` or after the end, nobody polls."""
        return self._lock

    def poll(self) -> None:
        """Poll now, outside ``computing``, and remember the message that this completes.

        Raises:
            Exception: whatever the thread raised.
        """
        begin = time.perf_counter()
        if self.error is not None:
            raise self.error
        if not self.channel.busy:
            # Only the training thread sends and asks for messages, between steps: nothing will come within this one.
            self._last, self._next, self._pause = begin, math.inf, self._idle
            return
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
            pause = max(self._next - time.perf_counter(), 1e-4)
            time.sleep(min(left, pause))
            if pause < left:  # else the step is over, and its end polls as well
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

    def _by_hook(self) -> None:
        if time.perf_counter() >= self._next:
            self.poll_within()

    def _note(self, begin: float) -> None:
        """The training thread has polled since ``begin``."""
        end = time.perf_counter()
        self._pause = self._pause_after(self._tempo, end)
        self._next = end + self._pause
        self._last = end
        self.seconds += end - begin

    def _new_tempo(self) -> Tempo:
        # A poll costs about 15 microseconds, whatever the link: on a slow one, few polls do.
        return Tempo(self._interval, max(self._interval, LONGEST_PAUSE), time.perf_counter())

    def _pause_after(self, tempo: Tempo, now: float) -> float:
        """Seconds to the next poll after one that ended ``now``; an event is a chunk that it completed."""
        if self.channel.moved:
            tempo.event(now)
        elif not self.channel.busy:
            tempo.nothing_due(now)
        return tempo.pause(now) if self._interval else 0.0

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
        device = next((parameter.device for parameter in self.model.parameters()), None)
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # a thread begins with the first GPU, whichever the model is on
        tempo = self._new_tempo()
        while True:
            with self._lock:
                if self._ending:
                    return
                try:
                    moved = self._move()
                except Exception as error:
                    self.error = error
                    return
                pause = self._pause_after(tempo, time.perf_counter())
            time.sleep(0 if moved else pause)
