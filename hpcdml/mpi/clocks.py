"""One time for all ranks, so that what several of them have recorded can be drawn in one picture."""

from __future__ import annotations

import math
import time

import numpy as np

from hpcdml.mpi.tags import Tag
from hpcdml.mpi.world import SERVER, World, barrier, wait

_QUESTIONS = 20


def common_zero(world: World) -> float:
    """The time of this rank's ``perf_counter`` at a moment that is the same one on all ranks; collective.

    Ranks leave a barrier up to milliseconds apart where they share cores, and the clocks of two hosts have nothing in
    common. So each worker asks rank 0 for its time some times, and takes the quickest answer for sent at the middle of
    the time from the question to it (F. Cristian, Probabilistic clock synchronization, 1989): it errs by half of that
    time at most.
    """
    barrier(world)
    now, question = np.zeros(1), bytearray()
    zero = time.perf_counter()
    if world.is_server:
        for worker in world.workers:
            for _ in range(_QUESTIONS):
                wait(world.comm.Irecv(question, worker, Tag.CLOCK))
                now[0] = time.perf_counter() - zero
                wait(world.comm.Isend(now, worker, Tag.CLOCK))
        return zero
    quickest = math.inf
    for _ in range(_QUESTIONS):
        asked = time.perf_counter()
        wait(world.comm.Isend(question, SERVER, Tag.CLOCK))
        wait(world.comm.Irecv(now, SERVER, Tag.CLOCK))
        answered = time.perf_counter()
        if answered - asked < quickest:
            quickest = answered - asked
            zero = (asked + answered) / 2 - float(now[0])
    return zero
