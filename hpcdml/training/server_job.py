"""Rank 0's part of a run: the parts of the server put together, and the result left behind."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hpcdml.config import TrainConfig
from hpcdml.errors import PREEMPTED, UsageError
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.mpi.world import World, versions
from hpcdml.observability import resources
from hpcdml.observability.environment import environment
from hpcdml.observability.progress import Progress
from hpcdml.parameters import FlatModel
from hpcdml.protocol.policies import make_policy
from hpcdml.protocol.server import Server
from hpcdml.storage.checkpoint_folder import discard_newer
from hpcdml.storage.run_file import CHECKPOINT_FOLDER, RunWriter
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import EVALUATIONS
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.bounds import sample_bound, stop_bounds
from hpcdml.training.checkpoints import Checkpoints
from hpcdml.training.evaluation import Score
from hpcdml.training.outer import make_outer
from hpcdml.training.records import COLUMNS
from hpcdml.training.replacements import Replacements
from hpcdml.training.replay import ServerScript
from hpcdml.training.resumption import Resumption, is_own_loop
from hpcdml.training.server_loop import ServerLoop
from hpcdml.training.snapshots import Snapshots, Version
from hpcdml.training.state import state_arrays, state_types
from hpcdml.training.stop_signals import StopSignals


class Served(Protocol):
    """What is trained, as far as the server has to know it."""

    @property
    def flat(self) -> FlatModel:
        """The model, on the CPU."""

    @property
    def epoch_samples(self) -> int | None:
        """Training samples of all workers together in one epoch; None: not known."""

    def evaluate(self) -> Score | None:
        """The score of the model as it is now, which may be left in evaluation mode; None: it is not evaluated."""


class ServerJob:
    """Serves one run. The constructor makes ``run.h5``; nothing is sent before ``run``.

    Args:
        about: what the record says of the ranks.
        resumption: where the run goes on from; None: it is a new one.
        signals: which tell that the run is to end.
        script: what a recorded run did, which this one repeats; None: it is a run of its own.

    Raises:
        UsageError, MachineError: the output folder cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        served: Served,
        about: Mapping[str, str],
        resumption: Resumption | None,
        script: ServerScript | None,
        signals: StopSignals,
    ) -> None:
        self.config = config
        self.world = world
        self.served = served
        self.folder = Path(config.run.output)
        self.resumption = resumption
        self.script = script
        self.signals = signals
        self.joined: dict[int, Any] = {}
        max_samples, epochs = sample_bound(config.stop, served.epoch_samples)
        self.policy = make_policy(config.policy)
        bound = max_samples if script is None else None
        limit = config.policy.max_update_norm
        self.machine = Server(self.policy, world.workers, config.policy.weighting, bound, limit)
        self.about = environment() | versions() | dict(about)
        self.options = config.flat() | {"epochs": epochs}
        types = state_types(served.flat.model)
        earlier = None
        if resumption is not None:
            resumption.go_on(self.machine)
            earlier = resumption.rows()
            discard_newer(self.folder / CHECKPOINT_FOLDER, resumption.checkpoint.version)
        overwrite = config.run.overwrite or (config.run.resume == "auto" and _unfinished(self.folder))
        self.writer = RunWriter.create(
            self.folder, self.options, self.about, len(world.workers), types, overwrite, earlier
        )

    def run(self, start: float) -> int:
        """Serve until all workers have ended, then write the result; returns the exit status of the run.

        Workers that have not died wait for ``finish``.

        Raises:
            HpcdmlError: a file could not be written.
        """
        config, world, flat, machine = self.config, self.world, self.served.flat, self.machine
        aggregator = Aggregator(flat.layout, make_outer(config.policy, self.policy, flat.layout.full()))
        if self.resumption is None:
            flat.values_into(aggregator.x)
        else:
            self.resumption.load_server(flat, aggregator)
        integers = flat.integers()
        channel = ServerChannel(world.comm, world.run_id, flat.layout, world.workers, len(COLUMNS))
        snapshots = Snapshots(flat, self._score, config.run.eval_seconds)
        progress = Progress(machine.max_samples, config.stop.max_seconds)
        records = dict.fromkeys(world.workers, 0)
        with self.writer as writer:
            if self.resumption is None:
                writer.event(0.0, 0, "started", f"{config.policy.policy}, {len(world.workers)} workers")
            else:
                kind = "resumed" if self.resumption.exact else "restarted"
                writer.event(self.resumption.seconds, 0, kind, self.resumption.told())
            checkpoints = Checkpoints(
                machine,
                channel,
                aggregator,
                writer,
                flat,
                self.folder,
                config.run,
                (self.options, self.about),
                records,
                stop_bounds(config.stop, self.served.epoch_samples),
            )
            keep = config.run.checkpoints
            loop = ServerLoop(
                machine,
                channel,
                aggregator,
                snapshots,
                checkpoints,
                writer,
                progress,
                config.stop,
                integers,
                records,
                keep,
                self.signals,
                {rank: self.about[f"rank{rank}_host"] for rank in range(world.size)},
                config.run.min_workers,
                config.run.worker_timeout,
                self.script,
            )
            if config.run.respawn:

                def joined(rank: int) -> None:
                    records[rank] = 0
                    loop.membership.joined(rank)

                loop.replacements = Replacements(
                    machine,
                    channel,
                    world,
                    config.run.respawn,
                    loop.schedule.answering,
                    lambda rank: self._given(loop, rank),
                    joined,
                )
            cpu = resources.cpu_seconds()
            loop.run(start)
            if loop.replacements is not None:
                loop.replacements.close()
            seconds, cpu = loop.seconds, resources.cpu_seconds() - cpu
            if keep and (loop.preempted is None or checkpoints.wanted):
                checkpoints.final(seconds, integers, machine.stopping and loop.preempted is None)
            elif checkpoints.wanted and loop.preempted is not None:
                why = "a worker had ended already; a run with checkpoints at intervals has one at its end as well"
                progress.message(f"hpcdml: warning: no checkpoint was saved: {why}")
            version, x = machine.version, aggregator.x
            if self.script is not None and self.script.kept is not None and self.script.integers is not None:
                version, x, integers = self.script.last, self.script.kept, self.script.integers
            snapshots.final(Version(version, seconds, machine.samples), x, integers)
            progress.close()
            if loop.preempted is not None:
                progress.message(self._ended_early(loop.preempted, checkpoints.saved))
            used = resources.Resources(cpu, resources.peak_bytes())
            writer.event(seconds, 0, resources.EVENT, used.text())
            writer.write_parameters(state_arrays(flat.model), seconds)
        self.joined = channel.joined
        channel.close(machine.silent)
        if not machine.live:
            print("hpcdml: no worker is left; the result is what there was before", file=sys.stderr, flush=True)
            return 1
        return 0 if loop.preempted is None else PREEMPTED

    def _ended_early(self, why: str, saved: Path | None) -> str:
        again = f"hpcdml resume {shlex.quote(str(self.folder))} goes on"
        if is_own_loop(self.config.flat()):
            again = 'the script goes on when it is started again with Session(resume="auto"),'
        where = f"{again} from {saved.name}" if saved is not None else "no checkpoint was saved"
        return f"hpcdml: {self.folder}: ended early ({why}), with status {PREEMPTED}; {where}"

    def _given(self, loop: ServerLoop, rank: int) -> dict[str, Any]:
        """What a new process in the place of a rank needs."""
        machine, epoch = self.machine, self.served.epoch_samples
        began = time.time() - loop.seconds
        # Its pushes and steps are counted on from those of the one that has died.
        steps, samples = loop.tally.done.get(rank, (0, 0))
        part = {
            **{"exact": False, "own": False, "state": None, "same_workers": False},
            **{"version": machine.version, "seen": machine.samples, "pass": machine.samples / epoch if epoch else 0.0},
            **{"clock": max(steps, machine.clock[rank]), "samples": samples, "sequence": machine.sequence[rank]},
        }
        hosts = list(loop.membership.hosts.values())
        return {"config": self.config.flat(), "part": part, "began": began, "epoch_samples": epoch, "hosts": hosts}

    def _score(self, version: Version) -> float:
        begin = time.perf_counter()
        score = self.served.evaluate()
        if score is None:
            return math.nan
        took = time.perf_counter() - begin
        row = (version.number, version.seconds, version.samples, score.accuracy, score.loss, took)
        self.writer.append(EVALUATIONS.name, EVALUATIONS.rows(row))
        return score.accuracy


def _unfinished(folder: Path) -> bool:
    """Whether the folder holds a run that came to no end: one without checkpoints may as well begin anew."""
    try:
        return not RunReader(folder).finished
    except UsageError:
        return False
