"""A worker whose model now and then gives nan, in real jobs; and what happens to its parts beside the protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcdml.observability.report import format_report
from hpcdml.observability.summary import summarise
from hpcdml.parameters import FlatModel, WireVector
from hpcdml.protocol.messages import Push
from hpcdml.protocol.rounds import Round
from hpcdml.storage.run_reader import RunReader
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.blank import BlankState
from hpcdml.training.guard import Guard
from hpcdml.training.outer import OuterSgd
from launch import hpcdml

MODEL = """
import os
import torch
from torch import nn

class Poisoned(nn.Sequential):
    def __init__(self, every):
        super().__init__(
            nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
        )
        self.every, self.steps = every, 0

    def forward(self, inputs):
        out = super().forward(inputs)
        if self.training and self.every and os.environ.get("OMPI_COMM_WORLD_RANK") == "1":
            self.steps += 1
            if self.steps % self.every == 0:
                with open("injected", "a") as file:
                    print(self.steps, file=file)
                out = out * float("nan")
        return out

def model(every=0):
    return Poisoned(every)
"""

ONE_STEP = {"bsp": [], "losp": ["--max-local-steps", "1", "--wire-dtype", "fp16"]}
"""By policy the options with which every push has one local step, so that one in ten can be poisoned."""


def train(folder: Path, policy: str, every: int, output: str, *more: str) -> RunReader:
    (folder / "poison.py").write_text(MODEL)
    arguments = ["--model", "poison:model", "--model-args", f"every={every}", "--policy", policy, *ONE_STEP[policy]]
    arguments += ["--optimizer-args", "momentum=0.9", "--lr", "0.02", "--eval-seconds", "1000", "--threads", "1"]
    done = hpcdml(3, "train", *arguments, "--output", output, *more, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    if every:
        assert done.stderr.count("rank 1: refused: push") == 1, done.stderr
    return RunReader(folder / output)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("policy", ONE_STEP)
def test_one_push_in_ten_with_nan_is_refused_and_costs_no_accuracy(policy: str, tmp_path: Path) -> None:
    well = train(tmp_path, policy, 0, "well", "--epochs", "16")
    run = train(tmp_path, policy, 10, "poisoned", "--epochs", "16")
    injected = len((tmp_path / "injected").read_text().split())
    pushes = run.table("pushes")
    refused = pushes[pushes["refused"] == 1]
    events = [(rank, text) for _, rank, kind, text in run.events() if kind == "refused"]
    assert len(refused) == len(events) == injected >= 8
    assert set(refused["worker"]) == {1} and (refused["last_step"] % 10 == 0).all()
    assert events[0] == (1, "push 10: its update is not finite" if policy == "bsp" else events[0][1])
    parameters = run.parameters()
    assert parameters is not None and all(np.isfinite(values).all() for values in parameters.values())
    accuracy = [float(each.table("evaluations")["accuracy"][-1]) for each in (well, run)]
    print(f"{policy}: accuracy unharmed {accuracy[0]:.4f}, poisoned {accuracy[1]:.4f}; {injected} injected, "
          f"{len(refused)} refused of {(pushes['worker'] == 1).sum()} pushes of worker 1")  # fmt: skip
    assert accuracy[0] > 0.9 and accuracy[1] > accuracy[0] - 0.02
    summary = summarise(run)
    assert summary["refused_pushes"] == injected and f"{injected} refused" in format_report(summary)
    assert summary["pushes"] == len(pushes) - injected
    rounds = run.table("rounds")
    taken = pushes[pushes["refused"] == 0]
    assert rounds["samples"][-1] == taken["samples"].sum() and rounds["local_steps"].sum() == taken["local_steps"].sum()
    if policy == "losp":
        done = hpcdml(3, "replay", "poisoned", cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all as recorded" in done.stdout, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_a_worker_that_gives_nothing_but_nan_is_dropped_and_the_others_finish(tmp_path: Path) -> None:
    run = train(tmp_path, "bsp", 1, "run", "--epochs", "4", "--checkpoint-rounds", "20")
    kinds = [(kind, rank) for _, rank, kind, _ in run.events()]
    assert kinds.count(("refused", 1)) == 10 and ("dropped", 1) in kinds and kinds[-1][0] == "finished"
    pushes = run.table("pushes")
    assert (pushes["refused"] == (pushes["worker"] == 1)).all()
    assert run.table("rounds")["members"].max() == 1
    assert float(run.table("evaluations")["accuracy"][-1]) > 0.85


# The parts


def tiny(wire: str | None = None) -> tuple[FlatModel, WireVector]:
    torch.manual_seed(1)
    flat = FlatModel(nn.Sequential(nn.Linear(300, 600), nn.BatchNorm1d(600)), 1 << 14, wire)
    flat.set_base()
    return flat, WireVector(flat.layout)


@pytest.mark.parametrize("wire", [None, "bfloat16", "float16"])
def test_the_norm_is_that_of_the_update_before_it_is_rounded(wire: str | None) -> None:
    flat, out = tiny(wire)
    change = 1e-3 * torch.randn(flat.flats[0].shape)
    flat.flats[0].add_(change)
    torch.testing.assert_close(float(flat.update_into(out)), float(change.norm()), rtol=1e-3, atol=0)
    flat, out = tiny(wire)
    flat.flats[0].add_(change)
    x = WireVector(flat.layout)
    torch.testing.assert_close(float(flat.exchange(out, x, 1.0)), float(change.norm()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("wire", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_one_bad_value_makes_the_norm_not_finite_and_leaves_no_trace(wire: str | None, bad: float, place: int) -> None:
    flat, out = tiny(wire)
    flat.flats[place][17] = bad
    assert not math.isfinite(float(flat.exchange(out, WireVector(flat.layout), 1.0)))
    flat.forget_residual()
    flat.adopt(WireVector(flat.layout))
    flat.flats[0].sub_(1.0)
    assert float(flat.update_into(out)) == pytest.approx(math.sqrt(flat.flats[0].numel()), rel=1e-5)
    assert all(bool(torch.isfinite(segment.float()).all()) for segment in out.segments)


def test_values_beyond_fp16_are_no_poison_but_follow_later() -> None:
    flat, out = tiny("float16")
    flat.flats[0][3] -= 100_000.0
    assert math.isfinite(float(flat.update_into(out)))
    flat.set_base()
    assert float(out.segments[0][3]) == 65504.0
    flat.update_into(out)
    assert float(out.segments[0][3]) == pytest.approx(100_000.0 - 65504.0, rel=1e-3)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "RMSprop"])
def test_an_optimizer_with_poison_in_its_state_begins_anew(name: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(2)
        model = nn.Linear(3, 2)
        more = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
        return model, getattr(torch.optim, name)(model.parameters(), lr=0.1, **more)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, scale: float) -> None:
        (model(torch.ones(1, 3)).sum() * scale).backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    blank = BlankState(optimizer)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    step(model, optimizer, 2.0)
    assert not blank.restore_unless_finite()
    step(model, optimizer, math.nan)
    optimizer.param_groups[0]["lr"] = 0.05  # as a scheduler does
    assert blank.restore_unless_finite() and not blank.restore_unless_finite()
    model.load_state_dict(start)
    step(model, optimizer, 2.0)
    fresh, other = made()
    other.param_groups[0]["lr"] = 0.05
    step(fresh, other, 2.0)
    for mine, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_chunk_spoiled_on_its_way_is_left_out_and_then_its_worker_is_known(bad: float) -> None:
    flat = FlatModel(nn.Linear(40, 40), 1024)
    aggregator = Aggregator(flat.layout, OuterSgd(1.0))
    told: list[tuple[int, str]] = []
    guard = Guard(lambda worker, text: told.append((worker, text)))
    sizes = [piece.numel() for piece in aggregator.x.chunks]

    def serve(spoiled: dict[int, set[int]]) -> Round:
        """A round of three workers, whose updates are of ones; ``spoiled``: by chunk the ranks whose chunk is not."""
        round_ = Round((1, 2, 3), {w: Push(w, 0, 1, 0, 1, 1, 1) for w in (1, 2, 3)}, version=7)
        for chunk, size in enumerate(sizes):
            for worker in (1, 2, 3):
                update = torch.ones(size)
                if worker in spoiled.get(chunk, ()):
                    update[size // 2] = bad
                if guard.admits(round_, worker, chunk, update):
                    aggregator.add(chunk, [(update, 1.0)], first=worker == 1)
            taken = guard.contributors(round_, chunk, (1, 2, 3))
            if taken and not aggregator.close(chunk, float(len(taken)), 1.0):
                guard.spoiled(round_, chunk, taken)
        return round_

    serve({})
    assert guard.left_out == 0 and not told
    serve({2: {3}})
    assert guard.left_out == 1 and [worker for worker, _ in told] == [0]
    serve({0: {1}, 2: {1, 2, 3}, 3: {2}})
    assert [worker for worker, _ in told] == [0, 1] and guard.left_out == 6
    expected = [-3.0] * len(sizes)
    expected[2] = -1.0
    for piece, value in zip(aggregator.x.chunks, expected, strict=True):
        torch.testing.assert_close(piece, torch.full_like(piece, value))


def test_values_whose_sum_overflows_are_still_finite() -> None:
    flat = FlatModel(nn.Linear(4, 4), 1024)
    aggregator = Aggregator(flat.layout, OuterSgd(1.0))
    for chunk, piece in enumerate(aggregator.x.chunks):
        assert aggregator.close(chunk, 1.0, 1.0, torch.full_like(piece, 3e38))
