"""One voice for many ranks: what every rank would say is said by one of them, before any of them leaves."""

from __future__ import annotations

import sys

from hpcdml.launcher import LAUNCHER_RANKS, launcher_rank

__all__ = ["LAUNCHER_RANKS", "launcher_rank", "settle", "write"]


def settle(status: int, text: str = "") -> int:
    """Agree with all ranks on how to go on, and say ``text`` once. Under a launcher every rank must call this.

    Args:
        status: exit status that this rank would leave with; 0 where nothing is wrong.
        text: its reason, for standard error; with status 0 an answer, for standard output.

    Returns:
        0 if it is 0 on all ranks, else the status of the lowest rank that has another, whose text is the one told.
    """
    rank = launcher_rank()
    if rank is None:
        write(text, status)
        return status
    try:
        from hpcdml.mpi import once
    except (ImportError, RuntimeError) as problem:  # mpi4py found no MPI library
        if rank == 0:
            reason = " ".join(str(problem).split())
            write(text or f"hpcdml: mpi4py cannot be used: {reason}", status or 1)
        return status or 1
    return once.settle(status, text)


def write(text: str, status: int) -> None:
    """Write an answer (status 0) to standard output, anything else to standard error, and flush."""
    if text:
        print(text, file=sys.stderr if status else sys.stdout, flush=True)
