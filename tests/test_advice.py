"""What bounds a run, judged from runs that are made so that the answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hpcdml.cli import train
from hpcdml.cli.parser import Answer
from hpcdml.observability.advice import NAMES, advise
from hpcdml.observability.measurements import measure
from hpcdml.observability.report import format_advice
from hpcdml.storage import RunReader
from synthetic import write_run

# Name: what is out of the ordinary in the run, the bound, the option.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "computing": ({}, "compute", "mpirun -n 5"),
    "computing on a GPU": ({"device": "cuda"}, "compute", "--amp bf16"),
    "computing on a GPU in bf16": ({"device": "cuda", "amp": "bf16"}, "compute", "mpirun -n 5"),
    "a blocking policy and a slow link": (
        {
            "policy": "bsp",
            "compute": (0.01, 0.01),
            "idle": (0.02, 0.02),
            "every": 1,
            "round_seconds": 0.018,
            "cpu": 0.1,
        },
        "link",
        "--policy losp",
    ),
    "a blocking policy and a busy server": (
        {"policy": "bsp", "idle": (0.02, 0.02), "every": 1, "round_seconds": 0.018, "cpu": 0.95},
        "server",
        "--policy losp",
    ),
    "a blocking policy and a straggler": (
        {"policy": "bsp", "compute": (0.01, 0.03), "idle": (0.022, 0.002), "every": 1, "cpu": 0.1},
        "straggler",
        "--policy losp",
    ),
    "a blocking policy, an uneven pair, and a link that is slower still": (
        {"policy": "bsp", "compute": (0.01, 0.02), "idle": (0.11, 0.1), "every": 1, "round_seconds": 0.1, "cpu": 0.1},
        "link",
        "--policy losp",
    ),
    "overlap, and rounds of a hundred steps": (
        {"policy": "losp", "steps": 2000, "every": 100, "round_seconds": 0.9, "cpu": 0.2},
        "link",
        "--wire-dtype bf16",
    ),
    "the same with half the bytes already": (
        {"policy": "losp", "steps": 2000, "every": 100, "round_seconds": 0.9, "cpu": 0.2, "wire_dtype": "bf16"},
        "link",
        "--local-steps 200",
    ),
    "overlap, and a server that cannot add faster": (
        {"policy": "osp", "steps": 2000, "every": 100, "round_seconds": 0.9, "cpu": 0.99, "wire_dtype": "fp16"},
        "server",
        "--wire-dtype fp32",
    ),
    "overlap, and a straggler that rounds wait for": (
        {"policy": "losp", "compute": (0.01, 0.5), "steps": 2000, "every": 50, "cpu": 0.1},
        "straggler",
        "--shard-weights 50,1",
    ),
    "overlap, and a slower worker that nobody waits for": (
        {"policy": "losp", "compute": (0.01, 0.01, 0.03), "idle": (0, 0, 0), "steps": 300, "every": 4},
        "straggler",
        "--shard-weights 3,3,1",
    ),
    "the same with shards by speed": (
        {
            "policy": "losp",
            "compute": (0.01, 0.01, 0.03),
            "idle": (0, 0, 0),
            "steps": 300,
            "every": 4,
            "shard_weights": [3, 3, 1],
        },
        "straggler",
        "--weighting samples",
    ),
    "overlap, held at its bound by the link": (
        {"policy": "losp", "idle": (0.01, 0.01), "every": 4, "max_local_steps": 2, "round_seconds": 0.06, "cpu": 0.1},
        "link",
        "--wire-dtype bf16",
    ),
    "overlap, and rounds that cost the workers much": (
        {"policy": "losp", "idle": (0.003, 0.003), "every": 2, "round_seconds": 0.001, "cpu": 0.1},
        "exchange",
        "--local-steps 4",
    ),
    "data that come slowly": ({"data": 0.01, "batch_size": 64}, "data", "--batch-size 128"),
    "data that a function makes": ({"data": 0.01, "dataset": "mine:load"}, "data", "--dataset FILE.h5"),
    "data that come slowly, but the link is slower": (
        {"policy": "bsp", "data": 0.003, "idle": (0.02, 0.02), "every": 1, "cpu": 0.1},
        "link",
        "--policy losp",
    ),
    "drift: accuracy falls": (
        {"policy": "losp", "steps": 2000, "every": 100, "accuracy": (0.5, 0.8, 0.7)},
        "staleness",
        "--max-local-steps 25",
    ),
    "drift without compensation": (
        {"policy": "osp", "steps": 2000, "every": 100, "accuracy": (0.5, 0.8, 0.7)},
        "staleness",
        "--policy losp",
    ),
    "drift: the loss rises": (
        {"policy": "losp", "steps": 2000, "every": 100, "loss": (2.0, 0.5, 1.5)},
        "staleness",
        "--max-local-steps 25",
    ),
    "drift: the loss is lost": (
        {"policy": "losp", "steps": 2000, "every": 100, "loss": (2.0, 0.5, math.nan)},
        "staleness",
        "--max-local-steps 25",
    ),
    "old updates: ssp": ({"policy": "ssp", "staleness": 6, "accuracy": (0.8, 0.6)}, "staleness", "--staleness 2"),
    "old updates: asp": ({"policy": "asp", "staleness": 6, "accuracy": (0.8, 0.6)}, "staleness", "--policy losp"),
    "a falling accuracy without staleness": ({"policy": "bsp", "accuracy": (0.8, 0.6)}, "compute", "mpirun -n 5"),
    "a run of a few steps": ({"steps": 8}, "unknown", "--epochs 40"),
    "a run of two rounds": ({"steps": 40, "every": 20}, "unknown", "--epochs 40"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict(tmp_path: Path, name: str) -> None:
    run, bound, option = CASES[name]
    advice = advise(measure(RunReader(write_run(tmp_path, **run))))
    assert (advice.bound, advice.option) == (bound, option), advice
    assert advice.why and advice.because and not advice.why.endswith(".")
    lines = format_advice(advice).splitlines()
    assert lines[0].startswith(f"bound by    {NAMES[advice.bound]}") and all(len(line) <= 80 for line in lines)


def test_every_bound_is_reached_by_a_case() -> None:
    assert {bound for _, bound, _ in CASES.values()} == set(NAMES)


def test_options_that_are_advised_exist() -> None:
    for _, _, option in CASES.values():
        if option.startswith("--"):
            with pytest.raises(Answer):
                train.parse([*option.split(), "--print-config"])


def test_a_server_whose_processor_is_not_known_is_not_blamed(tmp_path: Path) -> None:
    run = {"policy": "bsp", "idle": (0.02, 0.02), "every": 1, "round_seconds": 0.018}
    m = measure(RunReader(write_run(tmp_path, finish=False, **run)))
    assert m.server_cpu is None and advise(m).bound == "link"


def test_the_measurements_of_a_run(tmp_path: Path) -> None:
    made = write_run(
        tmp_path, compute=(0.01, 0.02), idle=(0.01, 0.0), data=0.005, steps=400, every=4, cpu=0.5, round_bytes=7000
    )
    m = measure(RunReader(made))
    assert m.workers == (1, 2) and m.policy == "losp" and m.overlaps and m.collective
    assert m.steps == 400 and m.rounds == 100 and m.round_bytes == 7000
    assert m.compute == pytest.approx(0.6, rel=1e-3) and m.data == pytest.approx(0.2, rel=1e-3)
    assert m.idle == pytest.approx(0.2, rel=1e-3)
    assert m.step_seconds == pytest.approx((0.015, 0.025)) and m.idle_per_step == pytest.approx((0.01, 0.0))
    assert m.rates == pytest.approx((32 / 0.025, 32 / 0.025)) and m.round_every == pytest.approx(0.1)
    # Half a core in 100 rounds of 10 ms; the workers were blocked for 2 s on average.
    assert m.server_cpu == pytest.approx(0.25, rel=1e-2) and m.steps_per_push == 4
    assert m.best_accuracy == m.final_accuracy == 0.9 and m.final_loss == pytest.approx(0.1, abs=0.1)


def test_of_a_resumed_run_the_last_part_tells_of_the_server(tmp_path: Path) -> None:
    """Half a core in all of a run of 2 s, which was resumed after 1 s, is a whole one in its last part."""
    whole = measure(RunReader(write_run(tmp_path / "whole", cpu=0.5)))
    part = measure(RunReader(write_run(tmp_path / "part", cpu=0.5, resumed=1.0, accuracy=(0.9,))))
    assert whole.server_cpu == pytest.approx(0.5, rel=1e-2) and part.server_cpu == pytest.approx(1.0, rel=1e-2)
