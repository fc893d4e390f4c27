"""Runs that are broken and go on, as a user breaks them: stopped, killed, with other workers, wrong options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import mpirun

pytestmark = pytest.mark.timeout(450)

HERE = Path(__file__).parent
BATCH = 8
CUT, ROUNDS = 10, 20


def case(name: str, workers: int, epoch_rounds: int, **options: Any) -> dict[str, Any]:
    """A run of 20 rounds broken after 10, with so many rounds in an epoch."""
    given = {"policy": "bsp", "batch_size": BATCH, "lr": 0.05, "eval_seconds": 100.0, **options}
    samples = epoch_rounds * workers * BATCH
    return {
        "name": name, "workers": workers, "options": given, "samples": samples, "cut": CUT, "rounds": ROUNDS,
    }  # fmt: skip


def cases(workers: int) -> list[dict[str, Any]]:
    momentum = {"optimizer_args": {"momentum": 0.9}}
    warm_up = {"scheduler": "LinearLR", "scheduler_args": {"total_iters": 15}, "scheduler_unit": "step"}
    by_epoch = {"scheduler": "StepLR", "scheduler_args": {"step_size": 1, "gamma": 0.5}}
    found = []
    # In the middle of an epoch, exactly at its edge, and in the second one.
    for place, epoch_rounds in (("middle", 14), ("edge", 10), ("second", 6)):
        found.append(case(f"sgd-{place}", workers, epoch_rounds, **momentum, **by_epoch))
        found.append(case(f"adam-{place}", workers, epoch_rounds, optimizer="Adam", **warm_up))
        found.append(case(f"adamw-{place}", workers, epoch_rounds, optimizer="AdamW", wire_dtype="bf16"))
    found.append(case("nesterov", workers, 6, outer_optimizer="nesterov", wire_dtype="fp16", amp="bf16"))
    found.append(case("outer-adam", workers, 6, outer_optimizer="adam", outer_lr=0.01, accumulate=1, clip_norm=1.0))
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_bsp_broken_after_ten_rounds_is_the_unbroken_run_bit_for_bit(tmp_path: Path, workers: int) -> None:
    wanted = cases(workers)
    done = mpirun(
        workers + 1,
        sys.executable,
        HERE / "resume_cases.py",
        tmp_path,
        json.dumps(wanted),
        env={"PYTHONPATH": f"{HERE}:{HERE.parent}"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[:1500] + done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.endswith("equal")]
    assert told == [f"{c['name']} {how} equal" for c in wanted for how in ("stopped", "killed")], done.stdout
