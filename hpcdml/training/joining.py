"""The program of a process that takes the place of a worker that has died: ``python -m hpcdml.training.joining``.

The server starts it. It sets itself up as every worker does, but without the others, says that it is there, and begins
at the version that it is given then.
"""

from __future__ import annotations

import dataclasses
import sys
import time

from hpcdml.config import TrainConfig
from hpcdml.errors import MachineError
from hpcdml.mpi import faults
from hpcdml.mpi.spawning import meet
from hpcdml.mpi.world import failure, finish
from hpcdml.training.rescue import rescue
from hpcdml.training.setup import AgreedFailure, set_up
from hpcdml.training.stop_signals import StopSignals
from hpcdml.training.worker_job import WorkerJob


def main() -> int:
    """Join, train and end with the others; returns the exit status of the run."""
    signals = StopSignals()
    alone, world, given = meet()
    # By the clocks of the hosts, as the server does not wait for questions while it serves.
    zero = time.perf_counter() - (time.time() - given["began"])
    try:
        config = TrainConfig.from_flat(given["config"])
        signals.watch(config.run.signals)
        setup = dataclasses.replace(set_up(config, alone), epoch_samples=given["epoch_samples"])
        job = WorkerJob(config, world, setup, given["part"], None, signals)
        job.join()
        try:
            job.run(zero)
        except (faults.ServerLost, faults.NoWord) as error:
            raise MachineError(f"{error}{rescue(job.state, config.run.output)}") from error
        return finish(world, 0, ())
    except AgreedFailure:
        faults.leave(f"hpcdml: rank {world.rank} on {world.host}: the new process cannot train")
    except (Exception, SystemExit) as error:
        faults.leave(failure(world, error))
    finally:
        signals.unwatch()
    return 1


if __name__ == "__main__":
    sys.exit(main())
