"""Which part a rank of an MPI job takes in a session. Imported only there, as it needs MPI."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from hpcdml.config import TrainConfig
from hpcdml.session.loop_state import Stateful
from hpcdml.session.over import OverPart
from hpcdml.session.places import Places
from hpcdml.session.ranks import Meeting, described
from hpcdml.session.server import Evaluate, ServerPart
from hpcdml.session.worker import WorkerPart
from hpcdml.training.rescue import rescue
from hpcdml.training.setup import about_ranks
from hpcdml.training.stop_signals import StopSignals

Part = ServerPart | WorkerPart | OverPart


def take_part(
    configure: Callable[[], TrainConfig],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    evaluation: Evaluate | None,
    stateful: Mapping[str, Stateful],
    places: Places,
    debug: bool,
) -> tuple[Part, Meeting]:
    """Meet all ranks and start this one's part. Every rank calls this.

    Raises:
        SystemExit: something is wrong on any rank; one line has said so.
    """
    meeting = Meeting(configure, debug)
    try:
        config, world = meeting.config, meeting.world
        home = next((p.device for p in model.parameters()), torch.device("cpu"))
        flat = meeting.flatten(model)
        about = about_ranks(world)
        record = described(config, model, optimizer, evaluation is not None)
        start = meeting.begin(record, flat)
        signals = StopSignals()

        def part() -> Part:
            if start.over:
                return OverPart(world, config.run.seed)
            if world.is_server:
                made: Part = ServerPart(record, world, flat, optimizer, evaluation, about, home, start.found, signals)
            else:
                made = WorkerPart(config, world, flat, optimizer, start.part, stateful, places, signals)
            signals.watch(config.run.signals)
            return made

        made = meeting.make(part)
        if isinstance(made, WorkerPart):
            state = made.state
            meeting.rescuer = lambda: rescue(state, config.run.output)
        made.start(meeting.zero())
    except Exception as error:
        meeting.fail(error)
    return made, meeting
