"""The machine and the versions that a run was made with, to be kept in ``run.h5``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys

from hpcdml.storage import versions

_GIT_SECONDS = 5.0


def environment() -> dict[str, str]:
    """Versions, host, processors, git revision and command line of this process.

    Never fails: what cannot be found out is "unknown" or left out. MPI's versions are added by whoever uses MPI.
    """
    found = {name: _version(name) for name in ("hpcdml", "torch", "numpy")}
    found |= versions()
    found |= {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node() or "unknown",
        "cpus": str(os.cpu_count() or "unknown"),
        "cpu": _cpu_model(),
        "folder": _folder(),
        "command": shlex.join(sys.argv),
    }
    if hasattr(os, "sched_getaffinity"):
        # What the scheduler gave to this process, as against what the node has.
        found["cpus_usable"] = str(len(os.sched_getaffinity(0)))
    revision = _git_revision()
    if revision:
        found["git"] = revision
    if "SLURM_JOB_ID" in os.environ:
        found["slurm_job_id"] = os.environ["SLURM_JOB_ID"]
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "unknown"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _git_revision() -> str | None:
    """The commit of the working directory, with "+dirty" where tracked files differ; None without a repository."""
    revision = _git("rev-parse", "--verify", "HEAD")
    if not revision:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return revision + ("+dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        # Without optional locks: a run must not get into the way of somebody who works in the repository.
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
