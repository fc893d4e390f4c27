"""The options of a training run: frozen dataclasses, checked once, at the edge.

Each field carries its help text; the command line, the YAML file and ``run.h5`` all derive from these classes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hpcdml.errors import UsageError
from hpcdml.signals import signal_numbers

PolicyName = Literal["bsp", "local-sgd", "diloco", "asp", "ssp", "osp", "losp"]
Weighting = Literal["uniform", "steps", "samples"]
OuterName = Literal["auto", "sgd", "nesterov", "adam"]
SchedulerUnit = Literal["epoch", "step"]
ProgressName = Literal["auto", "hooks", "thread"]
BindName = Literal["none", "cores"]
WireName = Literal["fp32", "bf16", "fp16"]
ResumeName = Literal["never", "auto"]
AmpName = Literal["off", "bf16", "fp16"]

POLICIES: tuple[str, ...] = get_args(PolicyName)


def option(default: Any, text: str) -> Any:
    """A dataclass field that is also an option of the command line: its default and its one-line help."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DataOptions:
    """Data"""

    dataset: str = option(
        "digits",
        "digits, iris, wine, breast_cancer, diabetes, linnerud or characters; HDF5 files with x and y (x_test and "
        "y_test optional): one, several as A.h5,B.h5, a pattern in quotes, or a folder; or package.module:function "
        "that returns (train, test) datasets",
    )
    batch_size: int = option(32, "samples of one minibatch of one worker")
    accumulate: int = option(1, "minibatches whose gradients are summed into one local step")
    test_fraction: float = option(0.2, "share held out for evaluation where the data set names no test part")
    data_memory_mb: float = option(
        256.0, "MB of data that each rank holds in memory; larger files are read by blocks, with buffers of that size"
    )
    shard_weights: list[float] = option([], "relative size of each worker's shard, as in [3,1]; empty: equal shards")


@dataclass(frozen=True)
class ModelOptions:
    """Model"""

    model: str = option(
        "mlp", "mlp, lenet, resnet18, alexnet or transformer; or package.module:function that returns an nn.Module"
    )
    model_args: dict[str, Any] = option({}, "arguments of the model, key=value,... (mlp: hidden, layers)")
    loss: str = option(
        "auto", "cross_entropy, mse, package.module:function(output, target), or auto: by the type of the targets"
    )
    compile: bool = option(False, "train the model through torch.compile")


@dataclass(frozen=True)
class PolicyOptions:
    """Synchronisation"""

    policy: PolicyName = option("losp", "how workers and server synchronise")
    compensation: float = option(1.0, "lambda of losp: share of the unsent local progress kept when adopting")
    local_steps: int | None = option(
        None, "H, local steps before a push (local-sgd, diloco: 8; osp, losp: at least so many, 1; bsp, asp, ssp: 1)"
    )
    staleness: int = option(4, "s of ssp: local steps that a worker may be ahead of the slowest")
    max_local_steps: int | None = option(None, "most local steps without fresh global parameters; none: no bound")
    weighting: Weighting = option(
        "uniform", "weight of a worker's update in a round: equal, or by its steps or samples"
    )
    outer_optimizer: OuterName = option("auto", "the server's optimizer; auto: nesterov for diloco, else sgd")
    outer_lr: float | None = option(None, "rate of the outer optimizer (sgd: 1, nesterov: 0.7, adam: 0.001)")
    outer_momentum: float = option(0.9, "momentum of the nesterov outer optimizer")
    max_update_norm: float | None = option(
        None,
        "refuse an update whose norm for each local step is over so many times the median of the last 64; "
        "none: only one that is not finite",
    )
    wire_dtype: WireName = option(
        "fp32", "type in which parameters and updates travel: fp32, or bf16 or fp16 with error feedback"
    )


