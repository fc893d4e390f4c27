"""The server's loop: it moves chunks as the schedule says, keeps the record of the run and decides when to stop.

It never waits for anything: evaluation, checkpoints and the disk belong to other threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import xxhash

from hpcdml.config import StopOptions
from hpcdml.mpi.backoff import Backoff
from hpcdml.mpi.events import ChunkArrived, Event, PushArrived, RecordsArrived, StateArrived, WorkerLost
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.observability.progress import Progress
from hpcdml.protocol.chunks import Add, ChunkSchedule, Close, Discard, Done, Operation
from hpcdml.protocol.messages import FINAL, LEAVE
from hpcdml.protocol.refusal import IN_A_ROW
from hpcdml.protocol.rounds import Action, Back, Drop, Join, Refuse, Round, Seal
from hpcdml.protocol.server import Server
from hpcdml.storage.run_file import RunWriter
from hpcdml.storage.tables import PUSHES, ROUNDS
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.background import Background, Every
from hpcdml.training.checkpoints import Checkpoints
from hpcdml.training.guard import Guard
from hpcdml.training.membership import Membership
from hpcdml.training.records import table_rows
from hpcdml.training.replacements import Replacements
from hpcdml.training.replay import ServerScript
from hpcdml.training.snapshots import Snapshots, Version
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.tally import Tally

FLUSH_SECONDS = 1.0
PROGRESS_SECONDS = 0.1
LOOK_SECONDS = 0.01
"""Seconds between two looks at what is not the workers' business."""

END_SECONDS = 60.0
"""The state at its end a worker may send so much later than its last push, at least: a loop of one's own may do other
things after its last step."""

# A launcher that ends all ranks, as one of them has failed, sends this one a signal first and kills it a second later:
# only a run that lives on is ending early.
_SAID_SECONDS = 2.0


