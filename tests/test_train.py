"""Whole runs, launched by mpirun as a user does: every policy learns, and the record is right."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import launch
from hpcdml.benchmarks.sequential import train_sequentially
from hpcdml.config import POLICIES, TrainConfig
from hpcdml.observability.summary import summarise
from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.run_reader import RunReader

pytestmark = pytest.mark.timeout(300)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the path")

Job = Callable[..., subprocess.CompletedProcess[str]]


# Averaging halves the progress of a sample; ASP and SSP take each update in full, SSP stale ones of several steps. With
# DiLoCo's outer momentum 0.4 is the edge: one seed of four diverged with fp16 on the wire, which 0.2 does not.
RATES = {policy: "0.4" for policy in POLICIES} | {"asp": "0.2", "ssp": "0.1", "diloco": "0.2"}


def done(result: subprocess.CompletedProcess[str], folder: Path) -> dict:
    """The summary of a run that must have ended well."""
    assert result.returncode == 0, result.stderr
    return summarise(RunReader(folder))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_trains_digits_with_two_workers(policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    result = hpcdml_job(3, "train", "--policy", policy, "--lr", RATES[policy], "--epochs", "60", "--output", tmp_path)
    summary = done(result, tmp_path)
    assert summary["final_accuracy"] >= 0.95
    assert summary["workers"] == 2 and summary["finished"]
    # With overlap the end is met to about a round, otherwise to the samples of one step.
    assert 0.9 * 60 * 1437 <= summary["samples"] <= 1.1 * 60 * 1437


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_with_one_worker(policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    result = hpcdml_job(2, "train", "--policy", policy, "--lr", "0.2", "--epochs", "40", "--output", tmp_path)
    assert done(result, tmp_path)["final_accuracy"] >= 0.94


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("losp", ["--wire-dtype", "bf16"]),
        ("diloco", ["--wire-dtype", "fp16"]),
        ("ssp", ["--wire-dtype", "bf16"]),
        ("losp", ["--amp", "bf16", "--clip-norm", "5"]),
        ("osp", ["--amp", "fp16", "--wire-dtype", "fp16"]),
        pytest.param("losp", ["--compile"], marks=needs_compiler),
    ],
)
def test_half_precision_and_compiled_models_learn(
    policy: str, options: list[str], hpcdml_job: Job, tmp_path: Path
) -> None:
    rates = ["--lr", RATES[policy], "--epochs", "60"]
    summary = done(hpcdml_job(3, "train", "--policy", policy, *rates, *options, "--output", tmp_path), tmp_path)
    assert summary["final_accuracy"] >= 0.95
    with h5py.File(tmp_path / "run.h5") as file:
        values = sum(part.size for part in file["parameters"].values() if isinstance(part, h5py.Dataset))
    per_value = summary["bytes_received"] / summary["pushes"] / values
    assert per_value == (2 if "--wire-dtype" in options else 4)


def test_bsp_with_one_worker_is_a_sequential_run(hpcdml_job: Job, tmp_path: Path) -> None:
    """Same order of samples, same steps: only the rounding of x - (x - w) is between them."""
    options = ["--policy", "bsp", "--max-samples", "640", "--seed", "5", "--lr", "0.1", "--threads", "1"]
    done(hpcdml_job(2, "train", *options, "--output", tmp_path), tmp_path)
    config = TrainConfig.from_flat({"policy": "bsp", "seed": 5, "lr": 0.1, "threads": 1})
    result = train_sequentially(config, 640)
    found = RunReader(tmp_path).parameters()
    assert found is not None and found.keys() == result.state.keys()
    for name, values in result.state.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("ranks", [4, 8])
def test_more_ranks_than_cores(ranks: int, hpcdml_job: Job, tmp_path: Path) -> None:
    summary = done(hpcdml_job(ranks, "train", "--epochs", "5", "--output", tmp_path, timeout=240), tmp_path)
    assert len(summary["local_steps"]) == ranks - 1 and min(summary["local_steps"]) >= 1


def test_small_shards_and_batches_larger_than_a_shard(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--dataset", "iris", "--batch-size", "64", "--shard-weights", "30,1", "--epochs", "40", "--lr", "0.1"]
    summary = done(hpcdml_job(3, "train", *options, "--output", tmp_path), tmp_path)
    assert summary["final_accuracy"] >= 0.85
    steps = RunReader(tmp_path).table("steps")
    assert set(np.diff(steps[steps["worker"] == 2]["samples"])) <= {4}, "the small shard has 4 of 120 samples"


def test_a_run_leaves_a_record_that_explains_itself(hpcdml_job: Job, hpcdml: Job, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "run.yaml").write_text("policy: losp\nbatch-size: 16\nlr: 0.1\nmodel-args: {hidden: 32, layers: 1}\n")
    options = ["--lr", "0.2", "--max-seconds", "3", "--checkpoint-seconds", "0.5", "--eval-seconds", "0.25"]
    result = hpcdml_job(3, "train", tmp_path / "run.yaml", *options, "--output", folder)
    summary = done(result, folder)
    assert 2.9 <= summary["wall_seconds"] <= 20
    with h5py.File(folder / "run.h5") as file:
        assert file.attrs["format"] in (b"hpcdml-run", "hpcdml-run")
        assert {"steps", "pushes", "rounds", "evaluations", "events", "config", "environment", "parameters"} == set(
            file
        )
        assert file["config"].attrs["lr"] == 0.2 and file["config"].attrs["batch_size"] == 16
        columns = [line.decode() for line in file["steps"].attrs["columns"]]
        assert any("idle_seconds [s]" in line for line in columns)
        assert {(32, 64), (10, 32)} <= {values.shape for values in file["parameters"].values()}
    reader = RunReader(folder)
    steps, pushes, rounds = (reader.table(name) for name in ("steps", "pushes", "rounds"))
    for worker in (1, 2):
        mine = steps[steps["worker"] == worker]
        np.testing.assert_array_equal(mine["step"], np.arange(1, len(mine) + 1))
        assert (np.diff(mine["time"]) > 0).all() and (np.diff(mine["version"]) >= 0).all()
        sent = pushes[pushes["worker"] == worker]
        np.testing.assert_array_equal(sent["push"], np.arange(1, len(sent) + 1))
        assert sent["local_steps"].sum() == len(mine) and sent["samples"].sum() == mine["samples"][-1]
        # What a step costs is the time between two steps: nothing is left out.
        spent = mine["data_seconds"] + mine["compute_seconds"] + mine["idle_seconds"]
        assert spent.sum() == pytest.approx(mine["time"][-1], rel=0.05)
    np.testing.assert_array_equal(rounds["round"], np.arange(1, len(rounds) + 1))
    assert (
        rounds["samples"][-1]
        == summary["samples"]
        == steps[steps["worker"] == 1]["samples"][-1] + (steps[steps["worker"] == 2]["samples"][-1])
    )
    assert np.isfinite(rounds["loss"][np.isfinite(rounds["loss"])]).all() and np.isfinite(rounds["loss"]).any()
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert 2 <= len(checkpoints) <= 3, "the newest three are kept"
    last = read_checkpoint(checkpoints[-1])
    final = reader.parameters()
    assert final is not None and list(last.parameters) == list(final)
    for name, array in last.parameters.items():
        np.testing.assert_array_equal(array.values, final[name])  # type: ignore[union-attr]
    assert f"step-{last.version:08d}.h5" == checkpoints[-1].name and last.version == rounds["round"][-1]
    assert len(reader.table("evaluations")) >= 5
    told = json.loads(hpcdml("report", folder, "--json").stdout)
    keys = {
        "policy", "workers", "samples", "samples_per_second", "rounds", "wall_seconds", "local_steps", "idle_fraction",
        "final_accuracy", "final_loss", "time_to_target_seconds",
    }  # fmt: skip
    assert keys <= told.keys() and told["policy"] == "losp" and len(told["idle_fraction"]) == 2


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="needs h5dump (Debian's hdf5-tools)")
def test_h5dump_lists_a_run(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--max-samples", "640", "--checkpoint-seconds", "0.01", "--eval-seconds", "0", "--output", tmp_path]
    done(hpcdml_job(2, "train", *options), tmp_path)
    for path in [tmp_path / "run.h5", *(tmp_path / "checkpoints").iterdir()]:
        listing = subprocess.run(["h5dump", "-n", path], capture_output=True, text=True)
        assert listing.returncode == 0, listing.stderr
        assert "/parameters" in listing.stdout


def test_stops_at_the_target_accuracy(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--target-accuracy", "0.9", "--eval-seconds", "0.05", "--lr", "0.1", "--policy", "osp"]
    summary = done(hpcdml_job(3, "train", *options, "--output", tmp_path), tmp_path)
    assert summary["time_to_target_seconds"] is not None
    assert summary["time_to_target_seconds"] <= summary["wall_seconds"] + 0.5


def test_the_fast_worker_does_not_wait_for_a_slow_one(hpcdml_job: Job, tmp_path: Path) -> None:
    counts = {}
    for policy in ("losp", "bsp"):
        options = ["--policy", policy, "--max-seconds", "3", "--slowdown", "2=5", "--batch-size", "128"]
        summary = done(hpcdml_job(3, "train", *options, "--output", tmp_path / policy), tmp_path / policy)
        counts[policy] = summary["local_steps"]
    assert counts["losp"][0] > 2.5 * counts["losp"][1]
    assert counts["bsp"][0] == counts["bsp"][1]


def test_a_killed_run_can_still_be_read(tmp_path: Path, hpcdml_job: Job, hpcdml: Job) -> None:
    command = [launch.find_mpirun() or "mpirun", "-n", "3", sys.executable, "-m", "hpcdml", "train"]
    options = ["--max-seconds", "120", "--output", str(tmp_path / "run")]
    environment = {**os.environ, **launch.AS_ROOT, **launch.OVERSUBSCRIBE}
    job = subprocess.Popen(
        command + options, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 100
        rows = 0
        while rows < 1000 and time.monotonic() < deadline:
            time.sleep(0.5)
            if (tmp_path / "run" / "run.h5").exists():
                rows = len(RunReader(tmp_path / "run").table("steps"))
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        subprocess.run(["pkill", "-9", "-f", str(tmp_path)], check=False)
    assert rows >= 1000, "the record could not be followed while the run went on"
    told = json.loads(hpcdml("report", tmp_path / "run", "--json").stdout)
    assert not told["finished"] and told["samples"] > 0 and told["samples_per_second"] > 0


FACTORIES = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def model(width=8):
    net = nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1))
    net[3].bias.requires_grad_(False)
    return net

def data(worker=None, workers=1):
    g = torch.Generator().manual_seed(7 + (worker or 0))
    x = torch.randn(200 + 50 * (worker or 0), 5, generator=g)
    y = x @ torch.arange(5.0).unsqueeze(1)
    return TensorDataset(x, y), TensorDataset(x[:50], y[:50])
"""


