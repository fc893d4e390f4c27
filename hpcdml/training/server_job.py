"""Rank 0's part of a run: the parts of the server put together, and the result left behind."""

from __future__ import annotations

import time
from pathlib import Path

from hpcdml.config import TrainConfig
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.mpi.world import World, versions
from hpcdml.observability import resources
from hpcdml.observability.environment import environment
from hpcdml.observability.progress import Progress
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.server import Server
from hpcdml.storage.parameters_file import write_state
from hpcdml.storage.run_file import CHECKPOINT_FOLDER, RunWriter
from hpcdml.storage.tables import EVALUATIONS
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.bounds import sample_bound
from hpcdml.training.evaluation import evaluate
from hpcdml.training.outer import make_outer
from hpcdml.training.records import COLUMNS
from hpcdml.training.server_loop import ServerLoop
from hpcdml.training.setup import Setup
from hpcdml.training.snapshots import Snapshots, Version
from hpcdml.training.state import state_arrays, state_types


class ServerJob:
    """Serves one run. The constructor makes ``run.h5``; nothing is sent before ``run``.

    Args:
        hosts: host name of every rank.

    Raises:
        UsageError, MachineError: the output folder cannot be used.
    """

    def __init__(self, config: TrainConfig, world: World, setup: Setup, hosts: list[str]) -> None:
        self.config = config
        self.world = world
        self.setup = setup
        self.folder = Path(config.run.output)
        self.max_samples, epochs = sample_bound(config.stop, setup.epoch_samples)
        about = environment() | versions() | {f"rank{rank}_host": host for rank, host in enumerate(hosts)}
        options = config.flat() | {"epochs": epochs}
        types = state_types(setup.flat.model)
        self.writer = RunWriter.create(self.folder, options, about, len(world.workers), types, config.run.overwrite)

    def run(self, start: float) -> None:
        """Serve until all workers have ended, then write the result.

        Raises:
            HpcdmlError: a file could not be written.
        """
        config, world, flat = self.config, self.world, self.setup.flat
        policy = make_policy(config.policy)
        aggregator = Aggregator(flat.layout, make_outer(config.policy, policy, flat.layout.full()))
        flat.values_into(aggregator.x)
        aggregator.start()
        integers = flat.integers()
        machine = Server(policy, world.workers, config.policy.weighting, self.max_samples)
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, len(COLUMNS))
        snapshots = Snapshots(flat, self._score, self._save, config.run.eval_seconds, config.run.checkpoint_seconds)
        progress = Progress(self.max_samples, config.stop.max_seconds)
        with self.writer as writer:
            writer.event(0.0, 0, "started", f"{config.policy.policy}, {len(world.workers)} workers")
            loop = ServerLoop(machine, channel, aggregator, snapshots, writer, progress, config.stop, integers)
            cpu = resources.cpu_seconds()
            loop.run(start)
            seconds, cpu = loop.seconds, resources.cpu_seconds() - cpu
            snapshots.final(Version(machine.version, seconds, machine.samples), aggregator.x, integers)
            progress.close()
            used = resources.Resources(cpu, resources.peak_bytes())
            writer.event(seconds, 0, resources.EVENT, used.text())
            writer.write_parameters(state_arrays(flat.model), seconds)
        channel.close()

    def _score(self, version: Version) -> float:
        begin = time.perf_counter()
        score = evaluate(self.setup.flat.model, self.setup.criterion, self.setup.data)
        took = time.perf_counter() - begin
        row = (version.number, version.seconds, version.samples, score.accuracy, score.loss, took)
        self.writer.append(EVALUATIONS.name, EVALUATIONS.rows(row))
        return score.accuracy

    def _save(self, version: Version) -> None:
        path = self.folder / CHECKPOINT_FOLDER / f"step-{version.number:08d}.h5"
        path.parent.mkdir(exist_ok=True)
        about = {"version": version.number, "seconds": version.seconds, "samples": version.samples}
        write_state(path, state_arrays(self.setup.flat.model), about)
