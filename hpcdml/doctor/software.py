"""The libraries that this process has, the MPI among them, and whether the launcher on the path belongs to it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from hpcdml.doctor.finding import NONE, OK, WARNING, WRONG, Finding

if TYPE_CHECKING:
    from hpcdml.mpi.installation import Launcher, Library

PACKAGES = ("torch", "numpy", "h5py", "mpi4py")
_OWN_MPI = "load your site's MPI (module load ...), or pip install 'hpcdml[mpi]' where there is none"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; empty where one is missing."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def check_packages(found: dict[str, str]) -> Finding:
    """Whether all packages are there and can be imported; mpi4py is looked at on its own."""
    for name in ("numpy", "h5py", "torch"):
        try:
            importlib.import_module(name)
        except Exception as problem:  # a broken library may raise anything
            text = f"{name} {found[name]} cannot be imported: {type(problem).__name__}: {problem}"
            return Finding(WRONG, "python", text, f"pip install --force-reinstall {name}, in the environment of hpcdml")
    return Finding(OK, "python", ", ".join(f"{name} {version}" for name, version in found.items() if version))


def check_library(version: str) -> tuple[Finding, Library | None]:
    """Whether mpi4py finds an MPI library; MPI is started by this."""
    from hpcdml.mpi.installation import library

    try:
        found = library()
    except Exception as problem:  # no mpi4py, no library, or one of another kind
        text = f"mpi4py {version} cannot be used: {' '.join(str(problem).split())}"
        return Finding(WRONG, "mpi4py", text, _OWN_MPI), None
    where = f", {shorten(found.path)}" if found.path else ""
    return Finding(OK, "mpi4py", f"{found.vendor} {found.version}{where}; mpi4py: {found.build}"), found


def check_launcher(found: Launcher | None, library: Library | None, name: str = "mpirun") -> Finding:
    """Whether the launcher belongs to the library that mpi4py loaded: otherwise every rank believes to be alone."""
    if found is None:
        return Finding(WARNING, name, "none on the path", "add it to PATH, or start runs by srun: docs/cluster.md")
    path = shorten(found.path)
    if library is None:
        return Finding(NONE, name, f"{found.vendor} {found.version}, {path}: nothing to compare it with")
    if not found.vendor:
        return Finding(WARNING, name, f"{path} does not tell of which MPI it is", f"it must be {library.vendor}'s")
    families = {"Intel MPI": "MPICH", "MVAPICH": "MPICH", "MVAPICH2": "MPICH"}
    if families.get(found.vendor, found.vendor) != families.get(library.vendor, library.vendor):
        text = f"{path} is of {found.vendor} {found.version}, the library of {library.vendor} {library.version}"
        advice = f"put {_beside(library)} first on PATH, or build mpi4py for {found.vendor}: docs/cluster.md"
        return Finding(WRONG, name, text, advice)
    if found.vendor == library.vendor and found.version != library.version:
        text = f"{path} is of version {found.version}, the library of {library.version}"
        return Finding(WARNING, name, text, f"put {_beside(library)} first on PATH")
    if library.path and Path(found.path).resolve().parents[1] != Path(library.path).resolve().parents[1]:
        return Finding(OK, name, f"{found.vendor} {found.version}, {path}: of the library's version, in another place")
    return Finding(OK, name, f"{found.vendor} {found.version}, {path}: the library's own")


def check_threads(level: str) -> Finding:
    """Whether a thread of its own may poll, which runs with long operations and compiled models need."""
    if level in ("multiple", "serialized"):
        return Finding(OK, "threads", f"MPI allows {level}: a thread may poll beside the hooks")
    text = f"MPI allows {level} only: no thread can poll, so that long operations delay messages"
    return Finding(WARNING, "threads", text, "--progress hooks; an MPI built with MPI_THREAD_MULTIPLE")


def check_fault_tolerance(on: bool | None) -> Finding:
    """Whether the job would outlive a lost rank."""
    if on is None:
        return Finding(NONE, "ulfm", "this MPI has no fault tolerance (ULFM): a lost rank ends the run")
    if on:
        return Finding(OK, "ulfm", "fault tolerance is on: MPI outlives lost ranks")
    return Finding(NONE, "ulfm", "fault tolerance is off; mpirun --with-ft ulfm turns it on")


def shorten(path: str, most: int = 40) -> str:
    """A path whose middle is left out where it is long."""
    home = os.path.expanduser("~")
    path = "~" + path[len(home) :] if home != "/" and path.startswith(home + "/") else path
    return path if len(path) <= most else path[: most // 4] + "..." + path[-(most - most // 4 - 3) :]


def _beside(library: Library) -> str:
    """The folder where the launcher of a library is usually found."""
    return shorten(str(Path(library.path).parents[1] / "bin")) if library.path else f"that of {library.vendor}"
