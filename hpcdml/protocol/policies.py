"""The synchronisation policies: what distinguishes BSP, local SGD, DiLoCo, ASP, SSP, OSP and LOSP.

Worker and server run the same state machines under every policy and ask it the few questions below. To add a policy,
add a class here and its name to ``BUILDERS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hpcdml.config import PolicyOptions


@dataclass(frozen=True)
class Policy:
    """Bulk synchronous parallel, and the base of the others.

    Attributes:
        local_steps: H, least number of local steps in a push.
        compensation: lambda, the share of unsent local progress that is kept when global parameters are adopted.
        collective: whether a round takes one push of every live worker; otherwise every push is a round of its own.
        overlaps: whether a worker trains while its push is unanswered.
        outer_optimizer: the server's optimizer where the user names none.
    """

    local_steps: int = 1
    compensation: float = 0.0

    collective: ClassVar[bool] = True
    overlaps: ClassVar[bool] = False
    outer_optimizer: ClassVar[str] = "sgd"

    def due(self, unsent: int) -> bool:
        """Whether ``unsent`` local steps since the last push are enough for the next one."""
        return unsent >= self.local_steps

    def trains_on(self, unsent: int, clock: int, slowest: int) -> bool:
        """Whether a worker whose push is unanswered takes another local step.

        Args:
            unsent: local steps since that push.
            clock: the worker's local steps since the start.
            slowest: the same of the slowest worker, as far as this one knows.
        """
        return False

    def answers(self, clock: int, slowest: int) -> bool:
        """Whether the server may answer a worker at ``clock`` while the slowest is at ``slowest``."""
        return True


class Bsp(Policy):
    """Bulk synchronous parallel: push every local step, wait for the round."""


class LocalSgd(Policy):
    """Local SGD: H local steps, then push and wait."""


class Diloco(LocalSgd):
    """DiLoCo (arXiv 2311.08105): local SGD whose server takes the mean update with Nesterov momentum."""

    outer_optimizer: ClassVar[str] = "nesterov"


class Asp(Policy):
    """Asynchronous parallel: the server takes each push at once, the worker waits for its own reply."""

    collective: ClassVar[bool] = False


@dataclass(frozen=True)
class Ssp(Policy):
    """Stale synchronous parallel (Ho et al., NIPS 2013): as ASP, and nobody is over ``staleness`` local steps ahead.

    A worker trains on while its push is unanswered, and the server answers one that is ahead only when the slowest has
    caught up.
    """

    staleness: int = 4

    collective: ClassVar[bool] = False
    overlaps: ClassVar[bool] = True

    def trains_on(self, unsent: int, clock: int, slowest: int) -> bool:
        return clock + 1 - slowest <= self.staleness

    def answers(self, clock: int, slowest: int) -> bool:
        return clock - slowest <= self.staleness


@dataclass(frozen=True)
class Osp(Policy):
    """Overlap synchronous parallel: nobody waits, global parameters replace local ones.

    The method of ICPP 2019, doi 10.1145/3337821.3337828. ``max_local_steps`` bounds the local steps since the last
    push; None: no bound.
    """

    max_local_steps: int | None = None

    overlaps: ClassVar[bool] = True

    def trains_on(self, unsent: int, clock: int, slowest: int) -> bool:
        return self.max_local_steps is None or unsent < self.max_local_steps


class Losp(Osp):
    """OSP with local compensation (IEEE JSAC 39(8) 2021; patent ZL 202011016938.4): the unsent progress is kept."""


BUILDERS: dict[str, Callable[[PolicyOptions], Policy]] = {
    "bsp": lambda o: Bsp(),
    "local-sgd": lambda o: LocalSgd(o.local_steps or 8),
    "diloco": lambda o: Diloco(o.local_steps or 8),
    "asp": lambda o: Asp(o.local_steps or 1),
    "ssp": lambda o: Ssp(o.local_steps or 1, staleness=o.staleness),
    "osp": lambda o: Osp(o.local_steps or 1, max_local_steps=o.max_local_steps),
    "losp": lambda o: Losp(o.local_steps or 1, o.compensation, max_local_steps=o.max_local_steps),
}


def make_policy(options: PolicyOptions) -> Policy:
    """Return the policy that the options name."""
    return BUILDERS[options.policy](options)
