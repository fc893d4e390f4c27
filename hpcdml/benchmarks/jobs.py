"""Starts a training run as a user does, by mpirun, and returns what it reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcdml.config import POLICIES
from hpcdml.errors import MachineError, UsageError
from hpcdml.observability.summary import summarise
from hpcdml.storage.run_reader import RunReader

# What Open MPI 5 and 4 need where one machine has fewer cores than ranks, and in containers, where everybody is root.
_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def train_job(workers: int, options: Mapping[str, Any], timeout: float = 1800.0) -> dict[str, Any]:
    """Run ``mpirun -n WORKERS+1 hpcdml train`` with the options and return the summary of its run.

    Args:
        options: by name with underscores; dicts become ``key=value,...``.
        timeout: seconds after which the job counts as hanging.

    Raises:
        MachineError: there is no mpirun, or the job failed or hung; with its last line.
    """
    mpirun = shutil.which(
        "mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if mpirun is None:
        raise MachineError("bench needs mpirun on the path")
    with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder:
        arguments = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in options.items()]
        command = [mpirun, "-n", str(workers + 1), sys.executable, "-m", "hpcdml", "train", *arguments]
        try:
            done = subprocess.run(
                [*command, f"--output={folder}/run"],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise MachineError(f"{' '.join(command)}: still running after {timeout:g} s") from None
        if done.returncode:
            lines = [
                line for line in done.stderr.splitlines() if line.startswith("hpcdml:")
            ] or done.stderr.splitlines()
            raise MachineError(
                f"{' '.join(arguments)}: status {done.returncode}: {lines[-1] if lines else 'no output'}"
            )
        return summarise(RunReader(f"{folder}/run"))


def policy_names(text: str) -> list[str]:
    """The policies of a comma-separated list.

    Raises:
        UsageError: one of them is none.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise UsageError(f"--policies {text}: must be of {','.join(POLICIES)}")
    return names


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
