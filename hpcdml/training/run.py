"""A training run: every rank sets up, agrees with the others, does its part and ends with them."""

from __future__ import annotations

import time
import traceback

from hpcdml.config import TrainConfig
from hpcdml.errors import UsageError
from hpcdml.mpi.world import World, abort, barrier, hosts, join_world
from hpcdml.training.server_job import ServerJob
from hpcdml.training.setup import AgreedFailure, set_up, together
from hpcdml.training.worker_job import WorkerJob


def train(config: TrainConfig) -> int:
    """Train as ``config`` says. Every rank of the MPI job calls it.

    Returns:
        The exit status, the same on every rank: 0 done, 1 failed, 2 wrong use; what went wrong has been printed, once.
    """
    world = join_world()
    try:
        _run(config, world)
    except AgreedFailure as failure:
        return failure.status
    except (Exception, SystemExit) as error:  # a user's model may call sys.exit
        # Only this rank knows of it, and the others may be waiting for it.
        if config.run.debug:
            traceback.print_exc()
        abort(world, error)
    return 0


def _run(config: TrainConfig, world: World) -> None:
    together(lambda: _need_workers(world))
    setup = set_up(config, world)
    names = hosts(world)
    worker = together(lambda: None if world.is_server else WorkerJob(config, world, setup))
    # Only now that nothing else can go wrong, as it leaves a file behind.
    job = together(lambda: worker or ServerJob(config, world, setup, names))
    barrier(world)
    job.run(time.perf_counter())
    # Nobody leaves before the result is written: a launcher would count a rank that fails later as the only one.
    barrier(world)


def _need_workers(world: World) -> None:
    if not world.workers:
        raise UsageError("train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train ...")
