"""What this host has: GPUs, a folder for the run's files, Slurm."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence

from hpcdml.doctor.finding import NONE, OK, WARNING, WRONG, Finding
from hpcdml.doctor.software import shorten

_SLURM_SECONDS = 10.0
_LITTLE = 1 << 30


def check_cuda() -> Finding:
    """The GPUs of this host, and whether MPI takes their memory; the latter is tried in a process of its own."""
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        built = torch.version.cuda
        name = torch.cuda.get_device_name(0) if count else ""
    except Exception as problem:
        return Finding(WRONG, "cuda", f"{type(problem).__name__}: {problem}", "python -c 'import torch' must work")
    if not count:
        if built and shutil.which("nvidia-smi"):
            advice = "compare the driver that nvidia-smi shows with torch's CUDA; was a GPU asked for?"
            return Finding(WARNING, "cuda", f"torch for CUDA {built} sees no GPU here", advice)
        return Finding(NONE, "cuda", "no GPU: workers compute on the CPU")
    text = f"{count} GPU{'s' * (count > 1)}, {name}, CUDA {built}"
    from hpcdml.mpi.cuda_aware import why_not

    reason = why_not(0)
    if reason is None:
        return Finding(OK, "cuda", f"{text}; MPI takes the GPU's memory: --cuda-aware")
    return Finding(OK, "cuda", f"{text}; MPI does not take its memory, updates go by the host ({reason})")


def check_place(folder: str) -> list[Finding]:
    """Whether HDF5 files can be written for the output folder, and what room there is."""
    try:
        from hpcdml.observability.units import bytes_text, seconds_text
        from hpcdml.storage.place import try_place

        found = try_place(folder)
    except ImportError:
        return [Finding(WRONG, "hdf5", "h5py cannot be imported", "see python, above")]
    except OSError as problem:
        text = f"--output {shorten(folder)}: cannot be written: {(problem.strerror or str(problem)).lower()}"
        return [Finding(WRONG, "hdf5", text, "name another with --output, or make room; only rank 0 writes")]
    speed = f"8 MiB written and synced in {seconds_text(found.seconds)}"
    findings = [Finding(OK, "hdf5", speed)]
    where, free = shorten(found.folder), bytes_text(found.free)
    locks = "locks work" if found.locks else "no file locks: runs need none, your own h5py may"
    if found.free < _LITTLE:
        text = f"{where}: {free} free; {locks}"
        return [*findings, Finding(WARNING, "folder", text, "a checkpoint has the model and all worker states")]
    return [*findings, Finding(OK, "folder", f"{where}: {free} free; {locks}")]


def check_slurm() -> Finding:
    """Whether Slurm answers, and can start ranks by PMIx."""
    if shutil.which("sinfo") is None:
        return Finding(NONE, "slurm", "no Slurm here")
    status, text = _ask(["sinfo", "--noheader", "--format=%R %D"])
    if status != 0:
        last = text.strip().splitlines()[-1:] or ["no answer"]
        return Finding(WARNING, "slurm", f"sinfo does not answer: {last[0]}", "ask the site, or do without: mpirun")
    nodes = sum(int(line.split()[-1]) for line in text.splitlines() if line.split()[-1:] and line.split()[-1].isdigit())
    _, kinds = _ask(["srun", "--mpi=list"])
    if re.search(r"\bpmix", kinds):
        return Finding(OK, "slurm", f"answers, {nodes} nodes; srun --mpi=pmix can start ranks")
    return Finding(WARNING, "slurm", f"answers, {nodes} nodes; srun has no PMIx", "use mpirun inside sbatch: jobs/")


def _ask(command: Sequence[str]) -> tuple[int | None, str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=_SLURM_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as problem:
        return None, str(problem)
    return done.returncode, done.stdout + done.stderr
