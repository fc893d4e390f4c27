"""A training run: every rank sets up, agrees with the others, does its part and ends with them."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hpcdml.config import RunOptions, TrainConfig
from hpcdml.errors import MachineError, UsageError
from hpcdml.mpi import faults
from hpcdml.mpi.clocks import common_zero
from hpcdml.mpi.world import World, abort, failure, finish, join_world, others_go_on
from hpcdml.protocol.policies import make_policy
from hpcdml.storage.run_reader import RunReader
from hpcdml.training.bounds import stop_bounds
from hpcdml.training.replay import (
    Scripts,
    ServerScript,
    WorkerScript,
    as_replayed,
    read_scripts,
    share_script,
    tell_replay,
)
from hpcdml.training.rescue import rescue
from hpcdml.training.resumption import Resumption, begin, known_options, saved_config, share_config
from hpcdml.training.server_job import ServerJob
from hpcdml.training.setup import AgreedFailure, Setup, about_ranks, need_workers, set_up, together
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_job import WorkerJob

NO_WORKERS = "train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train ..."


def train(config: TrainConfig) -> int:
    """Train as ``config`` says. Every rank of the MPI job calls it.

    Returns:
        The exit status, the same on every rank: 0 done, 1 failed, 2 wrong use, 75 ended by a signal after a checkpoint;
        what went wrong has been printed, once.
    """

    return _guarded(lambda world, signals: _run(config, world, signals), config.run.signals)


def resume(folder: str, options: dict[str, object]) -> int:
    """Go on with a run from its newest valid checkpoint. Every rank of the MPI job calls it.

    Args:
        folder: the run's output folder.
        options: by name with underscores, of ``FREE``, what is to be otherwise than before.

    Returns:
        As ``train``.
    """

    def work(world: World, signals: StopSignals) -> int:
        valid, found = together(lambda: saved_config(folder) if world.is_server else (None, None))
        saved = share_config(world, found)
        known = together(lambda: known_options(saved))
        given = {**known, "output": folder, "overwrite": False, "resume": "auto", **options}
        config = together(lambda: TrainConfig.from_flat(given))
        signals.watch(config.run.signals)
        return _run(config, world, signals, valid=valid)

    return _guarded(work)


def replay(folder: str, until: int | None, verify: bool, options: dict[str, object]) -> int:
    """Repeat a recorded run bit for bit. Every rank calls this.

    Args:
        folder: the run's output folder.
        until: the last version to repeat; None: all that the record explains.
        verify: compare every version with the record.
        options: of the run, by name with underscores, what is to be otherwise: the speed of ranks, for one.

    Returns:
        As ``train``; 1 as well if a version, or the result, differs.
    """

    def work(world: World, signals: StopSignals) -> int:
        record = together(lambda: _read_record(world, folder, until))
        mine = share_script(world, record and record.scripts)
        given = {**known_options(mine.config), **as_replayed(folder), "threads": mine.threads, **options}
        config = together(lambda: TrainConfig.from_flat(given))
        signals.unwatch()
        if record is None:
            return _run(config, world, signals, mine.script)
        server = record.scripts.server
        told = partial(tell_replay, record.run, server, until) if verify else _nothing_told
        return _run(config, world, signals, None, server, told)

    return _guarded(work)


class _Record(NamedTuple):
    """A recorded run and what it makes the ranks do."""

    run: RunReader
    scripts: Scripts


def _read_record(world: World, folder: str, until: int | None) -> _Record | None:
    """What a run did; None on workers, who are told by rank 0."""
    if not world.is_server:
        return None
    run = RunReader(folder)
    ranks = run.workers + 1
    if world.size != ranks:
        raise UsageError(f"{folder}: was a run of {ranks} ranks: mpirun -n {ranks} hpcdml replay {folder}")
    policy = make_policy(TrainConfig.from_flat(known_options(run.config)).policy)
    return _Record(run, read_scripts(run, policy.collective, until))


def _nothing_told() -> int:
    return 0


def _guarded(work: Callable[[World, StopSignals], int], names: str = RunOptions().signals) -> int:
    signals = StopSignals()
    signals.watch(names)
    world = join_world()
    try:
        return work(world, signals)
    except AgreedFailure as failure:
        return failure.status
    except (Exception, SystemExit) as error:  # a user's model may call sys.exit
        # Only this rank knows of it, and the others may be waiting for it.
        if "--debug" in sys.argv:
            traceback.print_exc()
        abort(world, error)
    finally:
        signals.unwatch()
    return 1


def _run(
    config: TrainConfig,
    world: World,
    signals: StopSignals,
    script: WorkerScript | None = None,
    server: ServerScript | None = None,
    told: Callable[[], int] = _nothing_told,
    valid: Path | None = None,
) -> int:
    """Train, go on or repeat; returns the exit status, the same on every rank.

    ``told`` is called on rank 0 at the end, and returns another status that may be the larger one. ``valid`` is on rank
    0 the newest valid checkpoint, if it is known.
    """
    together(lambda: need_workers(world, NO_WORKERS))
    setup = set_up(config, world)
    start = begin(
        world, config, setup.flat, setup.epoch_samples, lambda found: _has_ended(config, setup, found), valid=valid
    )
    if start.over:
        return 0
    about = about_ranks(world)
    worker = together(lambda: None if world.is_server else WorkerJob(config, world, setup, start.part, script, signals))
    # Only now that nothing else can go wrong, as it leaves a file behind.
    job = together(lambda: worker or ServerJob(config, world, setup, about, start.found, server, signals))
    since = common_zero(world) - start.seconds
    if isinstance(job, ServerJob):
        status = max(job.run(since), told())
        return finish(world, status, job.machine.present, job.machine.silent, job.joined)
    try:
        job.run(since)
        return finish(world, 0, ())
    except (Exception, SystemExit) as error:
        fault: BaseException = error
        if isinstance(error, (faults.ServerLost, faults.NoWord)):
            fault = MachineError(f"{error}{rescue(job.state, config.run.output)}")
        if others_go_on(world, error):
            faults.leave(failure(world, fault))
        if fault is error:
            raise
        raise fault from error


def _has_ended(config: TrainConfig, setup: Setup, found: Resumption) -> bool:
    """Whether the run had come to the end that the options name; a line says so."""
    bounds = stop_bounds(config.stop, setup.epoch_samples)
    if not found.complete or found.server["bounds"] != bounds:
        return False
    print(f"hpcdml: {config.run.output}: the run has ended; --epochs or --max-samples gives it more to do", flush=True)
    return True
