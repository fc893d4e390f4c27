"""Jobs in the Slurm of these tests, submitted from a folder of their own, as a user does from his."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import h5py

from cluster import Slurm
from hpcdml.storage.run_reader import RunReader

REPOSITORY = Path(__file__).parents[2]
JOBS = REPOSITORY / "jobs"
DONE = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY"}
SECONDS = 240.0  # for a job: others may use the machine
ENDING_SECONDS = 40.0  # more than KillWait

# bsp does not depend on the machine: whatever interrupts it, its result is that of an unbroken run. It takes 4 s.
LONG = ("--dataset", "digits", "--model", "mlp", "--policy", "bsp", "--threads", "1", "--checkpoint-seconds", "0.5")
LONG = (*LONG, "--step-seconds", "0.02", "--max-samples", "12800", "--eval-seconds", "100")
SIZE = ("--nodes=1", "--ntasks=3", "--ntasks-per-node=3")


class JobHangs(AssertionError):
    """A job is not where it should be in its time."""


class Jobs:
    """Submits scripts in a folder of its own, as a user does in his."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm = slurm
        self.folder = folder

    def submit(self, script: str, *args: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        """``sbatch OPTIONS jobs/SCRIPT.sbatch ARGS``; the number of the job."""
        path = Path(script) if script.startswith("/") else JOBS / f"{script}.sbatch"
        done = self.slurm.run("sbatch", "--parsable", *options, path, *args, env=_user(env), cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, *command: str) -> tuple[int, str]:
        """A command of Slurm, from the same shell; its status, and output and errors together."""
        done = self.slurm.run(*command, env=_user(None), cwd=self.folder)
        return done.returncode, done.stdout + done.stderr

    def state(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` tells of it."""
        status, text = self.run("scontrol", "show", "job", "-o", job)
        assert status == 0, text
        return dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[0]))

    def wait(self, job: str, seconds: float = SECONDS) -> dict[str, str]:
        """Wait until a job has ended; what Slurm tells of it."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job))["JobState"] not in DONE:
            if time.monotonic() > deadline:
                raise JobHangs(f"job {job} is {state['JobState']} after {seconds:g} s\n{self.story()}")
            time.sleep(0.2)
        return state

    def wait_for(self, job: str, pattern: str, times: int = 1, seconds: float = SECONDS) -> None:
        """Wait until the log of a job has a pattern so many times."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.log(job))) < times:
            if time.monotonic() > deadline or self.state(job)["JobState"] in DONE:
                raise JobHangs(f"job {job} has not written {pattern!r} {times} times\n{self.story()}")
            time.sleep(0.1)

    def log(self, job: str) -> str:
        """What a job has written so far."""
        path = self.folder / f"hpcdml-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self) -> None:
        """Cancel what is left, and wait until Slurm has ended it."""
        self.run("scancel", "--user=root")
        deadline = time.monotonic() + ENDING_SECONDS
        while self.run("squeue", "--noheader")[1].strip():
            assert time.monotonic() < deadline, self.run("squeue")[1]
            time.sleep(0.1)

    def story(self) -> str:
        """The end of every log in the folder, for a failure's message."""
        texts = [f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.log")]
        return "\n".join(texts)

    def finished(self, job: str, output: str | None = None) -> Path:
        """Wait for a job, make sure that it and its run came to their ends, and return the run's file."""
        state = self.wait(job)
        assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), self.story()
        return self.folder / "runs" / (output or job) / "run.h5"


def hosts(run: Path) -> list[str]:
    """The host of every rank of a run."""
    with h5py.File(run, "r") as file:
        found = dict(file["environment"].attrs)
    ranks = sum(bool(re.fullmatch(r"rank\d+_host", key)) for key in found)
    return [found[f"rank{rank}_host"].decode() for rank in range(ranks)]


def result(run: Path) -> dict[str, bytes]:
    """The final parameters of a run that came to its end."""
    reader = RunReader(run)
    found = reader.parameters()
    assert reader.finished and found is not None
    return {name: value.tobytes() for name, value in found.items()}


def checkpoints(folder: Path) -> list[Path]:
    """Those of the run in a folder, the newest last."""
    return sorted((folder / "checkpoints").glob("step-*.h5"))


def wait_for_checkpoint(jobs: Jobs, job: str, folder: Path) -> None:
    """Wait until a job has written its first."""
    deadline = time.monotonic() + 120
    while not checkpoints(folder):
        assert time.monotonic() < deadline and jobs.state(job)["JobState"] not in DONE, jobs.story()
        time.sleep(0.05)


def _user(env: dict[str, str] | None) -> dict[str, str]:
    """The shell of a user who has loaded the environment in which these tests run."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # mpirun does not want to run as root, and Slurm believes in more cores than there are.
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {"PATH": path, "PYTHONPATH": str(REPOSITORY), **root, **(env or {})}
