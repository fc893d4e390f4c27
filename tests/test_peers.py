"""The peers of the benchmarks: each learns, each does the arithmetic that it stands for, and mistakes take one line."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcdml.benchmarks.launch import Site
from hpcdml.benchmarks.peers import SIDES, PeerOptions, pace
from hpcdml.benchmarks.peers.copies import Copies
from hpcdml.benchmarks.runs import run_peer, time_to
from hpcdml.config import TrainConfig
from hpcdml.errors import MachineError, UsageError
from hpcdml.storage.parameters_file import read_state
from hpcdml.training.data import ShardSampler, default_loss, load_data
from hpcdml.training.models import build_model
from hpcdml.training.optimizers import make_optimizer

with_mpirun = pytest.mark.usefixtures("_needs_mpirun")
SITE = Site(timeout=100)
WORKERS = 2


@with_mpirun
@pytest.mark.parametrize("side", SIDES)
def test_every_side_learns(side: str) -> None:
    train = {"threads": 1, "lr": 0.4, "epochs": 12.0, "eval_seconds": 0.02}
    result = run_peer(SITE, WORKERS, PeerOptions(side, train))

    steps = math.ceil(12 * 1437 / 64)
    assert result["local_steps"] == [steps, steps]
    assert result["samples"] == steps * 64
    assert result["samples_per_second"] == pytest.approx(result["samples"] / result["wall_seconds"])
    assert 0 < max(result["step_seconds"]) * steps < 2 * result["wall_seconds"]
    assert result["payload_bytes"] == 4 * (64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10)
    curve = result["curve"]
    assert len(curve) > 1 and curve == sorted(curve)
    assert curve[-1][1] == result["samples"]
    assert 0 < time_to(0.5, curve) <= curve[-1][0] <= result["wall_seconds"]
    assert curve[-1][2] >= 0.9


@with_mpirun
def test_ddp_averages_gradients(tmp_path: Path) -> None:
    def exchange(step: int, models: list[torch.nn.Module]) -> None:
        average(models, lambda p: p.grad)

    check(tmp_path, "ddp", {}, before=exchange)


@with_mpirun
def test_post_local_sgd_averages_gradients_and_then_parameters(tmp_path: Path) -> None:
    def exchange(step: int, models: list[torch.nn.Module]) -> None:
        if step < 3:
            average(models, lambda p: p.grad)

    def settle(step: int, models: list[torch.nn.Module]) -> None:
        if step in (3, 7, 11, 13):  # the last one after training
            average(models, lambda p: p.data)

    check(tmp_path, "post-local-sgd", {"warmup_steps": 3, "local_steps": 4}, before=exchange, after=settle)


@with_mpirun
def test_all_workers_end_by_the_time(tmp_path: Path) -> None:
    train = {"threads": 1, "max_seconds": 0.5, "eval_seconds": 0.1, "slowdown": {"2": 2.0}}
    result = run_peer(SITE, WORKERS, PeerOptions("ddp", train))

    first, second = result["local_steps"]
    assert first == second > 1
    assert result["wall_seconds"] >= 0.5
    assert result["curve"][0][0] < result["wall_seconds"]


@with_mpirun
def test_a_failure_in_the_job_takes_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        run_peer(SITE, WORKERS, PeerOptions("ddp", {"dataset": "nothing/here.h5"}))
    assert str(caught.value).startswith("--dataset nothing/here.h5: ")
    assert "\n" not in str(caught.value)


@with_mpirun
def test_a_hanging_job_is_ended_with_all_its_ranks() -> None:
    mark = f"mark-{time.time_ns()}"
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    with pytest.raises(MachineError, match=r"still running after 2 s"):
        Site(timeout=2).run(WORKERS, [sys.executable, "-c", ignoring, mark])
    assert [line for line in command_lines() if mark in line and str(Path(sys.executable).name) in line] == []


class Clock:
    """Time for ``Pace``: computing and waiting are told to it, and sleeping takes a tenth of a millisecond too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.computed = 0.0
        self.sleeps: list[float] = []
        monkeypatch.setattr(pace, "time", self)

    def thread_time(self) -> float:
        return self.computed

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + 1e-4
        self.sleeps.append(seconds)

    def compute(self, *_: object) -> None:
        self.computed += 1e-3
        self.now += 1e-3

    def steps(self, factor: float, seconds: float | None, exchange: float = 0.0) -> list[float]:
        """The times of ten steps of 5 ms of computing, the last one in the optimizer, an exchange before it."""
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))

        def forward(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self.compute()
            output.register_hook(self.compute)

        for part in model:
            part.register_forward_hook(forward)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        paced = pace.Pace(model, optimizer, factor, seconds)
        optimizer.register_step_pre_hook(self.compute)
        times = []
        for _ in range(10):
            begin = self.now
            paced.begin()
            model(torch.ones(2, 3)).sum().backward()
            self.now += exchange
            optimizer.step()
            times.append(self.now - begin)
        return times


def test_a_slowed_step_sleeps_for_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    times = clock.steps(4.0, None, exchange=7e-3)
    assert sum(times) == pytest.approx(10 * (4 * 5e-3 + 7e-3), abs=pace.LEAST_SLEEP + 1e-4)
    assert len(clock.sleeps) >= 20  # not once a step, but gradient by gradient


def test_an_emulated_device_computes_while_a_bucket_travels_and_not_while_a_step_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    # The first step does not know yet how long the optimizer takes.
    assert clock.steps(2.0, 0.01)[1:] == pytest.approx([0.02] * 9, abs=2e-4)
    assert len(clock.sleeps) >= 40  # four gradients a step
    # Only the exchange comes on top.
    assert clock.steps(2.0, 0.01, exchange=7e-3)[1:] == pytest.approx([0.027] * 9, abs=3e-4)
    # What the CPU needs longer for lasts longer.
    assert clock.steps(1.0, 1e-3) == pytest.approx([5e-3] * 10, abs=2e-4)


def test_copies_grow_rarer_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr("hpcdml.benchmarks.peers.copies.MOST_BYTES", 8 * 8)  # eight copies
    copies = Copies(model, 1.0)
    for second in range(1, 101):
        copies.consider(float(second), second)
    times = [seconds for seconds, _, _ in copies._taken]
    assert 4 <= len(times) <= 8
    gaps = {round(b - a) for a, b in zip(times, times[1:], strict=False)}
    assert max(gaps) <= 2 * min(gaps) and times[0] <= 2 * max(gaps) and times[-1] >= 100 - max(gaps)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"side": "horovod"}, "--side horovod: must be one of ddp, ddp-fp16, ddp-bf16, ddp-powersgd, post-local-sgd"),
        ({"local_steps": 0}, "--local-steps 0: must be at least 1"),
        ({"matrix_rank": 0}, "--matrix-rank 0: must be at least 1"),
        ({"bucket_mb": -1}, "--bucket-mb -1: must be a finite number above 0"),
        ({"start_powersgd": 1}, "--start-powersgd 1: must be at least 2"),
        ({"train": {"amp": "bf16"}}, "--amp: is no option of hpcdml train that a peer has"),
        ({"train": {"policy": "losp"}}, "--policy: is no option of hpcdml train that a peer has"),
        ({"train": {"lr": -1}}, "--lr -1: must be a finite number above 0"),
        ({"train": {"target_accuracy": 0.9}}, "--target-accuracy: does not stop a peer"),
    ],
)
def test_a_wrong_option_takes_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        PeerOptions.from_json(json.dumps({"side": "ddp", **options}))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_options_survive_the_command_line() -> None:
    options = PeerOptions("alone", {"lr": 0.3, "model_args": {"hidden": 8}}, meeting="a:1", warmup_steps=5)
    assert PeerOptions.from_json(options.to_json()) == options


