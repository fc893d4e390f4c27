"""Which workers are there: what the server does when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hpcdml.errors import MachineError
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.protocol.chunks import ChunkSchedule
from hpcdml.protocol.server import Action, Server
from hpcdml.training.checkpoints import Checkpoints


class Membership:
    """Takes lost workers out of the run.

    Args:
        machine, schedule, channel, checkpoints: the server's parts.
        carry_out: carries out what the machine says.
        tell: notes in the record and on the screen what happened to a worker, by rank, kind and text.
        preempt: ends the run after a checkpoint, for a reason.
        hosts: host name of every rank.
        least: fewer workers than that end the run.
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
        hosts: Mapping[int, str],
        least: int,
    ) -> None:
        self.machine = machine
        self.schedule = schedule
        self.channel = channel
        self.checkpoints = checkpoints
        self.carry_out = carry_out
        self.tell = tell
        self.preempt = preempt
        self.hosts = hosts
        self.least = least

    def lost(self, worker: int, integers: np.ndarray) -> None:
        """A worker has died: the rounds go on without it, and the others share its samples.

        Raises:
            MachineError: no worker is left.
        """
        machine = self.machine
        if worker not in machine.live:
            return
        ended = worker not in machine.active
        self.schedule.lost(worker)
        self.checkpoints.lost(worker)
        self.carry_out(machine.lost(worker))
        count = len(machine.live)
        where = f"on {self.hosts[worker]}, at version {machine.version}"
        self.tell(worker, "lost", f"{where}; {count} {'worker is' if count == 1 else 'workers are'} left")
        if not count and not ended:
            raise MachineError(f"no worker is left; the last one was rank {worker} {where}")
        for other in sorted(machine.active):
            self.channel.send_header(other, machine.loss(worker), integers)
        if count < self.least and machine.active:
            self.preempt(f"{count} workers are left, fewer than --min-workers {self.least}")
