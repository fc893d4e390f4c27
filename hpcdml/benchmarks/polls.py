"""What hooks cost a local step when nothing is under way, and when a poll finds nothing."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hpcdml.benchmarks.log import Log
from hpcdml.benchmarks.ranges import need_counts
from hpcdml.benchmarks.table import spread
from hpcdml.config import TrainConfig, option
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.mpi.world import join_world
from hpcdml.parameters import FlatModel, WireVector
from hpcdml.training.data import default_loss, load_data
from hpcdml.training.hooks import WATCHED_STEPS
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer
from hpcdml.training.polling import StepPoller

BLOCK = 20
"""Steps that are timed together."""


@dataclass(frozen=True)
class PollsOptions:
    """Benchmark"""

    dataset: str = option("digits", "as for train")
    models: str = option("mlp,lenet", "models, one row each")
    batch_size: int = option(32, "as for train")
    blocks: int = option(60, "blocks of 20 steps with and without polls, in turn")
    poll_us: int = option(200, "as for train")
    json: bool = option(False, "print JSON instead of a table")


def check(options: PollsOptions) -> None:
    """Check what can be checked before anything runs.

    Raises:
        UsageError: a wrong option.
    """
    need_counts(options, "batch_size", "blocks")


def run(options: PollsOptions, log: Log) -> list[dict[str, Any]]:
    """Time steps of one process with the hooks of the poller and without them, in turn.

    Returns:
        One row a model and state: ``idle``, nothing is under way; ``waiting``, a receive is posted that nothing
        matches, so that every poll calls MPI and finds nothing. ``step_ms`` of a plain step, ``overhead`` the median of
        (a block with hooks / the block before it) - 1.

    Raises:
        UsageError: a wrong option.
    """
    check(options)
    rows = []
    for name in options.models.split(","):
        for state in ("idle", "waiting"):
            plain, hooked = _measure(options, name.strip(), state == "waiting")
            ratios = [b / a - 1 for a, b in zip(plain, hooked, strict=True)]
            log.run({"model": name, "state": state, "overhead": sorted(ratios)[len(ratios) // 2]})
            log(f"{name}, {state}: {100 * sorted(ratios)[len(ratios) // 2]:.2f} %")
            steps = spread([1e3 * seconds / BLOCK for seconds in plain])
            rows.append({"model": name, "state": state, "step_ms": steps, "overhead": spread(ratios)})
    return rows


def _measure(options: PollsOptions, name: str, waiting: bool) -> tuple[list[float], list[float]]:
    torch.set_num_threads(1)
    config = TrainConfig.from_flat(
        {"dataset": options.dataset, "model": name, "batch_size": options.batch_size, "poll_us": options.poll_us}
    )
    world = join_world()
    data = load_data(config.data, 0, 1)
    flat = FlatModel(build_model(name, {}, data.spec, 0), config.run.chunk_kib * 1024)
    criterion, optimizer = default_loss("auto", data.spec), make_optimizer(config.optimizer, flat.model)
    feed = data.train.feed(data.train.sampler(0, 1, options.batch_size, 0))
    channel = WorkerChannel(world.comm, world.run_id, WireVector(flat.layout), WireVector(flat.layout))
    if waiting:
        channel.expect()

    def block(poller: StepPoller | None, steps: int = BLOCK) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            with nullcontext() if poller is None else poller.computing():
                inputs, targets = feed()
                criterion(flat.model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()
            if poller is not None:
                poller.poll()
        return time.perf_counter() - begin

    plain, hooked = [], []
    for _ in range(options.blocks):
        block(None, WATCHED_STEPS)
        plain.append(block(None))
        with StepPoller(channel, flat.model, config.run.poll_us * 1e-6, "hooks") as poller:
            block(poller, WATCHED_STEPS)
            hooked.append(block(poller))
    channel.close()
    world.comm.Free()
    return plain, hooked
