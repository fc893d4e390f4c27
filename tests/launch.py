"""Starts real MPI jobs for tests and sees to it that nothing of them is left, after a hang or a failure either."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

MARK = "HPCDML_TEST_JOB"  # in the environment of every process of a job: ranks have process groups of their own
NO_START = 213  # status of Open MPI's mpirun that failed before it started any rank
LEAVING_SECONDS = 10.0  # what ranks may take to end after mpirun did
OF_ANOTHER_JOB = ("OMPI_COMM", "OMPI_MCA_ess", "PMIX_", "PMI_", "PRTE_JOB", "PRTE_LAUNCHED", "HYDI_", "HYDRA_")
# For Open MPI 5 and 4; other launchers pass them by.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
OVERSUBSCRIBE = {
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}
TOLERANT = ("--with-ft", "ulfm")  # words of an mpirun that lets a job lose ranks
CANNOT_LOSE_RANKS = "needs an mpirun that has --with-ft ulfm, as Open MPI 5 does"


class JobHangs(AssertionError):
    """A job did not end in its time; the message holds what it had written."""


class JobLeftProcesses(AssertionError):
    """A job has ended, some of its processes have not."""


def find_mpirun() -> str | None:
    """The mpirun beside this Python (of the same environment as mpi4py), else the first on the path."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("mpirun", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))


def can_lose_ranks() -> bool:
    mpirun = find_mpirun()
    if mpirun is None:
        return False
    told = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    return "Open MPI" in told and "Open MPI) 4" not in told


def hpcdml(
    n: int,
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``mpirun -n N hpcdml ARGS``; as ``mpirun``."""
    return mpirun(n, sys.executable, "-m", "hpcdml", *args, env=env, timeout=timeout, cwd=cwd)


def mpirun(
    n: int,
    *args: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``mpirun -n N ARGS`` and wait for all of its processes.

    Args:
        n: ranks; they may be more than the cores.
        args: program and arguments.
        env: variables beyond those of this process.
        timeout: seconds until the job counts as hanging.
        cwd: folder of the job.

    Returns:
        The exit status, standard output and standard error, as text.

    Raises:
        JobHangs: after the timeout; all of its processes have been killed.
        JobLeftProcesses: a process outlived mpirun; it has been killed.
    """
    command = [find_mpirun() or "mpirun", "-n", str(n), *map(os.fspath, args)]
    return run(command, env=env, timeout=timeout, cwd=cwd)


def run(
    command: list[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command that may start processes anywhere below it; as ``mpirun``, which is the usual one."""
    done = _run(command, env, timeout, cwd)
    # Open MPI's own start fails once in a thousand times or so ("The PMIx server's listener thread failed to start").
    return _run(command, env, timeout, cwd) if done.returncode == NO_START else done


def _run(
    command: list[str], env: Mapping[str, str] | None, timeout: float, cwd: str | os.PathLike[str] | None
) -> subprocess.CompletedProcess[str]:
    child, mark = start(command, env, cwd)
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _stop(child, mark)
        raise JobHangs(_story(f"still running after {timeout:g} s", command, out, err)) from None
    except BaseException:  # an interrupt, or pytest's own timeout
        _stop(child, mark)
        raise
    left = wait_for_end(mark)
    if left:
        kill(mark)
        raise JobLeftProcesses(_story(f"ended and left {', '.join(left)}", command, out, err))
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def start(
    command: list[str], env: Mapping[str, str] | None = None, cwd: str | os.PathLike[str] | None = None
) -> tuple[subprocess.Popen[str], str]:
    """Start a command as ``run`` does, and leave it running; returns the mark of its processes as well."""
    mark = uuid.uuid4().hex
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(OF_ANOTHER_JOB)}
    child = subprocess.Popen(
        command,
        env={**inherited, **AS_ROOT, **OVERSUBSCRIBE, **(env or {}), MARK: mark},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    return child, mark


def processes(mark: str) -> dict[int, str]:
    """Process number and command line of what is alive and has the mark in its environment; empty without /proc."""
    found = {}
    needle = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def ranks(mark: str) -> dict[int, int]:
    """Process number of every rank of a job that is alive."""
    found = {}
    for pid in processes(mark):
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                for name in (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK="):
                    if entry.startswith(name):
                        found[int(entry.removeprefix(name))] = pid
    return found


def wait_for_end(mark: str) -> list[str]:
    deadline = time.monotonic() + LEAVING_SECONDS
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [f"{pid} ({line.strip()})" for pid, line in left.items()]


def _stop(child: subprocess.Popen[str], mark: str) -> tuple[str, str]:
    """End a job: mpirun may clean up for two seconds, then everything is killed. Returns the output so far."""
    child.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(2)
    kill(mark)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    out, err = child.communicate()
    return out, err


def kill(mark: str) -> None:
    """SIGKILL to all processes that have the mark, until none is left."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while (left := processes(mark)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _story(what: str, command: list[str], out: str, err: str) -> str:
    return f"{' '.join(command)}\n{what}\n--- standard output\n{out[-20000:]}\n--- standard error\n{err[-20000:]}"
