"""The doctor on sound installations and on broken ones, each broken for real: what it says, once, and its status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcdml.doctor import job, machine, software
from hpcdml.doctor.finding import COLUMNS, LINES, OK, WARNING, WRONG, Finding, screen
from hpcdml.mpi.installation import Launcher, Library, launcher
from hpcdml.mpi.links import Speed

SECONDS = 240.0  # others may use the machine
pytestmark = pytest.mark.timeout(SECONDS + 60)

Job = Callable[..., subprocess.CompletedProcess[str]]


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Level and text of each check by its name; it must be one screen."""
    shown = text.splitlines()
    assert len(shown) <= LINES and max(map(len, shown)) <= COLUMNS, text
    assert sum("doctor" in line and line.startswith("hpcdml ") for line in shown) == 1, text
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in shown[2:-2]:
        head = re.match(r"(ok|warning|wrong|-) +(all of|\S+) +(.*)", line)
        if head:
            name = head[2]
            found[name] = (head[1], head[3])
        else:
            found[name] = (found[name][0], f"{found[name][1]} {line.strip()}")
    return found


def program(folder: Path, name: str, body: str) -> None:
    """A program on the path, ahead of any other of that name."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_alone(hpcdml: Job, tmp_path: Path) -> None:
    done = hpcdml("doctor", "--output", tmp_path / "runs" / "new", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(done.stdout)
    assert done.stdout.splitlines()[-1].startswith("usable")
    assert found["python"][0] == found["mpi4py"][0] == found["hdf5"][0] == OK
    assert found["ranks"][0] == "-" and "alone" in found["ranks"][1]
    assert str(len(os.sched_getaffinity(0))) in found["cores"][1]
    assert not any(tmp_path.iterdir())
    if "Open MPI 5" in found["mpi4py"][1]:
        assert found["ulfm"] == ("-", "fault tolerance is off; mpirun --with-ft ulfm turns it on")


def test_under_mpirun_with_fault_tolerance(mpirun: Job, tmp_path: Path) -> None:
    done = mpirun(
        3, sys.executable, "-m", "hpcdml", "doctor", cwd=tmp_path, timeout=SECONDS, env={"OMPI_MCA_mpi_ft_enable": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(done.stdout)
    assert found["ranks"][0] == OK and found["ranks"][1].startswith("3 see each other, on 1 host")
    speeds = re.findall(r"(\d+): ([\d,.]+) up, ([\d,.]+) down", found["links"][1])
    assert [rank for rank, *_ in speeds] == ["1", "2"]
    assert all(float(speed.replace(",", "")) > 0 for _, *both in speeds for speed in both)
    if "Open MPI 5" in found["mpi4py"][1]:
        assert found["ulfm"][0] == OK and "is on" in found["ulfm"][1]


def test_ranks_that_never_come(mpirun: Job, tmp_path: Path) -> None:
    sleeps = (
        "import os, sys, time\n"
        "from hpcdml.doctor.examination import examine\n"
        "from mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1: time.sleep(300)\n"
        f"sys.exit(examine({str(tmp_path)!r}, patience=2))"
    )
    done = mpirun(2, sys.executable, "-c", sleeps, timeout=SECONDS)
    assert done.returncode == 1
    found = lines(done.stdout)
    assert found["ranks"][0] == WRONG and "did not reach each other within 2 s" in found["ranks"][1]


@pytest.mark.parametrize(
    ("tells", "level", "text"),
    [
        ("HYDRA build details:\n    Version:    4.0.2", WRONG, "MPICH 4.0.2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9", WRONG, "Intel MPI 2021.9"),
        ("mpirun (Open MPI) 4.1.4", WARNING, "4.1.4"),
        ("who knows", WARNING, "does not tell"),
    ],
)
def test_an_mpirun_of_another_mpi(tmp_path: Path, tells: str, level: str, text: str) -> None:
    program(tmp_path / "bin", "mpirun", f"echo '{tells}'")
    found = launcher(env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"})
    library = Library("Open MPI", "5.0.11", "/opt/mpi/lib/libmpi.so.40", "wheel", "multiple", None)
    finding = software.check_launcher(found, library)
    assert finding.level == level and text in finding.text
    assert level != WRONG or finding.advice.startswith("put /opt/mpi/bin first on PATH")


def test_ranks_that_are_worlds_of_their_own(hpcdml: Job, tmp_path: Path) -> None:
    """As an mpirun of another MPI starts them: the launcher's rank 0 tells, the others keep silent, all fail."""
    program(tmp_path / "bin", "mpirun", "echo 'HYDRA build details: Version: 4.0.2'")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = hpcdml("doctor", cwd=tmp_path, env={"PMI_RANK": "0", "PMI_SIZE": "3", "PATH": path})
    found = lines(done.stdout)
    assert "MPICH 4.0.2" in found["mpirun"][1]
    assert found["ranks"][0] == WRONG and found["ranks"][1].startswith("3 ranks were started, but this one sees 1")
    assert done.returncode == 1
    silent = hpcdml("doctor", cwd=tmp_path, env={"PMI_RANK": "1", "PMI_SIZE": "3"})
    assert silent.stdout == "" and silent.returncode == 1


