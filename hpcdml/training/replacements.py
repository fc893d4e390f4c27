"""New processes in the places of workers that have died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from hpcdml.errors import MachineError
from hpcdml.mpi import faults, spawning
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.mpi.world import World
from hpcdml.protocol.server import Server
from hpcdml.training.background import Background

PROGRAM = ["-m", "hpcdml.training.joining"]
START_SECONDS = 120.0
"""A new process that has not started MPI after so long will not: where it dies before, ``MPI_Comm_spawn`` of Open MPI
5.0 never returns."""
END_SECONDS = 20.0
"""The same where the run has ended meanwhile."""
LAUNCHER_SECONDS = 30
"""Where one has not started, ``mpirun`` is ended so long after the run, should it wait for it."""


class Replacements:
    """Starts them beside the serving, one after the other, and brings them to the server's channel.

    Args:
        machine: the server's.
        channel: where they are joined.
        world: the ranks that the run began with.
        most: how many may be started in all.
        answering: whether chunks of a round that was under way when a rank died are still sent to it. A process in its
            place would take them for its own.
        given: what a new process in the place of a rank needs.
        joined: is told of the rank whose place was taken.
    """

    def __init__(
        self,
        machine: Server,
        channel: ServerChannel,
        world: World,
        most: int,
        answering: Callable[[int], bool],
        given: Callable[[int], dict[str, Any]],
        joined: Callable[[int], None],
    ) -> None:
        self.machine = machine
        self.channel = channel
        self.world = world
        self.left = most
        self.answering = answering
        self.given = given
        self.joined = joined
        self._wanted: list[int] = []
        self._started: list[tuple[int, Any]] = []
        self._kept: list[object] = []
        self._thread: Background | None = None
        self._starting, self._since = 0, 0.0
        self._stuck = False

    @property
    def idle(self) -> bool:
        """Whether none is being started, or the one that is has taken too long."""
        return not self._wanted and not self._started and (self._thread is None or self._thread.idle or self._stuck)

    @property
    def pending(self) -> int:
        """How many are on their way."""
        starting = self._thread is not None and not self._thread.idle and not self._stuck
        return len(self._wanted) + len(self._started) + starting

    def want(self, worker: int) -> None:
        """A worker has died: a process is to take its place, if there may be another one."""
        if self.left and spawning.may_spawn() and not self.machine.stopping:
            self.left -= 1
            self._wanted.append(worker)

    def work(self) -> None:
        """Go on with what is under way."""
        if self._thread is None and self._wanted:
            self._thread = Background("new process", niceness=0)
        if self._wanted and self._thread is not None and self._thread.idle:
            worker = self._wanted.pop(0)
            self._starting, self._since, self._stuck = worker, time.monotonic(), False
            self._thread.give(lambda: self._start(worker))
        while self._started and not self.answering(self._started[0][0]):
            worker, comm = self._started.pop(0)
            self.channel.join(worker, comm)
            self._kept.append(spawning.introduce(comm, self.world, worker, self.given(worker)))
            self.joined(worker)
        if self._thread is not None and not self._thread.idle and not self._stuck:
            limit = END_SECONDS if self.machine.finished else START_SECONDS
            if time.monotonic() - self._since > limit:
                self._give_up(limit)

    def close(self) -> None:
        """At the end: the launcher must not wait for a process that has not started."""
        if self._stuck and self._thread is not None and not self._thread.idle:
            faults.end_launcher(LAUNCHER_SECONDS)

    def _give_up(self, seconds: float) -> None:
        self._stuck = True
        self.left = 0
        self._wanted.clear()
        text = f"the new process has not started within {seconds:g} s; there will be no other one"
        print(f"hpcdml: warning: in place of rank {self._starting}: {text}", file=sys.stderr, flush=True)

    def _start(self, worker: int) -> None:
        try:
            self._started.append((worker, spawning.spawn(PROGRAM)))
        except MachineError as error:
            print(f"hpcdml: warning: in place of rank {worker}: {error}", file=sys.stderr, flush=True)