@dataclass(frozen=True)
class OptimizerOptions:
    """Worker optimizer"""

    optimizer: str = option("SGD", "any class of torch.optim")
    lr: float = option(0.1, "learning rate of the worker's optimizer")
    optimizer_args: dict[str, Any] = option({}, "further arguments of the optimizer, as in momentum=0.9,nesterov=true")
    scheduler: str | None = option(None, "any class of torch.optim.lr_scheduler")
    scheduler_args: dict[str, Any] = option({}, "arguments of the scheduler, as in step_size=10,gamma=0.1")
    scheduler_unit: SchedulerUnit = option(
        "epoch", "step the scheduler at every epoch of all workers or every local step"
    )
    clip_norm: float | None = option(None, "largest norm of a local step's gradient")
    amp: AmpName = option("off", "mixed precision of the worker's forward pass: off, bf16, or fp16 with loss scaling")


@dataclass(frozen=True)
class StopOptions:
    """When to stop (the first that is met; 10 epochs where none is given)"""

    epochs: float | None = option(None, "passes over the training data, counting the samples of all workers together")
    max_samples: int | None = option(None, "samples seen by all workers together")
    max_seconds: float | None = option(None, "seconds of training")
    target_accuracy: float | None = option(None, "accuracy on the held-out data at which to stop, from 0 to 1")


@dataclass(frozen=True)
class RunOptions:
    """Run"""

    output: str = option("runs/latest", "folder of the run's files: run.h5 and checkpoints")
    overwrite: bool = option(False, "replace a run that is already in the output folder")
    seed: int = option(0, "seed of the model, the shuffling and every random choice")
    eval_seconds: float = option(1.0, "seconds between evaluations on the held-out data; 0: as often as possible")
    checkpoint_seconds: float | None = option(
        None, "seconds between checkpoints of the whole run, from which it can go on; none: none"
    )
    checkpoint_rounds: int | None = option(None, "rounds between checkpoints; none: none")
    checkpoint_samples: int | None = option(None, "samples of all workers together between checkpoints; none: none")
    keep_checkpoints: int = option(3, "how many of the newest checkpoints are kept")
    keep_every: int | None = option(None, "keep every so many-th checkpoint for good; none: only the newest ones")
    resume: ResumeName = option(
        "never", "auto: go on from the newest valid checkpoint in the output folder, if there is one"
    )
    device: str = option("auto", "auto (a GPU for each worker where there are any), cpu, cuda or cuda:N")
    cuda_aware: bool = option(False, "give MPI the GPU's memory itself, where a test shows that this MPI can take it")
    threads: int | None = option(None, "CPU threads of each worker; none: the cores of the node divided by its ranks")
    bind: BindName = option(
        "none",
        "cores: every rank of a node keeps to cores of its own, where there are enough; none: to those it was given",
    )
    chunk_kib: int = option(512, "size in KiB of the pieces in which parameters travel")
    poll_us: int = option(
        200, "least microseconds between two polls within a local step; on slow links they pause longer; 0: no pause"
    )
    progress: ProgressName = option(
        "auto",
        "what polls within a step: hooks of the model, a thread, or auto: hooks, and a thread where they are too few",
    )
    slowdown: dict[str, float] = option({}, "for experiments: worker=factor,... makes a worker's steps so much longer")
    step_seconds: float | None = option(
        None,
        "for experiments: a local step takes so long, as on a device beside which the host is free; none: no device",
    )
    signals: str = option(
        "TERM,INT,USR1", "signals upon which a checkpoint is saved and the run ends with status 75; none: none"
    )
    min_workers: int = option(
        1, "where ranks may die (mpirun --with-ft ulfm): fewer workers than that end the run after a checkpoint"
    )
    respawn: int = option(
        0, "where ranks may die: start new processes in the places of so many dead workers, which join the run"
    )
    worker_timeout: float | None = option(
        600.0,
        "seconds after which the rounds go on without a worker that keeps silent, until it speaks again; none: never",
    )
    debug: bool = option(False, "show tracebacks")

    @property
    def checkpoints(self) -> bool:
        """Whether checkpoints are written at intervals, and at the end."""
        return not (self.checkpoint_seconds is self.checkpoint_rounds is self.checkpoint_samples is None)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. ``from_flat`` builds and checks it."""

    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    stop: StopOptions = field(default_factory=StopOptions)
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> TrainConfig:
        """Build from one flat mapping of option names (with underscores) and check every value.

        Raises:
            UsageError: a name is unknown or a value out of range.
        """
        known = {f.name for _, group in groups() for f in dataclasses.fields(group)}
        for name in values:
            if name not in known:
                raise UsageError(f"{flag(name)}: there is no such option; hpcdml train --help lists them")
        parts = {}
        for part, group in groups():
            names = [f.name for f in dataclasses.fields(group)]
            parts[part] = group(**{n: values[n] for n in names if n in values})
        config = cls(**parts)
        check(config)
        return config

    def flat(self) -> dict[str, Any]:
        """All options as one flat mapping, the inverse of ``from_flat``."""
        return {
            f.name: getattr(getattr(self, part), f.name) for part, group in groups() for f in dataclasses.fields(group)
        }


def groups() -> list[tuple[str, type]]:
    """The option groups as (attribute of ``TrainConfig``, dataclass), in the order of the help text."""
    return [
        ("data", DataOptions),
        ("model", ModelOptions),
        ("policy", PolicyOptions),
        ("optimizer", OptimizerOptions),
        ("stop", StopOptions),
        ("run", RunOptions),
    ]


def flag(name: str) -> str:
    """The option's spelling on the command line."""
    return "--" + name.replace("_", "-")


