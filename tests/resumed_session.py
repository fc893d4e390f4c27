"""A loop with everything that has a state of its own, for test_session_resume; every rank prints one JSON line.

``resumed_session.py FOLDER OPTIONS [SECONDS]``: options of the session as JSON, and how long a step lasts. The option
``loop`` is the number of epochs, or a list of those of each worker; ``hangs`` the worker that hangs when it saves its
state; ``counts`` the number of values in an integer buffer.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import hpcdml
from hpcdml.launcher import launcher_rank

EPOCHS = 6


def main(folder: str, options: str, seconds: float = 0.0) -> None:
    given = json.loads(options)
    hangs, counts = given.pop("hangs", None), given.pop("counts", 0)
    epochs, stateful = given.pop("loop", EPOCHS), given.pop("stateful", True)
    torch.manual_seed(3)
    np.random.seed(4)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(240, 6, generator=draw)
    data = TensorDataset(x, (x @ torch.randn(6, 3, generator=draw)).argmax(1))
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 3))
    if counts:
        model.register_buffer("counts", torch.arange(counts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    loader = DataLoader(data, batch_size=8, shuffle=True)
    seen: list[int] = []
    taken = 0
    own: dict[str, Any] = {"scheduler": scheduler, "averaged": averaged} if stateful else {}
    if hangs is not None and launcher_rank() == hangs:
        scheduler.state_dict = lambda: os.kill(os.getpid(), signal.SIGSTOP)
    with hpcdml.Session(model, optimizer, output=folder, stateful=own, **given) as session:
        if isinstance(epochs, list):
            epochs = epochs[session.worker or 0]
        for epoch in session.epochs(epochs):
            seen.append(epoch)
            model.train()
            for inputs, targets in session.batches(loader):
                optimizer.zero_grad()
                noise = torch.from_numpy(np.random.standard_normal(inputs.shape)).float()
                session.loss(functional.cross_entropy(model(inputs + 0.1 * noise), targets)).backward()
                optimizer.step()
                # Both are changed by the body after the step.
                scheduler.step()
                averaged.update_parameters(model)
                taken += 1
                time.sleep(seconds)
    found = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()
    mean = hashlib.sha256(b"".join(t.numpy().tobytes() for t in averaged.state_dict().values())).hexdigest()
    line = {
        "rank": launcher_rank() or 0,
        "digest": found,
        "averaged": mean,
        "updates": int(averaged.n_averaged),
        "taken": taken,
        "epochs": seen,
        "lr": optimizer.param_groups[0]["lr"],
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
