"""The training loop of a peer: hpcdml's data, model, loss, optimizer and order of samples, around a ``Side``."""

from __future__ import annotations

import math
import os
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hpcdml.benchmarks.peers.clock import Clock
from hpcdml.benchmarks.peers.copies import Copies
from hpcdml.benchmarks.peers.options import PeerOptions
from hpcdml.benchmarks.peers.pace import Pace
from hpcdml.benchmarks.peers.sides import Side, make_side
from hpcdml.launcher import Launched
from hpcdml.storage.parameters_file import write_state
from hpcdml.training.bounds import sample_bound
from hpcdml.training.data import default_loss, load_data
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer, make_scheduler
from hpcdml.training.state import state_arrays


class Prepared:
    """All that this rank trains with, before it has met the others.

    Raises:
        UsageError: a wrong option.
    """

    def __init__(self, options: PeerOptions, place: Launched) -> None:
        self.options, self.place = options, place
        self.config = config = options.config()
        seed = config.run.seed
        torch.set_num_threads(config.run.threads or max(1, len(os.sched_getaffinity(0)) // place.local))
        self.data = load_data(config.data, place.rank, place.size)
        self.model = build_model(config.model.model, config.model.model_args, self.data.spec, seed)
        self.criterion = default_loss(config.model.loss, self.data.spec)
        train, size, batch = self.data.train, place.size, config.data.batch_size
        if self.data.sharded:
            self.sampler = train.sampler(0, 1, batch, seed)
        else:
            self.sampler = train.sampler(place.rank, size, batch, seed, config.data.shard_weights)
        self.optimizer = make_optimizer(config.optimizer, self.model)
        self.scheduler = make_scheduler(config.optimizer, self.optimizer)
        slowdown = float(config.run.slowdown.get(str(place.rank + 1), 1.0))
        seconds, accumulate = config.run.step_seconds, config.data.accumulate
        self.pace = Pace(self.model, self.optimizer, slowdown, seconds, accumulate)


def train(prepared: Prepared) -> dict[str, Any] | None:
    """Train with the others; the process group is there.

    Returns:
        On rank 0 what ``run_peer`` returns; None on the others.
    """
    options, config, place, data = prepared.options, prepared.config, prepared.place, prepared.data
    side = make_side(options, prepared.model, prepared.optimizer)
    batches, lengths = _gather([prepared.sampler.batch_size * config.data.accumulate, len(data.train)])
    epoch = int(sum(lengths) if data.sharded else lengths[0])
    together = int(sum(batches))
    bound, _ = sample_bound(config.stop, epoch)
    last = math.inf if bound is None else math.ceil(bound / together)
    clock = Clock(config.stop.max_seconds, side.coupled)
    copies = Copies(prepared.model, config.run.eval_seconds)
    step = _step(prepared, side, epoch if config.optimizer.scheduler_unit == "epoch" else None, together)
    # Dropout and the like differ between workers, by hpcdml's own rule.
    torch.manual_seed(config.run.seed * 1_000_003 + place.rank + 1)
    prepared.model.train()
    took = array("d")
    steps = 0
    dist.barrier()
    begin = time.perf_counter()
    while steps < last:
        started = time.perf_counter()
        step(steps)
        took.append(time.perf_counter() - started)
        steps += 1
        elapsed = time.perf_counter() - begin - copies.spent
        if clock.over(steps, elapsed):
            break
        if place.rank == 0 and side.alike(steps):
            copies.consider(elapsed, steps * together)
    side.settle(steps)
    seconds = time.perf_counter() - begin
    walls, spent, local_steps, medians = _gather([seconds, copies.spent, steps, statistics.median(took)])
    # No destroy_process_group: it joins gloo's threads with Python's lock in its hands, for which one of them may be
    # waiting to drop a hook's callback. The process ends by os._exit.
    if place.rank:
        return None
    # Whoever waits for rank 0 has waited for its copies as well.
    walls = [wall - (spent[0] if side.coupled else own) for wall, own in zip(walls, spent, strict=True)]
    samples = [int(s * b) for s, b in zip(local_steps, batches, strict=True)]
    copies.take(walls[0], sum(samples))
    curve = copies.evaluate(prepared.criterion, data)
    if options.state is not None:
        write_state(options.state, state_arrays(prepared.model), {"side": options.side})
    return {
        "samples": sum(samples),
        "wall_seconds": max(walls),
        "samples_per_second": sum(samples) / max(walls),
        "local_steps": [int(s) for s in local_steps],
        "step_seconds": medians,
        "samples_per_second_per_worker": [s / wall for s, wall in zip(samples, walls, strict=True)],
        "payload_bytes": _payload(prepared.model),
        "curve": curve,
    }


def _step(prepared: Prepared, side: Side, epoch: int | None, together: int) -> Callable[[int], None]:
    """Return what does step number ``steps``; ``epoch`` is the unit of the scheduler in samples, None: a step."""
    config, feed = prepared.config, prepared.data.train.feed(prepared.sampler)
    accumulate, clip_norm = config.data.accumulate, config.optimizer.clip_norm
    parameters = list(prepared.model.parameters())
    scheduler, criterion, pace = prepared.scheduler, prepared.criterion, prepared.pace

    def minibatch(module: nn.Module) -> None:
        inputs, targets = feed()
        (criterion(module(inputs), targets) / accumulate).backward()

    def step(steps: int) -> None:
        pace.begin()
        module = side.module(steps)
        side.optimizer.zero_grad()
        for _ in range(accumulate - 1):
            with side.apart():
                minibatch(module)
        minibatch(module)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        side.optimizer.step()
        if scheduler is not None:
            times = 1 if epoch is None else (steps + 1) * together // epoch - steps * together // epoch
            for _ in range(times):
                scheduler.step()

    return step


def _payload(model: nn.Module) -> int:
    """Bytes that hpcdml exchanges of a model in one direction, in float32."""
    tensors = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    return 4 * sum(t.numel() for t in tensors if t.is_floating_point())


def _gather(values: Sequence[float]) -> list[list[float]]:
    """For each of the values, the list of it on all ranks."""
    mine = torch.tensor(values, dtype=torch.float64)
    everybody = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, mine)
    found: list[list[float]] = torch.stack(everybody, 1).tolist()
    return found
