"""Which MPI this is: the library that mpi4py loaded, the launcher on the path, and what they let a run do.

Nothing here imports mpi4py before it is called, since that is what may be broken.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from hpcdml.launcher import JOB_VARIABLES

_LAUNCHER_SECONDS = 20.0


@dataclass(frozen=True)
class Library:
    """The MPI library of this process.

    Attributes:
        vendor: as mpi4py names it: "Open MPI", "MPICH", ...
        path: the file that was loaded; empty where the system does not tell.
        build: which MPI this mpi4py is for.
        threads: the thread level, from "single" to "multiple".
        fault_tolerance: whether ranks may be lost (ULFM); none: this library cannot, or does not tell.
    """

    vendor: str
    version: str
    path: str
    build: str
    threads: str
    fault_tolerance: bool | None


@dataclass(frozen=True)
class Launcher:
    """The ``mpirun`` that a user would get: its path, and the vendor and version that it tells; empty: it does not."""

    path: str
    vendor: str
    version: str


def library() -> Library:
    """Start MPI and tell which library it is.

    Raises:
        ImportError, RuntimeError: there is no mpi4py, or it found no library.
    """
    import mpi4py
    from mpi4py import MPI

    vendor, version = MPI.get_vendor()
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    path = _loaded()
    # A wheel of mpi4py has a module for each kind of MPI; one that was compiled here has one, and knows its compiler.
    kind = re.match(r"MPI\.(mpich|openmpi|impi|mpiabi)\b", os.path.basename(MPI.__file__))
    build = f"wheel for {kind[1]}" if kind else f"compiled by {mpi4py.get_config().get('mpicc') or 'hand'}"
    return Library(
        vendor,
        ".".join(map(str, version)),
        path,
        build,
        levels.get(MPI.Query_thread(), "multiple"),
        fault_tolerance(path),
    )


def launcher(name: str = "mpirun", env: Mapping[str, str] = os.environ) -> Launcher | None:
    """The launcher on the path; none: there is none."""
    path = shutil.which(name, path=env.get("PATH"))
    if path is None:
        return None
    clean = {key: value for key, value in env.items() if not key.startswith(JOB_VARIABLES)}
    text = ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [path, "--version"],
            env=clean,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_LAUNCHER_SECONDS,
        )
        text = done.stdout + done.stderr
    # MPICH's launcher is Hydra, which MVAPICH's is as well; Open MPI's says its own name.
    words = {"Intel(R) MPI": "Intel MPI", "Open MPI": "Open MPI", "OpenRTE": "Open MPI", "HYDRA": "MPICH"}
    vendor = next((words[word] for word in words if word in text), "")
    number = re.search(r"\d+\.\d+(\.\d+)?", text)
    return Launcher(path, vendor, number[0] if number else "")


def _loaded() -> str:
    """The file of the MPI library in this process."""
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            path = line.split(maxsplit=5)[-1].strip()
            if re.match(r"libmpi(ch|_abi)?\.so|libmpi\.so", os.path.basename(path)):
                return path
    return ""


def fault_tolerance(path: str | None = None) -> bool | None:
    """Whether Open MPI has been told to outlive lost ranks; ``path``: its file, by default the one in this process.

    Its calls for that (MPI_Comm_get_failed and the like) succeed either way, and the option may come from a command
    line, a variable or a file of settings. So the switch that the library itself looks at is read, which is exported.
    """
    path = _loaded() if path is None else path
    if not path:
        return None
    try:
        return ctypes.c_bool.in_dll(ctypes.CDLL(path), "ompi_ftmpi_enabled").value
    except (OSError, ValueError):
        return None
