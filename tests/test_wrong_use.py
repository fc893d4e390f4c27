"""Wrong input and failing machines under mpirun, as a user has them: one line, on one rank, the right status, no hang.

Every way to write an option wrongly is in ``test_cli``, every defect of a data set in ``test_data_files`` and
``test_user_data``, of a model in ``test_models``, of a disk in ``test_storage_disks``. Here is what each kind does to a
whole job.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpcdml.storage.checkpoint import read_checkpoint
from hpcdml.storage.run_reader import RunReader
from in_one_job import Said, several

SECONDS = 240.0  # others may use the machine
pytestmark = pytest.mark.timeout(SECONDS + 60)

Job = Callable[..., subprocess.CompletedProcess[str]]

FRAME = re.compile(r"^-{70,}\n.*?^-{70,}\n", re.DOTALL | re.MULTILINE)  # around what mpirun itself has to say
OTHERS = re.compile(r"\[|\d+\.\d s[ ,]")  # what libevent and Open MPI log, and the lines of the progress

FACTORIES = '''
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from hpcdml.cli.ranks import launcher_rank

RANK = launcher_rank()


def data():
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long())


def data_of_one_rank():
    whole = data()
    return TensorDataset(*whole[: 400 - (RANK == 1)])


def no_data():
    raise FileNotFoundError("no images\\nin /nowhere")


class Worn(Dataset):
    """One sample cannot be read; nobody notices before its turn comes."""

    num_classes = 2

    def __len__(self):
        return 400

    def __getitem__(self, index):
        if index == 301:
            raise OSError("bad block")
        return torch.full((4,), index / 400), index % 2


def worn():
    return Worn(), data()


def model(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))


def fails_on_one_rank():
    if RANK == 1:
        raise RuntimeError("no such\\nweights file")
    return model()


def shape_of_one_rank():
    return model(8 + (RANK == 2))


def fits_nothing():
    return nn.Linear(5, 2)


def too_few_scores():
    return nn.Linear(4, 1)


def normalised():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


class Fails(nn.Module):
    """Raises at its n-th call in training or evaluation, on one rank."""

    def __init__(self, rank, training, call, error):
        super().__init__()
        self.net = model()
        self.calls = 0
        self.when = (rank, training, call)
        self.error = error

    def forward(self, x):
        self.calls += self.training == self.when[1]
        if (RANK, self.training, self.calls) == self.when:
            Path("failed").write_text(str(time.time()))
            raise self.error
        return self.net(x)


def fails_in_training():
    return Fails(2, True, 30, RuntimeError("overheated\\nand melted"))


def leaves_in_training():
    return Fails(1, True, 30, SystemExit(0))


class Killed(Fails):
    def forward(self, x):
        try:
            return super().forward(x)
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_in_training():
    return Killed(2, True, 30, MemoryError())


def fails_in_evaluation():
    return Fails(0, False, 5, RuntimeError("cannot judge"))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the job runs, with the module ``mine``."""
    (tmp_path / "mine.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def disk(folder: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system (options of mount -t tmpfs) on the folder ``disk``."""
    place = folder / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
        if not mounted:
            pytest.skip("mounting a small file system needs root and the permission to mount")
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def train(job: Job, ranks: int, options: str) -> subprocess.CompletedProcess[str]:
    """Run ``mpirun -n RANKS hpcdml train OPTIONS``."""
    return job(ranks, "train", *shlex.split(options), timeout=SECONDS)


def told(result: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line of a job that must have ended with a status, without its ``hpcdml:``."""
    everything = f"status {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert result.returncode == status, everything
    text = FRAME.sub("", result.stderr.replace("\0", ""))  # Open MPI ends its notice of an abort with a zero
    lines = [line for line in text.splitlines() if line and not OTHERS.match(line)]
    assert len(lines) == 1 and lines[0].startswith("hpcdml: "), everything
    assert result.stdout == "", everything
    print(lines[0])
    return lines[0].removeprefix("hpcdml: ")


def write_data(path: Path, x: Any, y: Any, **more: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in {"x": x, "y": y, **more}.items():
            if values is not None:
                file[name] = values


# Seen before any rank communicates

OPTIONS = [
    ("--batchsize 3", "--batchsize: no such option; did you mean --batch-size?"),
    ("--batch-size many", "--batch-size many: must be a whole number"),
    ("--compensation 3", "--compensation 3.0: must be from 0 to 2"),
    ("--policy osp2", "--policy osp2: must be one of bsp, local-sgd, diloco, asp, ssp, osp, losp"),
    ("missing.yaml", "missing.yaml: no such file of options (an option itself begins with --)"),
    ("run.yaml", "run.yaml, line 2: not well-formed YAML: "),
]


@pytest.mark.parametrize(("options", "line"), OPTIONS, ids=[options for options, _ in OPTIONS])
def test_options(folder: Path, hpcdml_job: Job, options: str, line: str) -> None:
    (folder / "run.yaml").write_text("lr: 0.1\nmodel: mlp: 2\n")
    assert told(train(hpcdml_job, 2, options), 2).startswith(line)


def test_no_mpirun(folder: Path, hpcdml: Job) -> None:
    line = told(hpcdml("train", "--dataset", "mine:data"), 2)
    assert line.endswith(": mpirun -n 3 hpcdml train --dataset mine:data")


def test_one_rank(folder: Path, hpcdml_job: Job) -> None:
    line = told(train(hpcdml_job, 1, "--dataset mine:data"), 2)
    assert line == "train needs at least 2 ranks, a server and its workers: mpirun -n 3 hpcdml train ..."


def test_ranks_with_other_options(folder: Path, mpirun: Job) -> None:
    """As from a file of options on a disk that each host has for itself."""
    command = [sys.executable, "-m", "hpcdml", "train", "--dataset", "mine:data"]
    line = told(mpirun(1, *command, ":", "-n", "1", *command, "--policy", "bsp", timeout=SECONDS), 2)
    assert line == "--policy: its value differs between rank 0 and rank 1; must be the same on every rank"


# Data

X, Y = np.ones((40, 4), np.float32), np.arange(40) % 2
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no_x.h5": ({"x": None, "y": Y}, "has no data set x, which is needed; it holds y"),
    "lengths.h5": ({"x": X, "y": Y[:30]}, "x has 40 rows and y has 30; must be as many"),
    "negative.h5": ({"x": X, "y": Y - 1}, "y holds the label -1 in row 0; labels count from 0"),
    "huge.h5": ({"x": X, "y": Y * 10**7}, "y holds the label 10000000 in row 1; must be the number of a class"),
    "nan.h5": ({"x": np.where(np.arange(40)[:, None] == 7, np.nan, X), "y": Y}, "x holds nan in row 7; must hold fin"),
    "test.h5": ({"x": X, "y": Y, "x_test": X[:, :3], "y_test": Y}, "x have shape (4,) and rows of x_test (3,)"),
}

SETTINGS = {
    "--dataset digit": "--dataset digit: must be one of digits, iris, ",
    "--dataset no/such.h5": "--dataset no/such.h5: there is no such file in ",
    "--dataset mine:no_data": "--dataset mine:no_data: raised FileNotFoundError: no images in /nowhere",
    "--dataset mine:data_of_one_rank": (
        "--dataset mine:data_of_one_rank: the number or shape of its samples differs between"
    ),
    "--shard-weights 1,2,3": "--shard-weights [1,2,3]: must be 1 numbers, one for each worker",
    "--slowdown 2=1.5": "--slowdown 2=1.5: must name a worker from 1 to 1",
    "--model mlpp": "--model mlpp: must be one of mlp, ",
    "--model mine:fits_nothing": "--model mine:fits_nothing: does not fit inputs of shape 4: ",
    "--model mine:too_few_scores": ("--model mine:too_few_scores: gives 1 scores for a sample; must give one for each"),
    "--model-args widht=3": "--model-args widht=3: mine:model takes width: ",
    "--optimizer sgd": "--optimizer sgd: did you mean SGD?",
    "--optimizer-args momentun=1": "--optimizer-args momentun=1: SGD takes momentum, ",
    "--scheduler Step": "--scheduler Step: must be one of ",
    "--scheduler StepLR": "--scheduler-args (none): StepLR takes step_size, ",
}

DEFAULTS = "--dataset mine:data --model mine:model --output run"


@pytest.fixture(scope="module")
def refusals(_needs_mpirun: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Said]]:
    """What two ranks said to each of these settings and files, one after the other in one job."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "mine.py").write_text(FACTORIES)
    for name, (arrays, _) in FILES.items():
        write_data(folder / name, **arrays)
    wanted = [*SETTINGS, *(f"--dataset {name}" for name in FILES)]
    commands = [["train", *shlex.split(f"{DEFAULTS} {options}")] for options in wanted]
    found = several(2, commands, folder, timeout=SECONDS)
    assert not (folder / "run").exists()
    return dict(zip(wanted, found, strict=True))


def refused(found: list[Said]) -> str:
    """The one line of one rank, where all ranks leave with status 2 and say nothing else."""
    assert [said.status for said in found] == [2] * len(found), found
    assert not any(said.stdout for said in found), found
    (line,) = [line for said in found for line in said.stderr.splitlines()]
    assert line.startswith("hpcdml: ")
    return line.removeprefix("hpcdml: ")


@pytest.mark.parametrize("name", FILES)
def test_defect_of_a_file(name: str, refusals: dict[str, list[Said]]) -> None:
    line = refused(refusals[f"--dataset {name}"])
    assert line.startswith(f"--dataset {name}: ") and FILES[name][1] in line


@pytest.mark.parametrize("options", SETTINGS)
def test_setting(options: str, refusals: dict[str, list[Said]]) -> None:
    line = refused(refusals[options])
    assert line.startswith(SETTINGS[options])
    assert ("one_rank" in options) == ("rank 1" in line)


WHOLE_JOBS = {
    "--dataset d.h5": "--dataset d.h5: 1 training samples cannot be shared by 2 workers; each needs at least one",
    "--model mine:fails_on_one_rank": ("--model mine:fails_on_one_rank: raised RuntimeError: no such weights file (r"),
    "--model mine:shape_of_one_rank": ("--model mine:shape_of_one_rank: the layout of its parameters differs between"),
}


@pytest.mark.parametrize("options", WHOLE_JOBS)
def test_setting_ends_the_job(folder: Path, hpcdml_job: Job, options: str) -> None:
    write_data(folder / "d.h5", X[:2], Y[:2])
    line = told(train(hpcdml_job, 3, f"{DEFAULTS} {options}"), 2)
    assert line.startswith(WHOLE_JOBS[options])
    assert ("one_rank" in options) == ("rank 1" in line or "rank 2" in line)
    assert not (folder / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(folder: Path, hpcdml_job: Job) -> None:
    line = told(train(hpcdml_job, 2, "--dataset mine:data --model mine:model --device cuda"), 2)
    assert line.startswith("--device cuda: there is no GPU on host ")
    assert "; --device cpu works everywhere (rank 1 on " in line


# Places

RUN = "--dataset mine:data --model mine:model --batch-size 4"


def test_output_below_a_file(folder: Path, hpcdml_job: Job) -> None:
    line = told(train(hpcdml_job, 2, f"{RUN} --output mine.py/run"), 2)
    assert line == "--output mine.py/run: cannot be written: Not a directory"


def test_output_on_a_read_only_disk(disk: Callable[[str], Path], hpcdml_job: Job) -> None:
    disk("size=1m,ro")
    assert told(train(hpcdml_job, 2, f"{RUN} --output disk/run"), 2) == (
        "--output disk/run: cannot be written: Read-only file system"
    )


def test_output_holds_a_run(folder: Path, hpcdml_job: Job) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "run.h5").write_text("precious")
    line = told(train(hpcdml_job, 2, f"{RUN} --output run"), 2)
    assert line == "--output run: holds a run already; choose another folder or add --overwrite"
    assert (folder / "run" / "run.h5").read_text() == "precious"


def test_disk_full_at_the_start(disk: Callable[[str], Path], hpcdml_job: Job) -> None:
    disk("size=4k")
    assert told(train(hpcdml_job, 2, f"{RUN} --output disk/run"), 1) == (
        "--output disk/run: cannot be written: No space left on device"
    )


def test_disk_full_in_training(disk: Callable[[str], Path], hpcdml_job: Job) -> None:
    disk("size=400k")
    line = told(train(hpcdml_job, 3, f"{RUN} --output disk/run --max-seconds 200"), 1)
    assert re.fullmatch(r"rank 0 on \S+: disk/run/\S+\.h5: cannot be written: No space left on device", line)
    run = RunReader("disk/run")
    assert not run.finished and len(run.table("steps")) > 0


def test_disk_too_small_for_a_checkpoint(disk: Callable[[str], Path], hpcdml_job: Job) -> None:
    """It would take seven times the memory of the model, and the run's own file fits: the run comes to its end."""
    disk("size=700k")
    options = "--max-samples 2000 --step-seconds 0.005 --checkpoint-seconds 0.1 --model-args width=6000"
    done = train(hpcdml_job, 3, f"{RUN} --output disk/run {options}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("hpcdml: warning: ") == 1, "the same warning is given once"
    assert re.search(r"warning: checkpoint \d+: needs \S+ MB, and disk/\S+ has \S+ MB left; training goes", done.stderr)
    assert RunReader("disk/run").finished
    # The last one fits: at the end no worker has a model of its own any more.
    (last,) = Path("disk/run/checkpoints").iterdir()
    assert read_checkpoint(last).server["ended"]


# Failures in the middle


def fails(job: Job, ranks: int, options: str) -> str:
    """The line of a run that would last for minutes, and ends soon after its failure."""
    line = told(train(job, ranks, f"{RUN} --output run --max-seconds 200 {options}"), 1)
    if os.path.exists("failed"):
        assert time.time() - float(Path("failed").read_text()) < 30
    return line


def test_training_fails_on_one_rank(folder: Path, hpcdml_job: Job) -> None:
    line = fails(hpcdml_job, 3, "--model mine:fails_in_training")
    assert re.fullmatch(r"rank 2 on \S+: RuntimeError: overheated and melted", line)
    assert not RunReader("run").finished


def test_training_leaves_on_one_rank(folder: Path, hpcdml_job: Job) -> None:
    assert re.fullmatch(r"rank 1 on \S+: SystemExit: 0", fails(hpcdml_job, 3, "--model mine:leaves_in_training"))


def test_training_fails_on_all_workers_at_once(folder: Path, hpcdml_job: Job) -> None:
    line = fails(hpcdml_job, 4, "--model mine:normalised --batch-size 1")
    assert re.match(r"rank [1-3] on \S+: ValueError: Expected more than 1 value per channel when training", line)


def test_evaluation_fails(folder: Path, hpcdml_job: Job) -> None:
    line = fails(hpcdml_job, 2, "--model mine:fails_in_evaluation --eval-seconds 0.1")
    assert re.fullmatch(r"rank 0 on \S+: evaluation: RuntimeError: cannot judge", line)


def test_sample_cannot_be_read(folder: Path, hpcdml_job: Job) -> None:
    line = fails(hpcdml_job, 3, "--dataset mine:worn")
    assert re.fullmatch(r"rank [12] on \S+: --dataset mine:worn: a batch of samples raised OSError: bad block", line)


def test_a_rank_is_killed(folder: Path, hpcdml_job: Job) -> None:
    """As by a system that is out of memory: the launcher alone can tell, and ends the others."""
    result = train(hpcdml_job, 3, f"{RUN} --output run --max-seconds 200 --model mine:killed_in_training")
    assert result.returncode not in (0, 2)
    assert "hpcdml" not in FRAME.sub("", result.stderr) and "Traceback" not in result.stderr
    assert time.time() - float(Path("failed").read_text()) < 30
    assert not RunReader("run").finished


def test_a_run_whose_updates_are_no_numbers_ends_and_says_why(folder: Path, hpcdml_job: Job, hpcdml: Job) -> None:
    result = train(hpcdml_job, 3, f"{RUN} --output run --epochs 1 --lr 1e38")
    assert result.returncode == 1 and "refused: push 1: its update is not finite" in result.stderr
    assert "no worker is left; the result is what there was before" in result.stderr
    assert np.isnan(RunReader("run").table("steps")["loss"]).any()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    summary = json.loads(hpcdml("report", "run", "--json").stdout, parse_constant=refuse)
    assert summary["finished"]
