"""Plain sequential training in one process, the yardstick of every distributed run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from hpcdml.config import TrainConfig
from hpcdml.training.data import default_loss, load_data
from hpcdml.training.evaluation import evaluate
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer, make_scheduler
from hpcdml.training.state import state_arrays


@dataclass(frozen=True)
class Sequential:
    """What a sequential run reached: accuracy and loss on the held-out data, samples seen, seconds of training.

    Attributes:
        state: the final parameters by their ``state_dict`` names.
    """

    accuracy: float
    loss: float
    samples: int
    seconds: float
    state: dict[str, np.ndarray]


def train_sequentially(config: TrainConfig, samples: int) -> Sequential:
    """Train with the data, model, optimizer and seed of ``config`` on at least ``samples`` samples, in this process.

    Raises:
        UsageError: as ``hpcdml train``.
    """
    torch.set_num_threads(config.run.threads or 1)
    data = load_data(config.data, 0, 1)
    model = build_model(config.model.model, config.model.model_args, data.spec, config.run.seed)
    criterion = default_loss(config.model.loss, data.spec)
    feed = data.train.feed(data.train.sampler(0, 1, config.data.batch_size, config.run.seed))
    optimizer = make_optimizer(config.optimizer, model)
    scheduler = make_scheduler(config.optimizer, optimizer)
    torch.manual_seed(config.run.seed)
    seen = epoch = 0
    model.train()
    start = time.perf_counter()
    while seen < samples:
        for _ in range(config.data.accumulate):
            inputs, targets = feed()
            (criterion(model(inputs), targets) / config.data.accumulate).backward()
            seen += len(inputs)
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None and (config.optimizer.scheduler_unit == "step" or seen // len(data.train) > epoch):
            epoch = seen // len(data.train)
            scheduler.step()
    seconds = time.perf_counter() - start
    score = evaluate(model, criterion, data)
    return Sequential(score.accuracy, score.loss, seen, seconds, state_arrays(model))
