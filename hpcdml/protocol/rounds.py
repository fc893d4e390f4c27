"""Rounds, and what the server's state machine says to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcdml.protocol.messages import Push


@dataclass(eq=False)
class Round:
    """One aggregation and the global message that follows it.

    A round without members only sends the present global parameters, to a worker that was held back.

    Attributes:
        members: ranks whose pushes belong to the round, in rank order.
        pushes: the headers that have come, by rank.
        refused: ranks whose updates are not taken: they count as if they had pushed nothing.
        sealed: all headers are there; the attributes below are valid from then on.
        version: the version that the round makes, or carries if it has no payload.
        recipients: ranks that the new version is sent to.
        stop: the message tells its recipients to stop; then it has no payload.
        share: members with a payload / live workers; without those that have left of their own accord before.
        settled: the values cannot change before all recipients have received them.
        samples: training samples in the version, of all workers together.
    """

    members: tuple[int, ...]
    pushes: dict[int, Push] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    sealed: bool = False
    version: int = 0
    recipients: tuple[int, ...] = ()
    stop: bool = False
    share: float = 0.0
    settled: bool = False
    samples: int = 0

    @property
    def contributors(self) -> tuple[int, ...]:
        """Members that have pushed a payload which is taken, in rank order."""
        return tuple(
            w for w in self.members if w in self.pushes and self.pushes[w].local_steps and w not in self.refused
        )


@dataclass(frozen=True)
class Join:
    """The push's payload, if it has one, belongs to ``round``."""

    round: Round
    push: Push


@dataclass(frozen=True)
class Seal:
    """All headers of ``round`` are there: aggregate what its members send, then answer its recipients."""

    round: Round


@dataclass(frozen=True)
class Refuse:
    """The push's update is not taken, as its round says; ``why`` ends the sentence that tells the user."""

    push: Push
    why: str


@dataclass(frozen=True)
class Drop:
    """The worker is told to stop, as too many of its updates in a row were refused; the others go on without it."""

    worker: int


@dataclass(frozen=True)
class Back:
    """A worker that was left out is in the run again."""

    worker: int


Action = Back | Join | Seal | Refuse | Drop
