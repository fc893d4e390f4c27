"""A training run: every rank sets up, agrees with the others, does its part and ends with them."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable

from hpcdml.config import TrainConfig
from hpcdml.errors import UsageError
from hpcdml.mpi import once
from hpcdml.mpi.world import SERVER, World, abort, barrier, gather, hosts, join_world
from hpcdml.training.bounds import stop_bounds
from hpcdml.training.resumption import Resumption, find, give_states, saved_config, share_config
from hpcdml.training.server_job import ServerJob
from hpcdml.training.setup import AgreedFailure, Setup, set_up, share_values, together
from hpcdml.training.worker_job import WorkerJob


def train(config: TrainConfig) -> int:
    """Train as ``config`` says. Every rank of the MPI job calls it.

    Returns:
        The exit status, the same on every rank: 0 done, 1 failed, 2 wrong use; what went wrong has been printed, once.
    """
    return _guarded(lambda world: config)


def resume(folder: str, options: dict[str, object]) -> int:
    """Go on with a run from its newest valid checkpoint. Every rank of the MPI job calls it.

    Args:
        folder: the run's output folder.
        options: by name with underscores, of ``FREE``, what is to be otherwise than before.

    Returns:
        As ``train``.
    """

    def config(world: World) -> TrainConfig:
        found = together(lambda: saved_config(folder) if world.is_server else None)
        saved = share_config(world, found)
        given = {**saved, "output": folder, "overwrite": False, "resume": "auto", **options}
        known = TrainConfig().flat()
        return together(lambda: TrainConfig.from_flat({name: v for name, v in given.items() if name in known}))

    return _guarded(config)


def _guarded(configure: Callable[[World], TrainConfig]) -> int:
    world = join_world()
    debug = False
    try:
        config = configure(world)
        debug = config.run.debug
        _run(config, world)
    except AgreedFailure as failure:
        return failure.status
    except (Exception, SystemExit) as error:  # a user's model may call sys.exit
        # Only this rank knows of it, and the others may be waiting for it.
        if debug:
            traceback.print_exc()
        abort(world, error)
    return 0


def _run(config: TrainConfig, world: World) -> None:
    together(lambda: _need_workers(world))
    setup = set_up(config, world)
    found = together(lambda: _find(config, world, setup))
    resumes = _at_server(world, found is not None)
    if resumes and _at_server(world, found is not None and _has_ended(config, setup, found)):
        return
    share_values(world, setup.flat)
    part = None
    if resumes:
        parts = {}
        if found is not None:
            print(f"hpcdml: {found.told()}", file=sys.stderr, flush=True)
            parts = found.parts(config, setup.epoch_samples)
        part = give_states(world, found, parts)
    names = hosts(world)
    worker = together(lambda: None if world.is_server else WorkerJob(config, world, setup, part))
    # Only now that nothing else can go wrong, as it leaves a file behind.
    job = together(lambda: worker or ServerJob(config, world, setup, names, found))
    barrier(world)
    earlier = found.seconds if found is not None else part["seconds"] if part is not None else 0.0
    job.run(time.perf_counter() - earlier)
    # Nobody leaves before the result is written: a launcher would count a rank that fails later as the only one.
    barrier(world)


def _need_workers(world: World) -> None:
    if world.workers:
        return
    if (tasks := once.tasks_apart()) > 1:
        raise UsageError(
            f"srun started {tasks} tasks, but they do not see each other: srun --mpi=pmix (srun --mpi=list tells what "
            "this Slurm has), or mpirun instead of srun"
        )
    raise UsageError("train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train ...")


def _find(config: TrainConfig, world: World, setup: Setup) -> Resumption | None:
    """On rank 0, where the run goes on from; its values are loaded into the model."""
    if not world.is_server or config.run.resume == "never":
        return None
    found = find(config, len(world.workers))
    if found is not None:
        found.load_start(setup.flat)
    return found


def _has_ended(config: TrainConfig, setup: Setup, found: Resumption) -> bool:
    """Whether the run had come to the end that the options name; a line says so."""
    bounds = stop_bounds(config.stop, setup.epoch_samples)
    if not found.server["ended"] or found.server["bounds"] != bounds:
        return False
    print(f"hpcdml: {config.run.output}: the run has ended; --epochs or --max-samples gives it more to do", flush=True)
    return True


def _at_server(world: World, value: bool) -> bool:
    """Rank 0's truth value on every rank."""
    return bool(gather(world, int(value))[SERVER])
