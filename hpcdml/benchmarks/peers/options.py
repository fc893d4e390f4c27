"""What a peer is told, as one JSON object on its command line."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from hpcdml.config import DataOptions, ModelOptions, OptimizerOptions, StopOptions, TrainConfig, flag
from hpcdml.errors import UsageError

SIDES = ("ddp", "ddp-fp16", "ddp-bf16", "ddp-powersgd", "post-local-sgd", "alone")
"""What can train: DistributedDataParallel plain and with a communication hook, PostLocalSGD, and, as the physical
limit, the same ranks without communication."""

_OF_TRAIN = {
    *(
        f.name
        for group in (DataOptions, ModelOptions, OptimizerOptions, StopOptions)
        for f in dataclasses.fields(group)
    ),
    *("seed", "threads", "eval_seconds", "slowdown"),
}


@dataclass(frozen=True)
class PeerOptions:
    """The options of a peer.

    Attributes:
        side: one of ``SIDES``.
        train: options of ``hpcdml train`` by name: those of data, model, optimizer and when to stop, and seed, threads,
            eval_seconds and slowdown. A target accuracy does not stop a peer.
        meeting: a file that all hosts see, or HOST:PORT of rank 0.
        result: JSON file that rank 0 writes.
        state: HDF5 file for the final parameters of rank 0; None: they are not kept.
        bucket_mb: MiB of gradients that ddp, ddp-fp16 and ddp-bf16 send at once; None: PyTorch's default.
        matrix_rank: rank of ddp-powersgd's approximation of a gradient matrix.
        start_powersgd: steps of ddp-powersgd with whole gradients, before it compresses them; 2 or more.
        local_steps: H of post-local-sgd, the steps between two averages of the parameters.
        warmup_steps: first steps of post-local-sgd, in which gradients are averaged.
    """

    side: str
    train: dict[str, Any] = field(default_factory=dict)
    meeting: str = ""
    result: str = ""
    state: str | None = None
    bucket_mb: float | None = None
    matrix_rank: int = 1
    start_powersgd: int = 2
    local_steps: int = 8
    warmup_steps: int = 10

    @classmethod
    def from_json(cls, text: str) -> PeerOptions:
        """The inverse of ``to_json``; checks every value."""
        options = cls(**json.loads(text))
        options.config()
        return options

    def to_json(self) -> str:
        """All options as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    def config(self) -> TrainConfig:
        """Check every value and return the options of ``train`` as hpcdml has them.

        Raises:
            UsageError: an option is none of a peer's, or its value is wrong.
        """

        def need(name: str, right: bool, what: str) -> None:
            if not right:
                raise UsageError(f"{flag(name)} {getattr(self, name)}: must be {what}")

        need("side", self.side in SIDES, "one of " + ", ".join(SIDES))
        need("matrix_rank", self.matrix_rank >= 1, "at least 1")
        need("local_steps", self.local_steps >= 1, "at least 1")
        need("bucket_mb", self.bucket_mb is None or 0 < self.bucket_mb < math.inf, "a finite number above 0")
        need("start_powersgd", self.start_powersgd >= 2, "at least 2, as PyTorch's buckets change after the first step")
        need("warmup_steps", self.warmup_steps >= 0, "0 or more")
        for name in self.train:
            if name not in _OF_TRAIN:
                raise UsageError(f"{flag(name)}: is no option of hpcdml train that a peer has")
        config = TrainConfig.from_flat(self.train)
        stop = config.stop
        bounds = (stop.epochs, stop.max_samples, stop.max_seconds)
        if stop.target_accuracy is not None and all(bound is None for bound in bounds):
            raise UsageError("--target-accuracy: does not stop a peer; give max_samples, max_seconds or epochs as well")
        return config
