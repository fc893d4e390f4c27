"""Whether this MPI can be given a GPU's memory, found out in a process that may crash.

An MPI built without it reads the device's address as if it were the host's and ends with a segmentation fault; some
that claim it do so too (mpi4py issue 164, Open MPI issue 9845). So the test runs beside the rank, never in it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hpcdml.launcher import JOB_VARIABLES

SECONDS = 120.0
"""Longest time for the test, which starts Python, PyTorch and an MPI of one rank."""

_PROGRAM = """
import sys
import torch
from mpi4py import MPI
device = torch.device("cuda", int(sys.argv[1]))
sent = torch.arange(1 << 18, dtype=torch.int32, device=device)
got = torch.zeros_like(sent)
torch.cuda.synchronize(device)
requests = [MPI.COMM_SELF.Irecv(got, 0, 1), MPI.COMM_SELF.Isend(sent, 0, 1)]
MPI.Request.Waitall(requests)
sys.exit(0 if torch.equal(sent, got) else 3)
"""


def why_not(device: int) -> str | None:
    """Send a megabyte from the GPU to itself through MPI; returns None where it arrives, else what went wrong.

    Args:
        device: number of the GPU on this host.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(JOB_VARIABLES)}
    # Users' own settings of Open MPI are kept: they may be what makes it CUDA-aware.
    env |= {name: value for name, value in os.environ.items() if name.startswith("OMPI_MCA_")}
    command = [sys.executable, "-c", _PROGRAM, str(device)]
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"the test did not end in {SECONDS:g} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the test ended with signal {-done.returncode}"
    if done.returncode == 3:
        return "what arrived is not what was sent"
    lines = done.stderr.strip().splitlines()
    return lines[-1][:200] if lines else f"the test ended with status {done.returncode}"