def test_own_model_and_own_sharded_data(hpcdml_job: Job, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORIES)
    options = ["--model", "mine:model", "--model-args", "width=16", "--dataset", "mine:data", "--epochs", "60"]
    more = ["--optimizer", "Adam", "--lr", "0.01", "--accumulate", "2", "--clip-norm", "5", "--output", "out"]
    schedule = ["--scheduler", "CosineAnnealingLR", "--scheduler-args", "T_max=60"]
    summary = done(hpcdml_job(3, "train", *options, *more, *schedule, cwd=tmp_path), tmp_path / "out")
    assert summary["final_accuracy"] is None
    losses = RunReader(tmp_path / "out").table("steps")["loss"]
    assert summary["final_loss"] < 0.5 * losses[:4].mean()
    counted = RunReader(tmp_path / "out").parameters()["1.num_batches_tracked"]  # type: ignore[index]
    assert counted >= max(summary["local_steps"]), "integer buffers take the maximum of the workers"


@pytest.mark.parametrize(
    ("model", "arguments", "policy"),
    [("resnet18", "width=8", "losp"), ("alexnet", "hidden=64", "diloco"), ("lenet", "", "asp")],
)
def test_image_models_on_an_hdf5_file(model: str, arguments: str, policy: str, hpcdml_job: Job, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 240)
    x = rng.integers(0, 60, (240, 3, 16, 16))
    x[np.arange(240), y] += 180  # the class is the brightest colour
    with h5py.File(tmp_path / "images.h5", "w") as file:
        file["x"], file["y"] = x.astype(np.uint8), y
    options = ["--dataset", tmp_path / "images.h5", "--model", model, "--policy", policy, "--batch-size", "16"]
    more = ["--epochs", "15", "--optimizer", "Adam", "--lr", "0.002", "--output", tmp_path / "run"]
    chosen = ["--model-args", arguments] if arguments else []
    summary = done(hpcdml_job(3, "train", *options, *more, *chosen, timeout=240), tmp_path / "run")
    assert np.isfinite(summary["final_loss"]) and summary["final_accuracy"] > 0.4


def test_characters_with_a_transformer(hpcdml_job: Job, tmp_path: Path) -> None:
    options = ["--dataset", "characters", "--model", "transformer", "--model-args", "width=32,heads=2,layers=1"]
    more = ["--optimizer", "AdamW", "--lr", "0.01", "--max-samples", "3000", "--output", tmp_path]
    summary = done(hpcdml_job(3, "train", *options, *more, timeout=240), tmp_path)
    losses = RunReader(tmp_path).table("steps")["loss"]
    assert losses[-8:].mean() < 0.85 * losses[0]
    assert summary["final_accuracy"] > 0.15
