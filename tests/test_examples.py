"""The examples and other people's scripts, as they are and ported: alone, and as one server and two workers."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from hpcdml.storage.run_reader import RunReader

pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).parents[1]
SEVERAL = Path(__file__).with_name("several.py")
PORTED = Path(__file__).with_name("ported")
SCRIPTS = {"classifier": "runs/classifier", "scheduled": "runs/scheduled", "module": "runs/module"}


def examples(folder: Path) -> list[str]:
    return [
        f"{ROOT}/examples/digits.py --epochs 4 --output {folder}/digits",
        f"{ROOT}/examples/characters.py --samples 5000 --output {folder}/characters",
        f"{ROOT}/examples/heat.py --epochs 8 --output {folder}/heat",
    ]


def check_examples(said: str) -> None:
    accuracy = re.search(r"final accuracy (\S+)", said)
    losses = re.search(r"loss (\S+) before, (\S+) now", said)
    error = re.search(r"error (\S+) of the variance", said)
    assert accuracy and losses and error, said
    assert float(accuracy[1]) > 0.9  # a tenth without training
    assert float(losses[2]) < 0.75 * float(losses[1])
    assert float(error[1]) < 0.1  # 1 for the mean of all solutions


def alone(folder: Path, scripts: list[str]) -> str:
    done = launch.run([sys.executable, str(SEVERAL), *scripts], timeout=900, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def three_ranks(folder: Path, scripts: list[str]) -> str:
    done: subprocess.CompletedProcess[str] = launch.mpirun(
        3, sys.executable, str(SEVERAL), *scripts, timeout=1400, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_examples_alone(tmp_path: Path) -> None:
    check_examples(alone(tmp_path, examples(tmp_path)))
    assert not list(tmp_path.rglob("run.h5"))


def test_examples_under_mpirun(_needs_mpirun: None, tmp_path: Path) -> None:
    check_examples(three_ranks(tmp_path, examples(tmp_path)))
    for name in ("digits", "characters", "heat"):
        run = RunReader(tmp_path / name)
        assert run.finished and run.workers == 2 and len(run.table("rounds"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_port_changes_at_most_ten_lines(name: str) -> None:
    before, after = ((PORTED / f"{name}{end}.py").read_text().splitlines() for end in ("", "_hpcdml"))
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("+ ", "- ")]
    assert 0 < len(changed) <= 10, "\n".join(changed)


def accuracies(said: str) -> list[float]:
    found = re.findall(r"(?:test accuracy: |validation accuracy: |^)(0\.\d+|1\.0+)$", said, re.MULTILINE)
    return [float(value) for value in found]


def scripts(end: str) -> list[str]:
    return [f"{PORTED}/{name}{end}.py" for name in SCRIPTS]


def test_ported_scripts_alone(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    said = alone(tmp_path, [*scripts(""), *scripts("_hpcdml")])
    found = accuracies(said)
    assert len(found) == 6 and min(found) > 0.88, said
    # With one process nothing but the code has changed.
    assert found[:3] == pytest.approx(found[3:], abs=0.03)


def test_ported_scripts_under_mpirun(_needs_mpirun: None, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    found = accuracies(three_ranks(tmp_path, scripts("_hpcdml")))
    # Every rank evaluates the final model, and all get the same.
    assert len(found) == 9 and min(found) > 0.85, found
    assert len(set(found)) <= 3
    for output in SCRIPTS.values():
        run = RunReader(tmp_path / output)
        assert run.finished and run.workers == 2 and len(run.table("steps"))
