"""The worker's state machine. It is told what happened and says what to do; it moves no data and knows no time."""

from __future__ import annotations

from dataclasses import dataclass

from hpcdml.protocol.messages import FINAL, Global, Push
from hpcdml.protocol.policies import Policy


@dataclass(frozen=True)
class TakeUpdate:
    """Form the update since the last push; ``keep``: the local model goes on as it is, the base of the next update."""

    keep: bool


@dataclass(frozen=True)
class Forget:
    """The last update was refused: what the worker has done since its last push is dropped, and what made it bad."""


@dataclass(frozen=True)
class Adopt:
    """Make the global parameters that arrived the local model, and the base of the next update."""

    version: int


@dataclass(frozen=True)
class Exchange:
    """Form the update since the last push, and adopt the global parameters less ``compensation`` times that update."""

    version: int
    compensation: float


@dataclass(frozen=True)
class SendPush:
    """Post the receive of the next global message, unless ``push`` is the final one; then send the push.

    Its payload is the update just taken; none where it has no local steps.
    """

    push: Push


@dataclass(frozen=True)
class Train:
    """Take the next local step."""


@dataclass(frozen=True)
class Wait:
    """Take no step until global parameters arrive."""


@dataclass(frozen=True)
class Stop:
    """Training has ended; nothing is to be received any more."""


Action = TakeUpdate | Forget | Adopt | Exchange | SendPush | Train | Wait | Stop


_STATE = (
    *("version", "clock", "samples", "unsent", "seen", "stopped"),
    *("_pushed", "_contained", "_slowest", "_sequence", "_awaiting"),
)


class Worker:
    """One worker of the method of patent ZL 202011016938.4, under any policy.

    Feed it ``arrived`` when a global message is complete and ``stepped`` after a local step; call ``decide`` after
    every step, and after every arrival while it waits, and carry out what it returns, in order: update, adoption, push.
    So the update that is pushed is the one that is compensated, and the buffer of the global parameters is free again
    when the push leaves.

    It begins with version 0 of the global parameters, which all ranks have before the start.

    Args:
        rank: the worker's rank.
        policy: the policy of the run.
        workers: number of workers, for ``estimate``.
    """

    def __init__(self, rank: int, policy: Policy, workers: int = 1) -> None:
        self.rank = rank
        self.workers = workers
        self.policy = policy
        self.version = 0
        self.clock = 0
        self.samples = 0
        self.unsent = 0
        self.seen = 0
        self.stopped = False
        self._pushed = 0
        self._contained = 0
        self._slowest = 0
        self._sequence = 0
        self._awaiting = False
        self._ending = False
        self._message: Global | None = None
        self._last: Push | None = None

    @property
    def awaiting(self) -> bool:
        """Whether global parameters are to come that have not been taken in."""
        return self._awaiting

    @property
    def holds(self) -> bool:
        """Whether global parameters have arrived that have not been taken in."""
        return self._message is not None

    def state(self) -> dict[str, int]:
        """What the machine knows, between two steps and with no arrived message untaken."""
        return {name: int(getattr(self, name)) for name in _STATE}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from ``state()``. A push that was under way is to be sent again, as it is."""
        for name in _STATE:
            setattr(self, name, type(getattr(self, name))(state[name]))

    def restart(self, version: int, seen: int, clock: int = 0, samples: int = 0, sequence: int = 0) -> None:
        """Begin at a version of the global parameters that the worker has been given, with nothing unsent.

        Args:
            version: number of the version.
            seen: training samples that it contains, of all workers together.
            clock: local steps of this worker that it contains.
            samples: training samples of this worker that it contains.
            sequence: number of this worker's pushes that it contains.
        """
        self.version, self.seen, self.clock, self._slowest, self._sequence = version, seen, clock, clock, sequence
        self.samples = self._pushed = self._contained = samples

    def join(self) -> Push:
        """After ``restart``, in a process that is new in the run: the push, without payload, by which it says so.

        Its answer gives it the present version, from which it begins.
        """
        self._awaiting = True
        return self._push(0)

    def under_way(self, contained: int) -> Push | None:
        """The header of the push that is not among the first ``contained`` ones, if there is one."""
        return self._last if self._last is not None and self._last.sequence > contained else None

    def sent_again(self, push: Push) -> Push:
        """After ``restore``: this push, which ``under_way`` gave, is on its way again."""
        self._last = push
        return push

    def arrived(self, message: Global) -> None:
        """A global message has arrived whole."""
        if self._message is not None or not self._awaiting:
            raise RuntimeError(f"rank {self.rank}: global parameters {message.version} arrived unasked")
        self._message = message

    def stepped(self, samples: int) -> None:
        """A local step on ``samples`` training samples has been applied to the local model."""
        self.clock += 1
        self.samples += samples
        self.unsent += 1

    def end(self) -> None:
        """Take no more steps: the final push follows as soon as the last one has been answered."""
        self._ending = True

    def decide(self) -> list[Action]:
        """What to do now; the last action is ``Train``, ``Wait`` or ``Stop``."""
        actions: list[Action] = []
        message = self._message
        if self._ending and message is None and self._awaiting:
            # Two pushes of one worker must not belong to one round.
            return [Wait()]
        if message is not None and message.afresh:
            self.unsent, self._pushed = 0, self.samples
            actions.append(Forget())
        if self._ending or (message is not None and message.stop):
            self.stopped = True
            taken = [TakeUpdate(keep=False)] if self.unsent else []
            return [*actions, *taken, SendPush(self._push(FINAL)), Stop()]
        due = self.unsent > 0 and self.policy.due(self.unsent)
        if message is not None and (due or self.unsent == 0):
            self._contained = self._pushed
            push = self._push(0) if due else None
            self._message, self._awaiting = None, due
            self._slowest, self.version, self.seen = message.slowest, message.version, message.samples
            if push is not None:
                actions += [Exchange(message.version, self.policy.compensation), SendPush(push)]
            else:
                actions.append(Adopt(message.version))
        elif due and not self._awaiting:
            actions += [TakeUpdate(keep=True), SendPush(self._push(0))]
            self._awaiting = True
        if self._awaiting and self._message is None and not self._goes_on():
            return [*actions, Wait()]
        return [*actions, Train()]

    @property
    def estimate(self) -> int:
        """Training samples of all workers together by now, as far as this one can tell, if all are as fast as it is."""
        return self.seen + (self.samples - self._contained) * self.workers

    def _goes_on(self) -> bool:
        return self.policy.trains_on(self.unsent, self.clock, self._slowest)

    def _push(self, flags: int) -> Push:
        self._sequence += 1
        push = Push(
            worker=self.rank,
            flags=flags,
            sequence=self._sequence,
            version=self.version,
            local_steps=self.unsent,
            samples=self.samples - self._pushed,
            clock=self.clock,
        )
        self.unsent, self._pushed = 0, self.samples
        self._last = push
        return push
