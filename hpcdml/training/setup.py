"""What every rank has before training: its data, the model, the device, all checked, and agreed on by all ranks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from hpcdml.config import RunOptions, StopOptions, TrainConfig, WireName, flag
from hpcdml.errors import HpcdmlError, UsageError
from hpcdml.mpi import once
from hpcdml.mpi.world import World, broadcast, differs, gather, hosts, same_everywhere
from hpcdml.parameters import FlatModel
from hpcdml.training.data import DataSpec, Opened, Sampler, TaskData, accuracy_counts, default_loss, open_data
from hpcdml.training.data.losses import Loss, cross_entropy
from hpcdml.training.devices import pick_device, set_threads
from hpcdml.training.evaluation import Score, evaluate
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer, make_scheduler

T = TypeVar("T")

WIRE_DTYPES: dict[WireName, str | None] = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
"""``--wire-dtype`` as a ``FlatModel`` takes it."""

_SHARED = ("seed", "chunk_kib", "resume", "checkpoint_seconds", "checkpoint_rounds", "checkpoint_samples")
"""Options of the run itself that have to be the same on every rank."""


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
    sampler: Sampler
    epoch_samples: int

    def evaluate(self) -> Score:
        """The model's score on the held-out data; the model is left in evaluation mode."""
        return evaluate(self.flat.model, self.criterion, self.data)


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
    except (Exception, SystemExit) as error:
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
    together(lambda: compare_options(config, world))
    device, opened = together(lambda: _device_and_data(config, world))
    # Large files are checked by all ranks together, each a part of the rows.
    largest = max(gather(world, together(lambda: opened.check(world.rank, world.size))))
    data = together(lambda: opened.data(largest))
    samples = _digest((data.spec, None if data.sharded else len(data.train)))
    together(lambda: same_everywhere(world, samples, f"--dataset {data.name}: the number or shape of its samples"))
    flat, criterion = together(lambda: _model_and_loss(config, data, device))
    layout, model = flat.layout.digest(), config.model.model
    together(lambda: same_everywhere(world, layout, f"--model {model}: the layout of its parameters"))
    lengths = gather(world, 0 if world.is_server and data.sharded else len(data.train))
    sampler = together(lambda: _sampler_and_trial(config, world, data, flat.model))
    return Setup(data, criterion, flat, sampler, sum(lengths) if data.sharded else lengths[0])


def compare_options(config: TrainConfig, world: World) -> None:
    """Make sure that all ranks mean the same run: each reads the file of options itself, perhaps from its own disk.

    Places and devices may differ from host to host.
    """
    free = {field.name for group in (StopOptions, RunOptions) for field in dataclasses.fields(group)} | {"dataset"}
    for name, value in config.flat().items():
        if name not in free or name in _SHARED:
            same_everywhere(world, _digest(value), f"{flag(name)}: its value")


def _digest(value: object) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()


def _device_and_data(config: TrainConfig, world: World) -> tuple[torch.device, Opened]:
    workers = len(world.workers)
    for worker, factor in config.run.slowdown.items():
        if int(worker) > workers:
            raise UsageError(f"--slowdown {worker}={factor:g}: must name a worker from 1 to {workers}")
    device = pick_device(config.run.device, world)
    set_threads(config.run.threads, config.run.bind, world)
    return device, open_data(config.data, None if world.is_server else world.rank - 1, workers)


def _model_and_loss(config: TrainConfig, data: TaskData, device: torch.device) -> tuple[FlatModel, Loss]:
    name = config.model.model
    model = build_model(name, config.model.model_args, data.spec, config.run.seed)
    criterion = default_loss(config.model.loss, data.spec)
    _try_out(model, criterion, data, name)
    try:
        wire = WIRE_DTYPES[config.policy.wire_dtype]
        return FlatModel(model.to(device), config.run.chunk_kib * 1024, wire), criterion
    except ValueError as error:
        raise UsageError(f"--model {name}: {error}") from error


def _sampler_and_trial(config: TrainConfig, world: World, data: TaskData, model: nn.Module) -> Sampler:
    """The sampler. Optimizer and scheduler are tried on every rank, so that the server tells of mistakes in them."""
    make_scheduler(config.optimizer, make_optimizer(config.optimizer, model))
    options = config.data
    if data.sharded and not world.is_server:
        return data.train.sampler(0, 1, options.batch_size, config.run.seed)
    worker, workers = max(0, world.rank - 1), len(world.workers)
    if len(data.train) < workers:
        many = f"{len(data.train)} training samples cannot be shared by {workers} workers"
        raise UsageError(f"--dataset {data.name}: {many}; each needs at least one")
    return data.train.sampler(worker, workers, options.batch_size, config.run.seed, options.shard_weights)


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
            output, targets = model(inputs.to(device)), targets.to(device)
            _check_scores(output, criterion, data.spec, name)
            loss = criterion(output, targets)
            accuracy_counts(output, targets, data.spec)
    except HpcdmlError:
        raise
    except Exception as error:
        shape = "x".join(map(str, inputs.shape[1:]))
        raise UsageError(f"--model {name}: does not fit inputs of shape {shape}: {_one_line(error)[:200]}") from error
    finally:
        model.train(training)
    if loss.numel() != 1:
        raise UsageError(f"--loss: must return one number, got {loss.numel()}")


def _check_scores(output: torch.Tensor, criterion: Loss, spec: DataSpec, name: str) -> None:
    """The samples of the trial need not have the labels for which a score is missing."""
    axis = 2 if spec.task == "tokens" else 1
    if criterion is cross_entropy and output.ndim > axis and output.shape[axis] < spec.outputs:
        raise UsageError(
            f"--model {name}: gives {output.shape[axis]} scores for a sample; must give one for each of the "
            f"{spec.outputs} classes"
        )


def need_workers(world: World, advice: str) -> None:
    """Make sure that there are workers beside the server.

    Args:
        advice: what to do where a single rank was started.

    Raises:
        UsageError: there are none.
    """
    if world.workers:
        return
    if (tasks := once.tasks_apart()) > 1:
        raise UsageError(
            f"srun started {tasks} tasks, but they do not see each other: srun --mpi=pmix (srun --mpi=list tells what "
            "this Slurm has), or mpirun instead of srun"
        )
    raise UsageError(advice)


def about_ranks(world: World) -> dict[str, str]:
    """What the record says of the ranks. Every rank calls this."""
    about = {f"rank{rank}_host": host for rank, host in enumerate(hosts(world))}
    threads = gather(world, torch.get_num_threads())
    return about | {f"rank{rank}_threads": str(n) for rank, n in enumerate(threads)}


def share_values(world: World, flat: FlatModel) -> None:
    """Give everybody the server's values: version 0, or that from which a run goes on, and all that no round moves.

    As a rule every rank has built the same ones, and they need not travel.
    """
    _share(world, [t for t in flat.static() if t.numel()])
    integers = flat.integers()
    digest = hashlib.sha256(integers.tobytes())
    for values in flat.flats:
        digest.update(values.detach().cpu().view(torch.uint8).numpy().data)
    if differs(world, digest.digest()) is not None:
        _share(world, flat.flats)
        broadcast(world, [integers])
        flat.set_integers(integers)


def _share(world: World, tensors: list[torch.Tensor]) -> None:
    copies = [t.detach().cpu().contiguous() for t in tensors]
    broadcast(world, [copy.reshape(-1).view(torch.uint8).numpy() for copy in copies])
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
