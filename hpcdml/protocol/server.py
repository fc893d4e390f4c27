"""The server's state machine: which push belongs to which round, when a round is complete and who is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcdml.protocol.messages import AFRESH, BACK, FINAL, LOST, MARK, STOP, Global, Push
from hpcdml.protocol.policies import Policy
from hpcdml.protocol.refusal import Gate
from hpcdml.protocol.rounds import Action, Back, Drop, Join, Refuse, Round, Seal


class ProtocolError(RuntimeError):
    """A worker said something that no worker may say."""


class Server:
    """The parameter server of the method of patent ZL 202011016938.4, under any policy.

    It begins with version 0 of the global parameters, which the workers have already.

    Args:
        policy: the policy of the run.
        workers: ranks of the workers.
        weighting: ``uniform``, ``steps`` or ``samples``: the weight of an update within its round.
        max_samples: training samples of all workers together after which to stop; None: no bound.
        max_update_norm: see ``Gate``.
    """

    def __init__(
        self,
        policy: Policy,
        workers: Iterable[int],
        weighting: str = "uniform",
        max_samples: int | None = None,
        max_update_norm: float | None = None,
    ) -> None:
        self.policy = policy
        self.live = set(workers)
        self.weighting = weighting
        self.max_samples = max_samples
        self.version = 0
        self.samples = 0
        self.stopping = False
        self.gate = Gate(self.live, max_update_norm)
        self.clock = {worker: 0 for worker in self.live}
        self._sequence = {worker: 0 for worker in self.live}
        self._last_samples = {worker: 0 for worker in self.live}
        self._final: set[int] = set()
        self._departed: set[int] = set()
        self._dropped: set[int] = set()
        self._leaving: set[int] = set()
        self._held: set[int] = set()
        # Workers that have pushed and are not answered yet; those that were left out as they kept silent; of these,
        # those that have spoken again and wait for the open round to end; new ones in the places of lost ones, which
        # have not spoken yet; those that are to go on afresh.
        self._unanswered: set[int] = set()
        self.silent: set[int] = set()
        self._returning: set[int] = set()
        self.joining: set[int] = set()
        self._afresh: set[int] = set()
        # Local steps that a worker which was away is spared: nobody is to wait for it to catch up.
        self._lead: dict[int, int] = {}
        self._open: Round | None = None

    @property
    def sequence(self) -> dict[int, int]:
        """The number of the last push of every worker."""
        return dict(self._sequence)

    @property
    def active(self) -> set[int]:
        """Live workers that have not sent their final push."""
        return self.live - self._final

    @property
    def awaited(self) -> set[int]:
        """Workers of which the next push is waited for."""
        return self.active - self._unanswered - self._held

    @property
    def ending(self) -> set[int]:
        """Workers that have sent their last push, or have been told to as they were dropped."""
        return self.live & self._final | self._dropped

    @property
    def returning(self) -> set[int]:
        """Workers that are let in, as they have come back or are new, when the open round has ended."""
        return set(self._returning)

    @property
    def leaving(self) -> set[int]:
        """Workers that were dropped and have not sent their last push yet."""
        return set(self._leaving)

    @property
    def present(self) -> set[int]:
        """Workers that take part to the end: the live ones, and those that were dropped."""
        return self.live | self._dropped

    @property
    def finished(self) -> bool:
        """Nobody is left who could push."""
        return not self.active and not self._leaving and not self.joining

    def state(self) -> dict[str, Any]:
        """What the machine knows, with no round open: right after a version was made."""
        return {
            "version": self.version,
            "samples": self.samples,
            "clock": dict(self.clock),
            "sequence": dict(self._sequence),
            "last_samples": dict(self._last_samples),
            "held": sorted(self._held),
            "lead": dict(self._lead),
            "gate": self.gate.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``, with pushes that were under way to come again.

        Workers that it does not know begin at the clock of the slowest one that it does: nobody is to wait for them.
        """
        self.version, self.samples = int(state["version"]), int(state["samples"])
        for mine, theirs in (
            (self.clock, state["clock"]),
            (self._sequence, state["sequence"]),
            (self._last_samples, state["last_samples"]),
        ):
            mine.update({int(worker): int(value) for worker, value in theirs.items() if int(worker) in self.live})
        known = {int(worker) for worker in state["clock"]}
        slowest = min((self.clock[worker] for worker in self.live & known), default=0)
        for worker in self.live - known:
            self.clock[worker] = slowest
        self._held = {int(worker) for worker in state["held"]} & self.live
        self._lead = {int(worker): int(value) for worker, value in state["lead"].items()}
        self.gate.restore(state["gate"])

    def restart(self, state: dict[str, Any]) -> None:
        """Go on from ``state()`` with workers that begin anew at its version: see ``Worker.restart``."""
        self.restore(state)
        self._held.clear()
        self.gate.forgive(self.live)

    def resume(self) -> list[Action]:
        """After ``restore``: everybody goes on as it was."""
        return self._release()

    @property
    def may_mark(self) -> bool:
        """Whether a consistent state of all live workers can be had now: no round is open, and none of them ends."""
        return self._open is None and not self.stopping and not self._final

    @property
    def some_have_ended(self) -> bool:
        """Whether a worker has sent its last push."""
        return bool(self._final)

    def mark(self, worker: int) -> Global:
        """The message by which a worker saves its state beside the present version.

        It goes out before any later message, so that what a worker has received by then is what the server had sent by
        now (Chandy and Lamport, ACM TOCS 3(1), 1985). What is under way to the server, the workers save themselves.
        """
        return Global(MARK, self.version, self._sequence[worker], self._slowest(), self.samples)

    def pushed(self, push: Push) -> list[Action]:
        """A push's header has arrived.

        Raises:
            ProtocolError: from a worker that is unknown or has ended, or out of sequence.
        """
        worker = push.worker
        if worker not in self.active | self._leaving | self.silent | self.joining:
            raise ProtocolError(f"a push from rank {worker}, which is no active worker")
        if push.sequence != self._sequence[worker] + 1:
            raise ProtocolError(f"push {push.sequence} of rank {worker} after push {self._sequence[worker]}")
        self._sequence[worker] = push.sequence
        self.clock[worker] = push.clock
        self._last_samples[worker] = push.samples
        self._afresh.discard(worker)
        if worker in self._leaving:
            return self._left(push)
        self._unanswered.add(worker)
        if worker in self.joining:
            # From here on as one that was away.
            self.joining.discard(worker)
            self.silent.add(worker)
        if worker in self.silent:
            return self._spoke_again(push)
        if self.policy.collective:
            if self._open is None:
                self._open = Round(tuple(sorted(self.active)))
            current = self._open
        else:
            current = Round((worker,))
        current.pushes[worker] = push
        if push.flags & FINAL:
            self._final.add(worker)
            if not self.stopping:
                self._departed.add(worker)  # of its own accord: the others go on without it
        actions = self._enter(current, push)
        if push.local_steps and not push.flags & FINAL and self.gate.gives_up(worker):
            self.live.discard(worker)
            self._dropped.add(worker)
            self._leaving.add(worker)
            actions += [Drop(worker), self._send({worker}, stop=True)]
        if all(w in current.pushes or w not in self.live for w in current.members):
            actions += self._seal(current)
        return actions

    def _enter(self, current: Round, push: Push) -> list[Action]:
        why = self.gate.judge(push) if push.local_steps else None
        if why is None:
            return [Join(current, push)]
        current.refused.add(push.worker)
        return [Refuse(push, why), Join(current, push)]

    def _left(self, push: Push) -> list[Action]:
        """The final push of a worker that was dropped or left out."""
        worker = push.worker
        self._leaving.discard(worker)
        if worker in self.silent:
            self.silent.discard(worker)
            self.live.add(worker)
            self._final.add(worker)
            if not self.stopping:
                self._departed.add(worker)
        return self._thrown_away(push)

    def _thrown_away(self, push: Push) -> list[Action]:
        """A push of which nothing is taken, and no round has it as a member."""
        message = Round((), {push.worker: push}, {push.worker})
        self._finish(message, set())
        return [Join(message, push), Seal(message)]

    def join(self, worker: int) -> None:
        """A new process takes the place of a worker that is lost: at its first push it begins at the present version.

        Its pushes and local steps are counted on from those of the lost one.
        """
        self.joining.add(worker)
        self._unanswered.discard(worker)
        self._final.discard(worker)
        self.gate.forgive([worker])

    def leave_out(self, worker: int) -> list[Action]:
        """A worker has kept silent for too long: the rounds go on without it, until it speaks again."""
        self.joining.discard(worker)
        self.silent.add(worker)
        return self._without(worker)

    def spoke(self, worker: int) -> list[Action]:
        """Something has come from a worker that was left out: if it waits for an answer, it is in the run again.

        Its push is given up, as the rounds have gone on: it goes on afresh from the present version, with the others.
        One that had sent its last push is waited for again, and not answered.
        """
        if worker in self.silent & self._final:
            self.silent.discard(worker)
            self.live.add(worker)
            return []
        if worker not in self.silent & self._unanswered:
            return []
        self._returning.add(worker)
        return [] if self._open is not None else self._admit()

    def _spoke_again(self, push: Push) -> list[Action]:
        if push.flags & FINAL:
            return self._left(push)
        return [*self._thrown_away(push), *self.spoke(push.worker)]

    def _admit(self) -> list[Action]:
        back = self._take_back()
        return [*map(Back, sorted(back)), self._send(back)] if back else []

    def _take_back(self) -> set[int]:
        back, self._returning = self._returning, set()
        slowest = self._slowest()
        for worker in back:
            self._lead[worker] = max(self._lead.get(worker, 0), slowest - self.clock[worker])
        self.silent -= back
        self.live |= back
        self._afresh |= back
        return back

    def lost(self, worker: int) -> list[Action]:
        """A worker is gone; the rounds go on without it."""
        self.silent.discard(worker)
        self.joining.discard(worker)
        return self._without(worker)

    def _without(self, worker: int) -> list[Action]:
        self.live.discard(worker)
        self._held.discard(worker)
        self._dropped.discard(worker)
        self._returning.discard(worker)
        self._leaving.discard(worker)
        current = self._open
        if current is not None and all(w in current.pushes or w not in self.live for w in current.members):
            return self._seal(current)
        return self._release()

    def membership(self, worker: int) -> Global:
        """The message that tells the others whether a worker is in the run or out of it."""
        return Global(BACK if worker in self.live else LOST, self.version, worker, self._slowest(), self.samples)

    def request_stop(self) -> list[Action]:
        """Tell every worker to stop with the next message that it gets."""
        self.stopping = True
        return self._release()

    def message(self, round_: Round, worker: int) -> Global:
        """The header of the global message of a sealed round to one of its recipients."""
        return Global(
            flags=(STOP if round_.stop else 0) | (AFRESH if self._is_afresh(worker) else 0),
            version=round_.version,
            answers=self._sequence[worker],
            # By the worker's own count of local steps.
            slowest=self._slowest() - self._lead.get(worker, 0),
            samples=round_.samples,
        )

    def weight(self, push: Push) -> float:
        """Weight of a push within its round, before the weights are made to sum to 1."""
        return {"uniform": 1.0, "steps": float(push.local_steps), "samples": float(push.samples)}[self.weighting]

    def _seal(self, current: Round) -> list[Action]:
        if current is self._open:
            self._open = None
        if current.contributors:
            self.version += 1
        self.samples += sum(push.samples for w, push in current.pushes.items() if w not in current.refused)
        if self.max_samples is not None and self.samples + self._under_way() / 2 >= self.max_samples:
            self.stopping = True
        answered = {w for w in current.members if w in self.active and self._may_answer(w)}
        self._held |= {w for w in current.members if w in self.active} - answered
        back = self._take_back()
        self._finish(current, answered | back)
        return [*map(Back, sorted(back)), Seal(current), *self._release()]

    def _release(self) -> list[Action]:
        """Answer the workers that were held back and need not be any more."""
        ready = {w for w in self._held if self._may_answer(w)}
        self._held -= ready
        return [self._send(ready)] if ready else []

    def _send(self, workers: set[int], stop: bool = False) -> Seal:
        message = Round(())
        self._finish(message, workers)
        message.stop |= stop
        return Seal(message)

    def _finish(self, current: Round, recipients: set[int]) -> None:
        current.sealed = True
        current.version = self.version
        current.recipients = tuple(sorted(recipients))
        current.stop = self.stopping
        # A contributor may have been lost since.
        others = self.live - (self._departed - set(current.contributors))
        current.share = min(1.0, len(current.contributors) / max(1, len(others)))
        # Where this holds, no worker can push again, and so change the values, before it has this message whole.
        self._unanswered -= recipients
        current.settled = recipients >= self.active and (self.policy.collective or len(self.active) == 1)
        current.samples = self.samples

    def _under_way(self) -> int:
        """About how many samples the workers will have trained on, beyond those that have come, when a stop reaches
        them.

        With overlap that is another round's worth. ``_seal`` stops when half of it would go beyond the bound, so that
        the overshoot is around zero instead of around a whole round.
        """
        return sum(self._last_samples[w] for w in self.active) if self.policy.overlaps else 0

    def _is_afresh(self, worker: int) -> bool:
        return worker in self._afresh or self.gate.refused_last(worker)

    def _may_answer(self, worker: int) -> bool:
        return self.stopping or self.policy.answers(self._progress(worker), self._slowest())

    def _slowest(self) -> int:
        return min((self._progress(w) for w in self.active), default=0)

    def _progress(self, worker: int) -> int:
        return self.clock[worker] + self._lead.get(worker, 0)
