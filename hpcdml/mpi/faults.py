"""Ranks that die: how the others notice it, and how one of them leaves alone.

Needs an MPI with ULFM, user-level failure mitigation: Open MPI 5 under ``mpirun --with-ft ulfm``. Without it a rank
that dies takes all with it, and nothing here is ever called for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mpi4py import MPI

from hpcdml.errors import MachineError
from hpcdml.mpi.installation import fault_tolerance

SERVER = 0
_LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prte", "orterun")
_WATCH = """
while [ "$(cat "$1" 2>/dev/null)" = "$0" ]; do
    [ "${n:=0}" -ge "$3" ] && kill -KILL "$2"
    n=$((n + 1)); sleep 1
done
"""


class ServerLost(MachineError):
    """Rank 0 has died."""


def tolerated() -> bool:
    """Whether this job goes on when a rank dies."""
    return bool(fault_tolerance())


def failed(comm: MPI.Comm) -> frozenset[int]:
    """Ranks of ``comm`` that are known to be dead."""
    try:
        dead = comm.Get_failed()
    except (MPI.Exception, NotImplementedError):
        return frozenset()
    everybody = comm.Get_group()
    ranks = MPI.Group.Translate_ranks(dead, list(range(dead.Get_size())), everybody)
    dead.Free()
    everybody.Free()
    return frozenset(int(rank) for rank in ranks)


class NoWord(MachineError):
    """Rank 0 has not answered for too long: it hangs, or the way to it is cut."""


def is_death(error: MPI.Exception) -> bool:
    """Whether MPI failed because the process at the other end has died."""
    return error.Get_error_class() in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED)


class ToServer:
    """Within this context a failure of MPI because rank 0 has died raises ``ServerLost``."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(value, MPI.Exception):
            return
        if is_death(value) if self._comm.Is_inter() else SERVER in failed(self._comm):
            raise ServerLost("rank 0, the server, is lost") from value


def leave(line: str) -> None:
    """Say why this rank cannot go on, and end it alone. Does not return.

    By a signal: a rank that exits without ``MPI_Finalize`` is not noticed by the others.
    """
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def end_launcher(seconds: float) -> None:
    """End the launcher that started this rank, should it live so much longer: it waits for hosts that are cut off."""
    name = Path(f"/proc/{os.getppid()}/comm")
    with suppress(OSError):
        launcher = name.read_text().strip()
        if launcher in _LAUNCHERS:
            words = ["sh", "-c", _WATCH, launcher, str(name), str(os.getppid()), str(int(seconds))]
            quiet = subprocess.DEVNULL
            subprocess.Popen(words, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