class ServerLoop:
    """Serves until every worker has sent its final push.

    Args:
        machine: the server's state machine.
        channel: the connections to the workers.
        aggregator: the global parameters.
        snapshots: takes consistent copies of versions for evaluation.
        checkpoints: gathers consistent states of the run.
        writer: the run's file.
        progress: what the user sees meanwhile.
        stop: when to stop; samples and epochs are the machine's business.
        integers: the integer buffers of the first version, int64.
        records: by worker, the blocks of step records that have come; they are counted here.
        keep: whether workers that have ended leave their states behind.
        signals: which tell that the run is to end.
        hosts: host name of every rank.
        min_workers, worker_timeout: see ``Membership``.
        script: what a recorded run did, which this one repeats; None: it is a run of its own.
    """

    def __init__(
        self,
        machine: Server,
        channel: ServerChannel,
        aggregator: Aggregator,
        snapshots: Snapshots,
        checkpoints: Checkpoints,
        writer: RunWriter,
        progress: Progress,
        stop: StopOptions,
        integers: np.ndarray,
        records: dict[int, int],
        keep: bool,
        signals: StopSignals,
        hosts: Mapping[int, str],
        min_workers: int,
        worker_timeout: float | None,
        script: ServerScript | None = None,
    ) -> None:
        self.machine = machine
        self.channel = channel
        self.aggregator = aggregator
        self.snapshots = snapshots
        self.checkpoints = checkpoints
        self.writer = writer
        self.progress = progress
        self.stop = stop
        self.integers = integers
        self.keep = keep
        self.signals = signals
        self.preempted: str | None = None
        self._preempted_at: float | None = None
        self.script = script
        self.replacements: Replacements | None = None
        self._hashes: dict[Round, int] = {}
        self.schedule = ChunkSchedule(len(aggregator.layout.chunks))
        self.tally = Tally()
        self._start = 0.0
        self._arrived: dict[tuple[int, int], np.ndarray] = {}
        self._opened: dict[Round, float] = {}
        self._made: Round | None = None
        self._blocks = records
        self._blocks_due: dict[int, int] = {}
        self._weight: tuple[tuple[Round, tuple[int, ...]] | None, float] = None, 0.0
        self._flush = Every(FLUSH_SECONDS)
        self._show = Every(PROGRESS_SECONDS)
        self._look = Every(LOOK_SECONDS)
        self._flusher = Background("run file")
        self._warned: set[tuple[int, str]] = set()
        self.membership = Membership(
            machine,
            self.schedule,
            channel,
            checkpoints,
            self._carry_out,
            self._tell,
            self._preempt,
            self._owes,
            lambda worker: self.replacements.want(worker) if self.replacements is not None else None,
            lambda: self.replacements.pending if self.replacements is not None else 0,
            hosts,
            min_workers,
            worker_timeout,
        )
        self.guard = Guard(lambda worker, text: self._tell(worker, "spoiled", text))
        self._operations: dict[type[Operation], Callable] = {
            Add: self._add,
            Discard: lambda operation: self.channel.release(operation.worker),
            Close: self._close,
            Done: self._done,
        }

    def run(self, start: float) -> None:
        """Serve; ``start`` is the ``perf_counter`` time that counts as zero in the records.

        Raises:
            HpcdmlError: the run's file or a checkpoint could not be written, or an evaluation failed.
            ProtocolError, StrayMessage: a worker said something that no worker may say.
        """
        self._start = start
        backoff = Backoff()
        self._carry_out(self.machine.resume())
        if self.script is not None and self.script.stop == 0:
            self._carry_out(self.machine.request_stop())
        self._stop_where_due()
        self._work()
        while True:
            for event in self.channel.poll():
                self._take(event)
            moved, look = self.channel.moved, self._look.due
            if moved:
                # Otherwise neither a chunk nor room for a copy is there that was not there before.
                self._work()
                backoff.reset()
            if look:
                self._look.reset()
                self._look_after()
            if (moved or look) and self._ended():
                break
            if not moved:
                backoff.wait()
        self.checkpoints.finish()
        self._flusher.finish()

    @property
    def seconds(self) -> float:
        """Seconds since the start of training."""
        return time.perf_counter() - self._start

    def _ended(self) -> bool:
        return (
            self.machine.finished
            and (self.replacements is None or self.replacements.idle)
            and self.schedule.idle
            and self.checkpoints.idle
            and (not self.keep or self.checkpoints.ended(self.machine.present))
            and all(self._blocks[w] >= due for w, due in self._blocks_due.items() if w not in self.machine.silent)
        )

    def _owes(self, worker: int) -> float | None:
        """For how long a worker may be silent that is ending and has nothing to send but what belongs to its end; None:
        it has sent all of it.
        """
        if (
            worker in self.machine.leaving
            or self._blocks[worker] < self._blocks_due.get(worker, 0)
            or self.checkpoints.awaits(worker)
        ):
            return 0.0
        return END_SECONDS if self.keep and not self.checkpoints.has_left(worker) else None

    def _take(self, event: Event) -> None:
        if isinstance(event, ChunkArrived):
            self.schedule.received(event.worker)
            self.membership.heard(event.worker)
        elif isinstance(event, PushArrived):
            for each in [event] if self.script is None else self.script.in_turn(event):
                self._take_push(each)
        elif isinstance(event, StateArrived):
            self.checkpoints.arrived(event)
            self.membership.heard(event.worker)
        elif isinstance(event, RecordsArrived):
            self._blocks[event.worker] += 1
            self.tally.add(event.worker, event.rows)
            self.writer.append("steps", table_rows(event.worker, event.rows))
            self.membership.heard(event.worker)
        elif isinstance(event, WorkerLost):
            self._blocks_due.pop(event.worker, None)
            self.membership.lost(event.worker)
            self._version_made()

    def _take_push(self, event: PushArrived) -> None:
        push = event.push
        self._arrived[push.worker, push.sequence] = event.integers
        if push.flags & LEAVE:
            self._preempt(f"rank {push.worker} was asked to end")
        if push.flags & FINAL:
            self._blocks_due[push.worker] = push.records
            self.checkpoints.left(push)
        self._carry_out(self.machine.pushed(push))
        self._version_made()

    def _version_made(self) -> None:
        """If a version was just made, and none of its chunks is closed yet, it may be one to keep, or the last one."""
        if self._made is None:
            return
        made, self._made = self._made, None
        begun = self.checkpoints.consider(made, self.seconds, self.integers)
        if begun and self.preempted is not None:
            # Later progress is in the result, but the run goes on from here.
            self._request_stop(self.preempted)
        if self.script is not None:
            self._follow(self.script)

    def _follow(self, script: ServerScript) -> None:
        """A version was just made: stop where the recorded run did, or where it is to be repeated no further."""
        version = self.machine.version
        if version == script.last:
            script.integers = self.integers.copy()
        if version in (script.stop, script.last) and not self.machine.stopping:
            self._carry_out(self.machine.request_stop())
        if version == script.last:
            for event in script.rest():
                self._take_push(event)

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Join):
                self._opened.setdefault(action.round, self.seconds)
                self.schedule.join(action.round, action.push.worker)
            elif isinstance(action, Seal):
                self._seal(action.round)
            elif isinstance(action, Back):
                self.membership.back(action.worker)
            elif isinstance(action, Refuse):
                self._tell(action.push.worker, "refused", f"push {action.push.sequence}: {action.why}")
            elif isinstance(action, Drop):
                text = f"{IN_A_ROW} updates in a row were refused; it is told to stop, and the others go on without it"
                self.membership.dropped(action.worker, text)

    def _tell(self, worker: int, kind: str, text: str) -> None:
        """Note what happened to a worker; on the screen only the first time of each kind."""
        self.writer.event(self.seconds, worker, kind, text)
        if (worker, kind) not in self._warned:
            self._warned.add((worker, kind))
            self.progress.message(f"hpcdml: warning: rank {worker}: {kind}: {text}")

    def _seal(self, round_: Round) -> None:
        for push in round_.pushes.values():
            integers = self._arrived.pop((push.worker, push.sequence))
            if push.worker not in round_.refused:
                np.maximum(self.integers, integers, out=self.integers)
        now, made = self.seconds, round_.version
        rows = [
            (*(p.worker, p.sequence, now, p.version, made, made - 1 - p.version, p.local_steps, p.samples, p.clock),
             p.worker in round_.refused)
            for p in round_.pushes.values()
            if p.local_steps
        ]  # fmt: skip
        if rows:
            self.writer.append("pushes", PUSHES.rows(*rows))
        if round_.contributors:
            self.snapshots.consider(round_)
            self._made = round_
        for worker in round_.recipients:
            self.channel.send_header(worker, self.machine.message(round_, worker), self.integers)
        self.schedule.seal(round_)

    def _work(self) -> None:
        for operation in self.schedule.operations(self._has_room):
            self._operations[type(operation)](operation)

    def _has_room(self, round_: Round, chunk: int) -> bool:
        return round_.settled or all(
            worker in self.machine.silent or self.channel.has_room(worker) for worker in round_.recipients
        )

    def _add(self, operation: Add) -> None:
        if operation.alone:
            return
        round_, chunk = operation.round, operation.chunk
        terms = []
        for worker in operation.workers:
            update = self.channel.slot(worker, chunk)
            if self.guard.admits(round_, worker, chunk, update):
                terms.append((update, self.machine.weight(round_.pushes[worker])))
        self.aggregator.add(chunk, terms, operation.first)
        for worker in operation.workers:
            self.channel.release(worker)

    def _close(self, operation: Close) -> None:
        round_, chunk = operation.round, operation.chunk
        if operation.contributors:
            taken = self.guard.contributors(round_, chunk, operation.contributors)
            weight = 1.0 if operation.alone else self._weight_of(round_, taken)
            alone = self.channel.slot(operation.contributors[0], chunk) if operation.alone else None
            if taken and not self.aggregator.close(chunk, weight, round_.share, alone):
                self.guard.spoiled(round_, chunk, taken)
            if operation.alone:
                self.channel.release(operation.contributors[0])
        if round_.contributors:
            # Also where those who had this chunk are lost: then it is the one of the version before.
            self.snapshots.copy(round_, chunk, self.aggregator.x)
            self.checkpoints.copy(round_, chunk)
            self._hash(round_, chunk)
            if self.script is not None:
                self.script.copy(round_.version, chunk, self.aggregator.x)
        if round_.stop:
            return
        data = self.aggregator.outgoing(chunk)
        for worker in round_.recipients:
            if round_.settled:
                self.channel.send_chunk(worker, data)
            elif self.channel.has_room(worker):
                self.channel.send_copy(worker, data)
            else:
                # Nobody waits for one that is silent, and yet it is to find the message whole if it goes on.
                self.channel.send_chunk(worker, data.copy())

    def _hash(self, round_: Round, chunk: int) -> None:
        found = xxhash.xxh3_64_intdigest(self.aggregator.x.chunk_bytes(chunk).data, seed=chunk)
        self._hashes[round_] = (self._hashes.get(round_, 0) + found) % 2**64

    def _weight_of(self, round_: Round, contributors: tuple[int, ...]) -> float:
        """Sum of the contributors' weights, which is the same for chunk after chunk."""
        known, weight = self._weight
        if known != (round_, contributors):
            weight = sum(self.machine.weight(round_.pushes[w]) for w in contributors)
            self._weight = (round_, contributors), weight
        return weight

    def _done(self, operation: Done) -> None:
        round_ = operation.round
        now = self.seconds
        self.membership.asked(round_.recipients)
        opened = self._opened.pop(round_, now)
        contributors = round_.contributors
        if not contributors:
            return
        steps = sum(round_.pushes[w].local_steps for w in contributors)
        received = len(contributors) * self.aggregator.layout.payload
        loss = self.tally.mean_loss()
        found = self._hashes.pop(round_, 0)
        if self.script is not None:
            self.script.check(round_.version, found)
        about = (round_.version, now, len(contributors), steps, round_.samples)
        row = (*about, now - opened, received, loss, round_.stop, found)
        self.writer.append("rounds", ROUNDS.rows(row))
        self.checkpoints.complete(round_)
        self.snapshots.complete(round_, Version(round_.version, now, round_.samples), self.integers)

    def _look_after(self) -> None:
        """What is done now and then: stopping, checkpoints, the progress bar, handing rows to the disk's thread."""
        self.checkpoints.work(self.seconds)
        if self.replacements is not None:
            self.replacements.work()
        if self.membership.check():
            self._version_made()
            self._work()
        if self.signals.received is not None:
            self._preempt(f"{self.signals.received} on rank 0")
        elif self.preempted is not None:
            self._preempt(self.preempted)
        self._stop_where_due()
        if self._preempted_at is not None and self.seconds - self._preempted_at > _SAID_SECONDS:
            self._preempted_at = None
            self.progress.message(f"hpcdml: {self.preempted}: a checkpoint, then the end of all ranks")
        if self._show.due:
            self._show.reset()
            self.snapshots.check()
            self.checkpoints.check()
            self._flusher.check()
            self._show_progress()
        if self._flush.due and self._flusher.idle:
            self._flush.reset()
            self._flusher.give(lambda: self.writer.flush(force=True))

    def _stop_where_due(self) -> None:
        limit, target = self.stop.max_seconds, self.stop.target_accuracy
        if not self.machine.stopping and self.preempted is None:
            if limit is not None and self.seconds >= limit:
                self._request_stop(f"--max-seconds {limit} reached")
            elif target is not None and self.snapshots.best >= target:
                self._request_stop(f"--target-accuracy {target} reached")

    def _preempt(self, why: str) -> None:
        """Save a checkpoint of the next version, and then stop."""
        if self.preempted is None and not self.machine.stopping:
            self.preempted, self._preempted_at = why, self.seconds
            self.checkpoints.wanted = True
            self.writer.event(self.seconds, 0, "preempted", why)
        if self.preempted is not None and not self.machine.stopping and self.machine.some_have_ended:
            # The state of a worker that has ended its own loop can be had only with those at the end of all.
            self._request_stop(self.preempted)

    def _request_stop(self, why: str) -> None:
        self.writer.event(self.seconds, 0, "stopping", why)
        self._carry_out(self.machine.request_stop())
        self._work()

    def _show_progress(self) -> None:
        now = self.seconds
        self.progress.update(
            now,
            self.machine.version,
            self.machine.samples,
            self.machine.samples / now if now > 0 else 0.0,
            self.tally.last_loss,
            self.snapshots.accuracy,
            self.tally.idle / self.tally.busy if self.tally.busy else math.nan,
        )