def test_no_mpi_library(hpcdml: Job, tmp_path: Path) -> None:
    done = hpcdml("doctor", cwd=tmp_path, env={"MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")})
    found = lines(done.stdout)
    assert done.returncode == 1 and found["mpi4py"][0] == WRONG
    assert "libmpi.so" in found["mpi4py"][1] and "> load your site's MPI" in found["mpi4py"][1]


def test_a_broken_package(hpcdml: Job, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "h5py.py").write_text("raise OSError('libhdf5.so.310: undefined symbol')")
    path = os.pathsep.join([str(tmp_path / "broken"), str(Path(software.__file__).parents[2])])
    done = hpcdml("doctor", cwd=tmp_path, env={"PYTHONPATH": path})
    found = lines(done.stdout)
    assert done.returncode == 1, done.stdout + done.stderr
    assert found["python"][0] == WRONG and "undefined symbol" in found["python"][1]


def test_a_folder_that_cannot_be_written(hpcdml: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = hpcdml("doctor", "--output", tmp_path / "file" / "run", cwd=tmp_path)
    found = lines(done.stdout)
    assert done.returncode == 1 and found["hdf5"][0] == WRONG
    assert "is a file, not a folder" in found["hdf5"][1]
    (finding,) = machine.check_place("/proc/run")
    assert finding.level == WRONG and "--output /proc/run: cannot be written" in finding.text


def test_a_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the permission to mount")
    try:
        (finding,) = machine.check_place(str(place / "run"))
        assert finding.level == WRONG
        assert not any(place.iterdir())
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.check_slurm() == Finding("-", "slurm", "no Slurm here")
    assert launcher() is None and software.check_launcher(None, None).level == WARNING
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    program(tmp_path / "bin", "sinfo", "echo debug 4; echo long 8")
    program(tmp_path / "bin", "srun", "echo 'MPI plugin types are...'; echo none; echo pmix_v4; echo pmix")
    assert machine.check_slurm() == Finding(OK, "slurm", "answers, 12 nodes; srun --mpi=pmix can start ranks")
    program(tmp_path / "bin", "srun", "echo none; echo pmi2")
    assert machine.check_slurm().level == WARNING
    program(tmp_path / "bin", "sinfo", "echo 'sinfo: error: Unable to contact slurm controller' >&2; exit 1")
    refused = machine.check_slurm()
    assert refused.level == WARNING and "Unable to contact" in refused.text


# What needs more hosts or cores than there are here


def facts(cpus: list[int], host: str = "a", **versions: str) -> job.RankFacts:
    return job.RankFacts(host, versions, cpus, len(cpus))


def test_cores() -> None:
    assert job.check_cores([facts([0, 1])] * 3, 2).level == WARNING
    bound = job.check_cores([facts([0]), facts([1]), facts([2])], 64)
    assert bound.level == WARNING and "bound 3 ranks to 3 of the 64 CPUs" in bound.text
    assert job.check_cores([facts([0]), facts([1]), facts([2])], 4).level == OK
    assert job.check_cores([facts(list(range(64)))] * 3, 64).level == OK
    assert job.check_cores([facts([0]), facts([0], "b")], 1).level == OK


def test_versions_of_two_hosts() -> None:
    same = [facts([0], torch="2.13"), facts([0], "b", torch="2.13")]
    assert job.check_versions(same) == []
    (finding,) = job.check_versions([*same, facts([0], "c", torch="2.12")])
    assert finding.level == WRONG and finding.text == "torch is 2.13 on rank 0 and 2.12 on rank 2 (c)"
    (finding,) = job.check_versions([same[0], job.RankFacts("b", same[0].versions, [0], 1, "torch cannot be imported")])
    assert finding.level == WRONG and finding.text == "rank 1 (b): torch cannot be imported"


def test_links() -> None:
    good = [Speed(rank, 110e6, 112e6) for rank in range(1, 6)]
    assert job.check_links(good, 5).level == OK
    slow = job.check_links([*good, Speed(6, 30e6, 112e6)], 6)
    assert slow.level == WARNING and "rank 6" in slow.advice
    assert job.check_links([Speed(1, 1e6, 1e6)], 1).level == WARNING
    assert job.measured(["a"] * 3) == [1, 2]
    many = job.measured([f"h{rank // 10}" for rank in range(1000)])
    assert len(many) == 32 == len(set(many)) and {1, 10, 20} <= set(many)


def test_everything_wrong_is_still_one_screen() -> None:
    words = "something that is long " * 20
    for levels in ([WRONG] * 7 + [WARNING] * 6, [OK, WRONG, "-"] * 5):
        findings = [Finding(level, f"check{n}", words, words) for n, level in enumerate(levels)]
        shown = screen("hpcdml doctor", findings).splitlines()
        assert len(shown) <= LINES and max(map(len, shown)) <= COLUMNS
        assert all(any(f.what in line for line in shown) for f in findings if f.level == WRONG)


def test_a_library_of_another_place_is_no_mistake() -> None:
    library = Library("Open MPI", "5.0.11", "/opt/a/lib/libmpi.so.40", "wheel", "multiple", None)
    there = software.check_launcher(Launcher("/opt/b/bin/mpirun", "Open MPI", "5.0.11"), library)
    assert there.level == OK and "another place" in there.text
    mvapich = Library("MVAPICH2", "2.3", "", "wheel", "multiple", None)
    assert software.check_launcher(Launcher("/usr/bin/mpirun", "MPICH", "3.2"), mvapich).level == OK
