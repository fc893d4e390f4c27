"""Which part a rank of an MPI job takes in a session. Imported only there, as it needs MPI."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from hpcdml.config import TrainConfig
from hpcdml.session.ranks import Meeting, described
from hpcdml.session.server import Evaluate, ServerPart
from hpcdml.session.worker import WorkerPart
from hpcdml.training.setup import about_ranks


def take_part(
    configure: Callable[[], TrainConfig],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    evaluation: Evaluate | None,
    debug: bool,
) -> tuple[ServerPart | WorkerPart, Meeting]:
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

        def part() -> ServerPart | WorkerPart:
            if not world.is_server:
                return WorkerPart(config, world, flat, optimizer)
            record = described(config, model, optimizer, evaluation is not None)
            return ServerPart(record, world, flat, optimizer, evaluation, about, home)

        made = meeting.make(part)
        made.start(time.perf_counter())
    except Exception as error:
        meeting.fail(error)
    return made, meeting
