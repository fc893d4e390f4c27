"""Whole runs on files that are larger than the memory for data."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdml.observability.summary import summarise
from hpcdml.storage.run_reader import RunReader
from samples import write_hdf5

pytestmark = pytest.mark.timeout(240)

Job = Callable[..., subprocess.CompletedProcess[str]]


def files(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two files of 6 MB each, the first with a test part; the classes lie one after the other, as in many files."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((5, 300)).astype("f4")
    y = np.sort(random.integers(0, 5, 10_000))
    x = (centres[y] + random.standard_normal((10_000, 300))).astype("f4")
    write_hdf5(folder / "a.h5", x=x[:5000], y=y[:5000], x_test=x[::20], y_test=y[::20])
    write_hdf5(folder / "b.h5", x=x[5000:], y=y[5000:])
    return x, y


def test_a_set_of_files_is_trained_on_by_blocks(hpcdml_job: Job, tmp_path: Path) -> None:
    files(tmp_path)
    options = ["--data-memory-mb", "4", "--epochs", "6", "--lr", "0.05", "--output", tmp_path / "run"]
    result = hpcdml_job(3, "train", "--dataset", "*.h5", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summary = summarise(RunReader(tmp_path / "run"))
    assert summary["final_accuracy"] > 0.95
    assert 0.9 * 60_000 <= summary["samples"] <= 1.1 * 60_000


def test_one_rank_tells_what_another_found_in_its_part(hpcdml_job: Job, tmp_path: Path) -> None:
    x, y = files(tmp_path)
    x[9000, 5] = np.nan
    (tmp_path / "b.h5").unlink()
    write_hdf5(tmp_path / "b.h5", x=x[5000:], y=y[5000:])
    options = ["--data-memory-mb", "4", "--output", tmp_path / "run"]
    result = hpcdml_job(3, "train", "--dataset", "a.h5,b.h5", *options, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("hpcdml: ")]
    defect = "hpcdml: --dataset b.h5: x holds nan in row 4000; must hold finite numbers (as float32) (rank 2 on "
    assert line.startswith(defect)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_one_line(hpcdml_job: Job, tmp_path: Path) -> None:
    files(tmp_path)
    options = ["--data-memory-mb", "1", "--output", tmp_path / "run"]
    result = hpcdml_job(3, "train", "--dataset", "a.h5", *options, cwd=tmp_path)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("hpcdml: ")]
    assert lines == [
        "hpcdml: --data-memory-mb 1: too little for --dataset a.h5, whose pieces take 1.06 MB each "
        "(a chunk of the file, or 1 MiB of it); must be at least 3"
    ]


def test_a_run_by_blocks_that_was_broken_is_the_unbroken_one(hpcdml_job: Job, tmp_path: Path) -> None:
    files(tmp_path)
    options = "--dataset a.h5,b.h5 --data-memory-mb 4 --policy bsp --batch-size 50 --lr 0.05 --eval-seconds 100"
    common = shlex.split(options)

    def done(*arguments: str) -> None:
        result = hpcdml_job(3, *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr

    # 5,000 samples a worker and pass: broken in the midst of a window of the first pass, ended in the second.
    done("train", *common, "--max-samples", "12000", "--output", "whole")
    done("train", *common, "--max-samples", "6300", "--output", "broken", "--checkpoint-rounds", "1000")
    done("resume", "broken", "--max-samples", "12000")
    with h5py.File(tmp_path / "whole/run.h5") as whole, h5py.File(tmp_path / "broken/run.h5") as broken:
        assert set(whole["parameters"]) == set(broken["parameters"])
        for name, values in whole["parameters"].items():
            np.testing.assert_array_equal(values[()], broken["parameters"][name][()], err_msg=name)