def check(config: TrainConfig) -> None:
    """Check every value's range.

    Raises:
        UsageError: with the option, the value and what would be right.
    """
    values = config.flat()

    def need(name: str, right: bool, what: str) -> None:
        if not right:
            raise UsageError(f"{flag(name)} {values[name]}: must be {what}")

    for name in ("batch_size", "accumulate", "chunk_kib", "keep_checkpoints", "min_workers"):
        need(name, values[name] >= 1, "at least 1")
    at_least_one = ("local_steps", "max_local_steps", "max_samples", "threads")
    for name in (*at_least_one, "checkpoint_rounds", "checkpoint_samples", "keep_every"):
        need(name, values[name] is None or values[name] >= 1, "at least 1")
    least, most = values["local_steps"] or 1, values["max_local_steps"]
    need("max_local_steps", most is None or most >= least, f"at least --local-steps, {least}")
    positive = (
        "lr",
        "clip_norm",
        "epochs",
        "max_seconds",
        "checkpoint_seconds",
        "outer_lr",
        "step_seconds",
        "worker_timeout",
    )
    for name in (*positive, "data_memory_mb", "worker_timeout"):
        value = values[name]
        need(name, value is None or (math.isfinite(value) and value > 0), "a finite number above 0")
    most_norm = values["max_update_norm"]
    need("max_update_norm", most_norm is None or (math.isfinite(most_norm) and most_norm > 1), "a number above 1")
    for name in ("staleness", "poll_us", "seed", "respawn"):
        need(name, values[name] >= 0, "0 or more")
    need("eval_seconds", math.isfinite(values["eval_seconds"]) and values["eval_seconds"] >= 0, "0 or more")
    signal_numbers(values["signals"])
    need("test_fraction", 0 < values["test_fraction"] < 1, "between 0 and 1, both excluded")
    need("compensation", 0 <= values["compensation"] <= 2, "from 0 to 2")
    need("outer_momentum", 0 <= values["outer_momentum"] < 1, "from 0 to below 1")
    target = values["target_accuracy"]
    need("target_accuracy", target is None or 0 < target <= 1, "above 0 and at most 1 (0.97, not 97)")
    choices = {
        "policy": PolicyName,
        "weighting": Weighting,
        "outer_optimizer": OuterName,
        "wire_dtype": WireName,
        "amp": AmpName,
        "progress": ProgressName,
        "resume": ResumeName,
        "bind": BindName,
        "scheduler_unit": SchedulerUnit,
    }
    for name, kind in choices.items():
        need(name, values[name] in get_args(kind), "one of " + ", ".join(get_args(kind)))
    need("shard_weights", all(math.isfinite(w) and w > 0 for w in values["shard_weights"]), "numbers above 0")
    for worker, factor in values["slowdown"].items():
        need("slowdown", str(worker).isdigit() and int(worker) >= 1, "worker=factor, workers counted from 1")
        need(
            "slowdown",
            isinstance(factor, (int, float)) and math.isfinite(factor) and factor >= 1,
            "factors of 1 or more",
        )
