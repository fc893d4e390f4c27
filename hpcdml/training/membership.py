"""Which workers are there: what the server does when one dies, keeps silent or comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from hpcdml.errors import MachineError
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.protocol.chunks import ChunkSchedule
from hpcdml.protocol.rounds import Action
from hpcdml.protocol.server import Server
from hpcdml.training.checkpoints import Checkpoints

JOIN_SECONDS = 120.0
"""A new process is given so long at least to set itself up."""


STANDSTILL_SECONDS = 1.0
"""So much later than usual the server looks after its workers only where it was stopped, or stuck, itself."""


class Membership:
    """Takes workers out of the run that have died or keep silent, and back in those that speak again.

    Args:
        machine, schedule, channel, checkpoints: the server's parts.
        carry_out: carries out what the machine says.
        tell: notes in the record and on the screen what happened to a worker, by rank, kind and text.
        preempt: ends the run after a checkpoint, for a reason.
        hosts: host name of every rank.
        owes: for how many seconds a worker may be silent, at least, that has sent its last push, as something is still
            to come from it; None: nothing is.
        replace: is told of a worker that has died.
        pending: how many new processes are on their way to the run.
        least: fewer workers than that end the run.
        timeout: seconds of silence after which a worker is left out; None: it is waited for without end.
    """

    def __init__(
        self,
        machine: Server,
        schedule: ChunkSchedule,
        channel: ServerChannel,
        checkpoints: Checkpoints,
        carry_out: Callable[[list[Action]], None],
        tell: Callable[[int, str, str], None],
        preempt: Callable[[str], None],
        owes: Callable[[int], float | None],
        replace: Callable[[int], None],
        pending: Callable[[], int],
        hosts: Mapping[int, str],
        least: int,
        timeout: float | None,
    ) -> None:
        self.machine = machine
        self.schedule = schedule
        self.channel = channel
        self.checkpoints = checkpoints
        self.carry_out = carry_out
        self.tell = tell
        self.preempt = preempt
        self.owes = owes
        self.replace = replace
        self.pending = pending
        self.hosts = hosts
        self.least = least
        self.timeout = timeout
        self._asked = dict.fromkeys(machine.live, time.perf_counter())
        self._looked = self._told = time.perf_counter()
        # Whether new processes were on their way when workers were last counted: they may not have come.
        self._counted_on = False

    def lost(self, worker: int) -> None:
        """A worker has died: the rounds go on without it, and the others share its samples.

        Raises:
            MachineError: no worker is left, and none is to come.
        """
        machine = self.machine
        if worker not in machine.present | machine.silent | machine.joining:
            return
        was_out, ended = worker not in machine.live, worker not in machine.active
        self.schedule.lost(worker)
        self.checkpoints.lost(worker)
        self.carry_out(machine.lost(worker))
        if was_out:
            self.replace(worker)
            return
        count = len(machine.live)
        where = f"on {self.hosts[worker]}, at version {machine.version}"
        self.tell(worker, "lost", f"{where}; {_workers(count)} left")
        self.replace(worker)
        if not count and not ended and not self._coming():
            raise MachineError(f"no worker is left; the last one was rank {worker} {where}")
        self._go_on_without(worker)

    def dropped(self, worker: int, why: str) -> None:
        """The machine has told a worker to stop: the others share its samples."""
        self.tell(worker, "dropped", why)
        self._go_on_without(worker)

    def _go_on_without(self, worker: int) -> None:
        self._announce(worker)
        self._enough()

    def _enough(self) -> None:
        count, coming = len(self.machine.live), self._coming()
        self._counted_on = bool(coming)
        if count + coming < self.least and self.machine.active:
            self.preempt(f"{_workers(count)} left, fewer than --min-workers {self.least}")

    def _coming(self) -> int:
        """How many new processes are to be workers."""
        return self.pending() + len(self.machine.joining | self.machine.returning)

    def asked(self, workers: Iterable[int]) -> None:
        """All of a message has just been handed over for these workers: from now on it is their turn."""
        self._asked.update(dict.fromkeys(workers, time.perf_counter()))

    def check(self) -> bool:
        """Leave out the workers that have been silent for too long when it was their turn; return whether any was.

        Raises:
            MachineError: no worker is left, and none is to come.
        """
        if self._counted_on and not self._coming():
            self._enough()
        if self.timeout is None:
            return False
        found = False
        now = time.perf_counter()
        self._stood_still(now - self._looked)
        self._looked = now
        for worker in sorted(self.machine.active | self.machine.joining | self.machine.ending):
            since = self._since(worker)
            if now - since > self.timeout:
                limit = self._limit(worker)
                if limit is not None and now - since > limit:
                    self._silent(worker, now - since)
                    found = True
        if now - self._told > self.timeout:
            self._told = now
            for worker in sorted(self.machine.active - self.machine.awaited):
                # Some wait for others, perhaps for long: they must not think that the server hangs.
                self.channel.send_word(worker, self.machine.membership(worker))
        return found

    def _since(self, worker: int) -> float:
        return max(self.channel.heard(worker), self._asked[worker])

    def _stood_still(self, seconds: float) -> None:
        """So long ago was the last look: where this process itself was stopped, the workers' silence is not theirs."""
        if seconds > STANDSTILL_SECONDS:
            for worker in self._asked:
                self._asked[worker] = self._since(worker) + seconds

    def heard(self, worker: int) -> None:
        """Something has come from a worker."""
        if worker in self.machine.silent:
            self.carry_out(self.machine.spoke(worker))

    def back(self, worker: int) -> None:
        """The machine has taken a worker in again that had been silent."""
        count = len(self.machine.live)
        self.tell(worker, "back", f"at version {self.machine.version}; {_workers(count)} in the run")
        self._announce(worker)

    def joined(self, worker: int) -> None:
        """A new process takes the place of a worker that has died; it is told which others are out of the run."""
        self._asked[worker] = time.perf_counter()
        self.machine.join(worker)
        self.checkpoints.joined(worker)
        for other in sorted(set(self._asked) - self.machine.active - {worker}):
            self.channel.send_word(worker, self.machine.membership(other))

    def _limit(self, worker: int) -> float | None:
        """For how long a worker may be silent; None: without end, as it is not its turn."""
        timeout = self.timeout or 0.0
        if worker in self.machine.joining:
            return max(timeout, JOIN_SECONDS)
        answering = self.schedule.answering(worker)
        if answering and not self.channel.has_room(worker):
            return timeout  # if it took what it is sent, there would be room for more before long
        if self.schedule.coming(worker):
            # Where no slot is free, it waits for the chunks of others.
            return timeout if self.channel.receives(worker) else None
        if answering:
            return None
        if worker in self.machine.ending:
            least = self.owes(worker)
            return None if least is None else max(timeout, least)
        return timeout if worker in self.machine.awaited else None

    def _silent(self, worker: int, seconds: float) -> None:
        machine = self.machine
        ending = worker in machine.ending
        self.schedule.leave_out(worker)
        self.checkpoints.lost(worker)
        self.carry_out(machine.leave_out(worker))
        where = f"on {self.hosts[worker]}, at version {machine.version}"
        text = f"nothing has come from it for {seconds:.1f} s (--worker-timeout {self.timeout:g}); {where}"
        self.tell(worker, "silent", f"{text}; {_workers(len(machine.live))} left")
        if not machine.live and not ending and not self._coming():
            raise MachineError(f"no worker is left; from rank {worker} {where}, {text}")
        self._go_on_without(worker)

    def _announce(self, worker: int) -> None:
        """Tell the others whether a worker is in the run."""
        machine = self.machine
        for other in sorted((machine.active | machine.silent | machine.joining) - {worker}):
            self.channel.send_word(other, machine.membership(worker))


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"
