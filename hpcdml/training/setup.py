"""What every rank has before training: its data, the model, the device, all checked, and agreed on by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from hpcdml.config import TrainConfig
from hpcdml.errors import HpcdmlError, UsageError
from hpcdml.mpi import once
from hpcdml.mpi.world import World, broadcast, gather, same_everywhere
from hpcdml.parameters import FlatModel
from hpcdml.training.data import ShardSampler, TaskData, default_loss, load_data
from hpcdml.training.data.losses import Loss
from hpcdml.training.devices import pick_device, set_threads
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer, make_scheduler

T = TypeVar("T")


class AgreedFailure(Exception):
    """All ranks know of a failure, and its line is out; ``status`` is the exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Setup:
    """The parts of a run that are alike on every rank.

    Attributes:
        data: this rank's data.
        criterion: the loss.
        flat: the model, on this rank's device.
        sampler: the order of this worker's samples (on the server, that of the first worker).
        epoch_samples: training samples of all workers together in one epoch.
    """

    data: TaskData
    criterion: Loss
    flat: FlatModel
    sampler: ShardSampler
    epoch_samples: int


def together(stage: Callable[[], T]) -> T:
    """Do a stage on every rank.

    Raises:
        AgreedFailure: on every rank, if the stage failed on any; the line of the lowest such rank has been printed.
    """
    result: list[T] = []
    status, line = 0, ""
    try:
        result.append(stage())
    except HpcdmlError as error:
        status, line = error.status, f"hpcdml: {_one_line(error)}"
    except Exception as error:
        status, line = 1, f"hpcdml: failed: {type(error).__name__}: {_one_line(error)}"
    agreed = once.settle(status, line)
    if agreed:
        raise AgreedFailure(agreed)
    return result[0]


def set_up(config: TrainConfig, world: World) -> Setup:
    """Build this rank's part of the run.

    Raises:
        AgreedFailure: on every rank, if something is wrong on any.
    """
    device, data = together(lambda: _device_and_data(config, world))
    flat, criterion = together(lambda: _model_and_loss(config, data, device))
    together(lambda: same_everywhere(world, flat.layout.digest(), f"--model {config.model.model}: its layout"))
    lengths = gather(world, 0 if world.is_server and data.sharded else len(data.train))
    sampler = together(lambda: _sampler_and_trial(config, world, data, flat.model))
    _share_static(world, flat)
    return Setup(data, criterion, flat, sampler, sum(lengths) if data.sharded else lengths[0])


def _device_and_data(config: TrainConfig, world: World) -> tuple[torch.device, TaskData]:
    workers = len(world.workers)
    for worker in config.run.slowdown:
        if int(worker) > workers:
            raise UsageError(f"--slowdown {worker}=...: must name a worker from 1 to {workers}")
    device = pick_device(config.run.device, world)
    set_threads(config.run.threads, world)
    return device, load_data(config.data, None if world.is_server else world.rank - 1, workers)


def _model_and_loss(config: TrainConfig, data: TaskData, device: torch.device) -> tuple[FlatModel, Loss]:
    name = config.model.model
    model = build_model(name, config.model.model_args, data.spec, config.run.seed)
    criterion = default_loss(config.model.loss, data.spec)
    _try_out(model, criterion, data, name)
    try:
        return FlatModel(model.to(device), config.run.chunk_kib * 1024), criterion
    except ValueError as error:
        raise UsageError(f"--model {name}: {error}") from error


def _sampler_and_trial(config: TrainConfig, world: World, data: TaskData, model: nn.Module) -> ShardSampler:
    """The sampler. Optimizer and scheduler are tried on every rank, so that the server tells of mistakes in them."""
    make_scheduler(config.optimizer, make_optimizer(config.optimizer, model))
    options = config.data
    if data.sharded and not world.is_server:
        return ShardSampler(len(data.train), 0, 1, options.batch_size, config.run.seed)
    worker, workers = max(0, world.rank - 1), len(world.workers)
    return ShardSampler(len(data.train), worker, workers, options.batch_size, config.run.seed, options.shard_weights)


def _try_out(model: nn.Module, criterion: Loss, data: TaskData, name: str) -> None:
    """Send two samples through model and loss, so that what does not fit is told before training.

    Raises:
        UsageError: the model raised, or its output does not fit the targets.
    """
    inputs, targets = data.test.batch(np.arange(min(2, len(data.test))))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            loss = criterion(model(inputs.to(device)), targets.to(device))
    except HpcdmlError:
        raise
    except Exception as error:
        shape = "x".join(map(str, inputs.shape[1:]))
        raise UsageError(f"--model {name}: does not fit inputs of shape {shape}: {_one_line(error)[:200]}") from error
    finally:
        model.train(training)
    if loss.numel() != 1:
        raise UsageError(f"--loss: must return one number, got {loss.numel()}")


def _share_static(world: World, flat: FlatModel) -> None:
    """Give everybody the server's frozen parameters and boolean buffers, which no round moves."""
    tensors = [t for t in flat.static() if t.numel()]
    copies = [t.detach().cpu().contiguous() for t in tensors]
    broadcast(world, [copy.reshape(-1).view(torch.uint8).numpy() for copy in copies])
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
