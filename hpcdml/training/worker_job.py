"""A worker's part of a run: the parts of the worker put together."""

from __future__ import annotations

import sys
from typing import Any

import torch

from hpcdml.config import TrainConfig
from hpcdml.mpi.cuda_aware import why_not
from hpcdml.mpi.worker_channel import WorkerChannel
from hpcdml.mpi.world import World
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.worker import Worker
from hpcdml.training.compiling import compile_step
from hpcdml.training.local_step import LocalStep, batches
from hpcdml.training.optimizers import make_optimizer, make_scheduler
from hpcdml.training.precision import Precision
from hpcdml.training.random_state import random_state, set_random_state
from hpcdml.training.replay import WorkerScript
from hpcdml.training.setup import Setup
from hpcdml.training.shares import Shares
from hpcdml.training.staging import make_staging
from hpcdml.training.step_state import StepState
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_loop import WorkerLoop
from hpcdml.training.worker_state import WorkerState

PATIENCE, LEAST_PATIENCE = 3.0, 30.0
"""A worker gives the server up after so many times ``--worker-timeout``, and so many seconds at least: the server may
be waiting for another worker, and TCP needs a while after a cut."""


class WorkerJob:
    """Trains in one run; nothing is sent before ``run``.

    Args:
        part: what ``give_states`` gave; None: the run is a new one.
        script: when a recorded run took in messages, which this one repeats; None: it is a run of its own.
        signals: which tell that the run is to end.

    Raises:
        UsageError: the saved state is that of another run.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        setup: Setup,
        part: dict[str, Any] | None,
        script: WorkerScript | None,
        signals: StopSignals,
    ) -> None:
        flat = setup.flat
        self.device = flat.device
        # Dropout and the like differ between workers; the model itself was built from the run's seed.
        torch.manual_seed(config.run.seed * 1_000_003 + world.rank)
        optimizer = make_optimizer(config.optimizer, flat.model)
        step = LocalStep(
            model=flat.model,
            criterion=setup.criterion,
            optimizer=optimizer,
            scheduler=make_scheduler(config.optimizer, optimizer),
            batches=batches(setup.data.train.feed(setup.sampler), flat.device),
            precision=Precision(config.optimizer.amp, flat.device),
            accumulate=config.data.accumulate,
            clip_norm=config.optimizer.clip_norm,
            epoch_samples=setup.epoch_samples if config.optimizer.scheduler_unit == "epoch" else None,
            slowdown=float(config.run.slowdown.get(str(world.rank), 1.0)),
            seconds=config.run.step_seconds,
        )
        if config.model.compile:
            start = setup.sampler.state
            step = compile_step(step, *step.batches())
            setup.sampler.restore(start)
        staging = make_staging(flat.layout, flat.device, direct(config, world, flat.device))
        machine = Worker(world.rank, make_policy(config.policy), len(world.workers))
        self.channel = WorkerChannel(
            world.comm, world.run_id, staging.pull, staging.push, staging.ready, staging.landed
        )
        training = StepState(step, setup.sampler, flat.device)
        self.state = WorkerState(machine, flat, self.channel, staging, training)
        if part is not None:
            self.state.go_on(part)
        # Last, as everything above may draw random numbers.
        self.random = part["state"]["random"] if part is not None and part["own"] else random_state(flat.device)
        poll = config.run.poll_us * 1e-6
        self.loop = WorkerLoop(
            machine,
            flat,
            self.channel,
            staging,
            step.model,
            poll,
            config.run.progress,
            self.state,
            config.run.checkpoints,
            script,
            signals,
            Shares(config, setup.data, training, flat.device, world.rank, len(world.workers)),
            patience(config),
            step.schedule,
            step.blank.restore_unless_finite,
        )
        self.step = step

    def join(self) -> None:
        """In a process that is new in the run: it begins at the version that it is given."""
        self.state.join()

    def run(self, start: float) -> int:
        """Train until the server says stop and everything has been sent."""
        set_random_state(self.random, self.device)
        self.loop.run(start, self.step)
        self.channel.close()
        return 0


def patience(config: TrainConfig) -> float | None:
    """For how many seconds a worker waits for an answer of the server; None: without end."""
    timeout = config.run.worker_timeout
    return None if timeout is None else max(LEAST_PATIENCE, PATIENCE * timeout)


def direct(config: TrainConfig, world: World, device: torch.device) -> bool:
    """Whether MPI is given the GPU's memory: asked for, and it passes the test."""
    if not config.run.cuda_aware or device.type != "cuda":
        return False
    reason = why_not(device.index or 0)
    if reason is not None:
        text = f"hpcdml: rank {world.rank} on {world.host}: --cuda-aware: {reason}; going through host memory"
        print(text, file=sys.stderr, flush=True)
    return reason is None
