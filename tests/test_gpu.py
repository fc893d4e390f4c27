"""The GPU path on a GPU. The same code runs on the CPU with a simulated copy queue in tests/mpi/test_channels.py."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcdml.mpi.cuda_aware import why_not
from hpcdml.observability.summary import summarise
from hpcdml.parameters import FlatModel, WireVector
from hpcdml.storage.run_reader import RunReader
from hpcdml.training.staging import DeviceStaging, make_staging

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WIRES = [None, "bfloat16"]


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Within this block every call that waits for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def model_of(width: int = 700) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, 10))


@gpu
@needs_gpu
@pytest.mark.parametrize("wire", WIRES)
def test_an_exchange_on_the_gpu_is_that_of_the_cpu_and_waits_for_nothing(wire: str | None) -> None:
    here, there = FlatModel(model_of(), 1 << 16, wire), FlatModel(model_of().cuda(), 1 << 16, wire)
    staging = make_staging(there.layout, there.device)
    x, update = WireVector(here.layout), WireVector(here.layout)
    x.segments[0].copy_(torch.randn(x.segments[0].shape))
    noise = 1e-2 * torch.randn(here.flats[0].shape)
    here.set_base(), there.set_base()
    here.flats[0].add_(noise)
    there.flats[0].add_(noise.cuda())
    here.exchange(update, x, 1.0)
    staging.pull.storage.copy_(x.storage)
    torch.cuda.synchronize()
    with no_synchronisation():
        for chunk in range(len(there.layout.chunks)):
            staging.landed(chunk)
        staging.reading()
        norm = there.exchange(staging.update, staging.globals, 1.0)
        staging.read()
        staging.written(norm)
        staging.raise_integers(there, np.full(there.layout.integers, 7))
        staging.take_integers(there)
        while not (staging.pull_free and staging.ready(len(there.layout.chunks) - 1)) or staging.integers is None:
            pass
    assert there.layout.integers and staging.integers.tolist() == [7] * there.layout.integers
    assert torch.equal(staging.push.segments[0], update.segments[0])
    torch.testing.assert_close(there.flats[0].cpu(), here.flats[0])


@gpu
@needs_gpu
def test_chunks_leave_one_by_one_while_the_model_computes() -> None:
    flat = FlatModel(model_of(8000).cuda(), 1 << 18)
    staging = make_staging(flat.layout, flat.device)
    assert isinstance(staging, DeviceStaging) and staging.push.storage.is_pinned()
    flat.set_base()
    busy = torch.randn(6000, 6000, device="cuda")
    torch.cuda.synchronize()
    staging.written(flat.update_into(staging.update))
    for _ in range(20):
        busy = torch.tanh(busy @ busy)
    computed = torch.cuda.Event()
    computed.record()
    last = len(flat.layout.chunks) - 1
    while not staging.ready(last):
        pass
    assert not computed.query(), "the copies waited for the kernels behind them"


@gpu
@needs_gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [[], ["--wire-dtype", "bf16", "--amp", "bf16"], ["--amp", "fp16"], ["--compile"]])
def test_two_workers_share_a_gpu(
    options: list[str], hpcdml_job: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = ["--device", "cuda", "--lr", "0.4", "--epochs", "60", *options, "--output", str(tmp_path)]
    result = hpcdml_job(3, "train", *arguments)
    assert result.returncode == 0, result.stderr
    assert summarise(RunReader(tmp_path))["final_accuracy"] >= 0.95


@gpu
@needs_gpu
@pytest.mark.timeout(300)
def test_mpi_gets_the_gpus_memory_only_where_it_can_take_it(
    hpcdml_job: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = ["--device", "cuda", "--cuda-aware", "--lr", "0.4", "--epochs", "60", "--output", str(tmp_path)]
    result = hpcdml_job(3, "train", *arguments)
    assert result.returncode == 0, result.stderr
    assert ("going through host memory" in result.stderr) == (why_not(0) is not None)
    assert summarise(RunReader(tmp_path))["final_accuracy"] >= 0.95


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_where_there_is_no_gpu_the_test_of_mpi_says_why_and_this_process_lives() -> None:
    reason = why_not(0)
    assert reason and "\n" not in reason