Exchange = Callable[[int, list[torch.nn.Module]], None]


def check(
    folder: Path, side: str, options: dict[str, Any], before: Exchange, after: Exchange = lambda step, models: None
) -> None:
    """Compare 14 steps of a side with a loop over both workers' models in this process.

    Args:
        before: exchanges between backward pass and optimizer step.
        after: exchanges after it.
    """
    steps, batch = 14, 16
    train = {"threads": 1, "lr": 0.2, "batch_size": batch, "max_samples": steps * batch * WORKERS, "seed": 3}
    train["optimizer_args"] = {"momentum": 0.5}
    run_peer(SITE, WORKERS, PeerOptions(side, train, state=f"{folder}/state.h5", **options))
    found, _ = read_state(folder / "state.h5")

    config = TrainConfig.from_flat(train)
    data = load_data(config.data, 0, WORKERS)
    criterion = default_loss("auto", data.spec)
    models = [build_model("mlp", {}, data.spec, seed=3) for _ in range(WORKERS)]
    optimizers = [make_optimizer(config.optimizer, model) for model in models]
    samplers = [ShardSampler(len(data.train), worker, WORKERS, batch, 3) for worker in range(WORKERS)]
    for step in range(steps):
        for model, sampler in zip(models, samplers, strict=True):
            model.zero_grad()
            inputs, targets = data.train.batch(sampler.next())
            criterion(model(inputs), targets).backward()
        before(step, models)
        for optimizer in optimizers:
            optimizer.step()
        after(step, models)
    for name, tensor in models[0].state_dict().items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)


def average(models: list[torch.nn.Module], part: Callable[[torch.nn.Parameter], Any]) -> None:
    for same in zip(*(model.parameters() for model in models), strict=True):
        mean = torch.stack([part(p) for p in same]).mean(0)
        for p in same:
            part(p).copy_(mean)


def command_lines() -> list[str]:
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # gone meanwhile
            continue
    return lines
