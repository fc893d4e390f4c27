"""The worker's loop: local steps, polls in between, and whatever the state machine says to do with what arrives.

What follows a local step (``WorkerLoop.stepped``) does not depend on who took it: the loop here, or a user's own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpcdml.config import ProgressName
from hpcdml.errors import HpcdmlError
from hpcdml.mpi import faults
from hpcdml.mpi.backoff import Backoff
from hpcdml.mpi.tags import FINAL_STATE
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.parameters import FlatModel
from hpcdml.protocol.messages import BACK, LEAVE, Push
from hpcdml.protocol.worker import Action, Adopt, Exchange, Forget, SendPush, Stop, TakeUpdate, Train, Wait, Worker
from hpcdml.storage.image import pack
from hpcdml.training.local_step import LocalStep
from hpcdml.training.pace import Pace, Stretch
from hpcdml.training.polling import StepPoller
from hpcdml.training.records import StepRecords
from hpcdml.training.replay import WorkerScript
from hpcdml.training.shares import Shares
from hpcdml.training.staging import Staging
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_state import WorkerState

RECORD_SECONDS = 0.5
"""Longest time for which step records are collected before they are sent, so that a run can be watched."""


class WorkerLoop:
    """Trains until the server says stop, or takes part in a training loop of somebody else's.

    Such a loop calls ``begin``, enters ``poller``, calls ``proceed`` once and then ``stepped`` after every local step,
    computes within ``poller.computing()``, leaves ``poller`` after the last step and calls ``finish``. What its body
    does after a step belongs to the state that is saved: it calls ``passed`` when its body has been gone through.

    Args:
        machine: the worker's state machine.
        flat: the model.
        channel: the connection to the server.
        staging: what brings updates and global parameters between the model's device and the channel's memory.
        model: what is trained.
        poll_seconds: least time between two polls within a step, in seconds.
        progress: what polls within a step; see ``StepPoller``.
        state: saves this worker's state.
        keep: whether the state is saved at the end as well, for a run that goes on from there.
        script: when a recorded run took in messages, which this one repeats; None: it is a run of its own.
        signals: which tell that the run is to end; the server learns of it from the next push.
        shares: is told which workers are out of the run, and which are back; None: it is of no interest.
        patience: for how many seconds an answer of the server is waited for; None: without end.
        schedule: is told after every local step how many samples all workers have trained on by then.
        forget: is called when the worker is to go on afresh, after an update that was refused.
    """

    def __init__(
        self,
        machine: Worker,
        flat: FlatModel,
        channel: WorkerChannel,
        staging: Staging,
        model: nn.Module,
        poll_seconds: float,
        progress: ProgressName,
        state: WorkerState,
        keep: bool,
        script: WorkerScript | None,
        signals: StopSignals,
        shares: Shares | None,
        patience: float | None,
        schedule: Callable[[int], None] = lambda samples: None,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        self.machine = machine
        self.shares = shares
        self.patience = patience
        self.flat = flat
        self.channel = channel
        self.staging = staging
        self.pace = Pace(flat.device)
        self.model = model
        self.state = state
        self.keep = keep
        self.script = script
        self.signals = signals
        self.schedule = schedule
        self.forget = forget
        self.poller = StepPoller(channel, model, poll_seconds, progress)
        self._handlers: dict[type[Action], Callable] = {
            Wait: self._wait,
            TakeUpdate: self._take_update,
            Forget: self._forget,
            Adopt: self._adopt,
            Exchange: self._exchange,
            SendPush: self._send_push,
            Stop: self._stop,
        }
        self._own = False
        self._marked = 0
        self._held: list[tuple[int, Callable[[], dict[str, Any]]]] = []
        self._records = StepRecords(flat.device)
        self._blocks = 0
        self._checked = False
        self._sent_at = 0.0
        self._start = 0.0
        # End of the last step: whatever is neither idle nor waiting for data since then counts as computing.
        self._recorded = 0.0
        self._silence, self._listened, self._moves = 0.0, 0.0, 0
        # Time that the worker was blocked on communication since the last record: waits, copies and polls.
        self._idle = 0.0

    def run(self, start: float, step: LocalStep) -> None:
        """Train by local steps ``step``; ``start`` is the ``perf_counter`` time that counts as zero in the records.

        Raises:
            StrayMessage: a message of another run arrived.
            ServerLost, NoWord: the server has died, or does not answer.
            ValueError: the model replaced a parameter or buffer that the run exchanges.
        """
        self._own = True
        self.model.train()
        self.begin(start)
        with self.poller:
            going = self.proceed()
            while going:
                going = self._train(step)
        self.finish()

    def begin(self, start: float) -> None:
        """Start the records' time, and the first update, at the model as it is now."""
        self._start = start
        self._sent_at = self._recorded = time.perf_counter()
        if not self.flat.base:
            self.flat.set_base()
        if self.state.send_again():
            self._await_message()
            self._deliver()

    def proceed(self) -> bool:
        """Do what the machine says up to the next local step; returns whether there is one.

        Raises:
            StrayMessage, ServerLost, NoWord, ValueError: as ``run``.
        """
        while not self.machine.stopped:
            for action in self.machine.decide():
                if isinstance(action, Train):
                    return True
                self._handlers[type(action)](action)
        return False

    def push_out(self) -> None:
        """After the last step, where more of the loop's body is to come: wait until the last push has left."""
        backoff = Backoff()
        while not self.channel.push_free:
            self.channel.poll()
            backoff.wait()

    def finish(self) -> None:
        """After the last step: wait until everything has left."""
        self.passed()
        if self.keep:
            self._send_state(FINAL_STATE, self.state.own)
        backoff = Backoff()
        while not self.channel.drained:
            self.channel.poll()
            backoff.wait()

    def _train(self, step: LocalStep) -> bool:
        polled = self.poller.seconds
        stretch = Stretch(step.slowdown, step.seconds, self.flat.device)
        data_seconds, samples = 0.0, 0
        loss = torch.zeros((), device=self.flat.device)
        with self.poller.computing():
            for _ in range(step.accumulate):
                waiting = time.perf_counter()
                inputs, targets = step.batches()
                data_seconds += time.perf_counter() - waiting
                loss = loss + step.gradient(inputs, targets)
                samples += len(inputs)
            step.apply()
            self.poller.sleep(stretch.missing(self.poller.seconds - polled))
            self.pace.keep(self.poller.poll_beside)
        return self.stepped(loss, samples, data_seconds, self.poller.seconds - polled)

    def stepped(self, loss: torch.Tensor, samples: int, data_seconds: float, polled: float) -> bool:
        """A local step has been applied to the model: record it, and do all that follows it.

        Args:
            loss: of the step, a scalar on any device.
            samples: training samples in the step.
            data_seconds: time in which the step waited for its data.
            polled: time in which polls kept the step from computing, in seconds.

        Returns:
            Whether there is another local step.

        Raises:
            StrayMessage, ServerLost, NoWord, ValueError: as ``run``.
        """
        self.machine.stepped(samples)
        self.schedule(self.machine.estimate)
        begin = self.poller.seconds
        self.poller.poll()
        end = time.perf_counter()
        idle = self._idle + polled + self.poller.seconds - begin
        self._records.add(
            loss,
            step=self.machine.clock,
            time=end - self._start,
            samples=self.machine.samples,
            version=self.machine.version,
            since_push=self.machine.unsent,
            data_seconds=data_seconds,
            compute_seconds=end - self._recorded - data_seconds - idle,
            idle_seconds=idle,
        )
        self._idle, self._recorded = 0.0, end
        if self._records.full or end - self._sent_at > RECORD_SECONDS:
            self._send_records(end)
            self._idle += time.perf_counter() - end
        if self.script is None or self._its_turn(self.script):
            self._deliver()
        return self.proceed()

    def _its_turn(self, script: WorkerScript) -> bool:
        """Whether the recorded run took in a message after this step; then wait for it."""
        if script.takes(self.machine.clock) and self.machine.awaiting and not self.machine.holds:
            self._await_message()
            return True
        return script.free(self.machine.clock)

    def _wait(self, action: Wait) -> None:
        self._await_message()
        self._deliver()

    def _await_message(self) -> None:
        begin = time.perf_counter()
        backoff = Backoff(longest=100e-6)
        while self.poller.message is None:
            backoff.wait()
            self.poller.poll()
            self._save_if_marked()
            self._listen()
        self._idle += time.perf_counter() - begin

    def _take_update(self, action: TakeUpdate) -> None:
        begin = time.perf_counter()
        # Only the message to stop can come while the last push is still leaving: it has no payload and overtakes it.
        backoff = Backoff()
        while not self.channel.push_free:
            backoff.wait()
            self.poller.poll()
        self.staging.written(self.flat.update_into(self.staging.update))
        if action.keep:
            self.flat.set_base()
        self._idle += time.perf_counter() - begin

    def _forget(self, action: Forget) -> None:
        begin = time.perf_counter()
        self.flat.forget_residual()
        self.forget()
        self._idle += time.perf_counter() - begin

    def _adopt(self, action: Adopt) -> None:
        begin = time.perf_counter()
        self._check_views()
        self.staging.reading()
        self.flat.adopt(self.staging.globals)
        self.staging.read()
        self._take_integers()
        self._idle += time.perf_counter() - begin

    def _exchange(self, action: Exchange) -> None:
        begin = time.perf_counter()
        self._check_views()
        self.staging.reading()
        norm = self.flat.exchange(self.staging.update, self.staging.globals, action.compensation)
        self.staging.read()
        self.staging.written(norm)
        self._take_integers()
        self._idle += time.perf_counter() - begin

    def _check_views(self) -> None:
        if not self._checked:
            self._checked = True
            self.flat.check_views()

    def _take_integers(self) -> None:
        if self.flat.layout.integers:
            # The maximum: the server cannot know yet what this worker has counted since its last push.
            self.staging.raise_integers(self.flat, self.channel.integers)

    def _send_push(self, action: SendPush) -> None:
        begin = time.perf_counter()
        if not self.machine.stopped:
            while not self.staging.pull_free:
                time.sleep(0)
            self.channel.expect()
        elif self._records.count:
            self._send_records(begin)
        while not self.channel.push_free:
            self.poller.poll()
        norm = (lambda: self.staging.norm) if action.push.local_steps else None
        self.staging.take_integers(self.flat)
        self.channel.send(self._with_news(action.push), lambda: self.staging.integers, norm)
        self._idle += time.perf_counter() - begin

    def _stop(self, action: Stop) -> None:
        """Nothing to do: ``run`` sees that the machine has stopped."""

    def _deliver(self) -> None:
        self._save_if_marked()
        while self.channel.membership:
            told = self.channel.membership.pop(0)
            if self.shares is not None:
                self.shares.change(told.answers, present=bool(told.flags & BACK))
        self._listen()
        message = self.poller.take()
        if message is not None:
            self.machine.arrived(message)

    def _listen(self) -> None:
        """Count how long the server has not answered."""
        now = time.perf_counter()
        # Not the time for which this process itself was stopped.
        passed, self._listened = min(now - self._listened, 1.0), now
        waiting = self.machine.awaiting and self.poller.message is None and self.channel.moves == self._moves
        self._silence = self._silence + passed if waiting else 0.0
        self._moves = self.channel.moves
        if self.patience is not None and self._silence > self.patience:
            raise faults.NoWord(f"rank 0, the server, has not answered for {self._silence:.0f} s")

    @property
    def holds(self) -> bool:
        """Whether a state is to be sent that lacks what the rest of the loop's body will do."""
        return self.keep or bool(self._held)

    def passed(self) -> None:
        """The body of the loop has been gone through: send the states that the server has asked for meanwhile."""
        if self._held:
            with self.poller.undisturbed:
                for version, save in self._held:
                    self._send_state(version, save)
            self._held.clear()

    def _save_if_marked(self) -> None:
        """Save this worker's state before any later message is taken in, where the server has asked for it."""
        mark, self.channel.mark = self.channel.mark, None
        if mark is None:
            return
        begin = time.perf_counter()
        self._marked = mark.version
        if self._own:
            self._send_state(mark.version, lambda: self.state.at_mark(mark.answers))
        else:
            self._held.append((mark.version, self.state.at_mark_and_later(mark.answers)))
        self._idle += time.perf_counter() - begin

    def _send_state(self, version: int, save: Callable[[], dict[str, Any]]) -> None:
        if self._records.count:
            self._send_records(time.perf_counter())
        try:
            image = pack(save())
        except HpcdmlError as error:
            image = pack(str(error))
        self.channel.send_state(version, self._blocks, image)

    def _send_records(self, now: float) -> None:
        self.channel.send_records(self._records.take())
        self._blocks += 1
        self._sent_at = now

    def _with_news(self, push: Push) -> Push:
        flags = push.flags if self.signals.received is None else push.flags | LEAVE
        return dataclasses.replace(push, flags=flags, records=self._blocks, marked=self._marked)
