"""Starts commands and MPI jobs on the hosts of an emulated cluster, and leaves none of their processes behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpcdml.emulation import processes
from hpcdml.emulation.network import DEVICE, Network
from hpcdml.emulation.signals import signals_held
from hpcdml.emulation.tools import find_program
from hpcdml.errors import MachineError

# With this, messages of up to 1 MiB keep both directions of a link full (0.95 of the rate each). By default Open MPI
# asks the receiver first for all above 64 KiB; its answer queues behind the data that go the other way through the
# same connection, and the two directions take turns: 0.48 of the rate each.
FULL_DUPLEX: dict[str, str] = {"btl_tcp_eager_limit": str(1024 * 1024)}

NO_START = 213  # status of Open MPI's mpirun that failed before it started any rank
MARK = "HPCDML_EMULATED_JOB"  # in the environment of every process of a job
LEAVING_SECONDS = 5.0  # what the daemons of the other hosts may take to end after mpirun did
ENDING_SECONDS = 2.0  # what mpirun may take to end its ranks
OF_ANOTHER_JOB = ("OMPI_COMM", "OMPI_MCA_ess", "PMIX_", "PMI_", "PRTE_JOB", "PRTE_LAUNCHED", "HYDI_", "HYDRA_")

# For mpirun it is what ssh is to real hosts: HOST WORD... runs the words, joined, in a shell on the host.
_AGENT = """\
#!/bin/sh
host=$1
shift
exec {ip} netns exec "{prefix}$host" {unshare} --uts sh -c '{hostname} "$0" && exec sh -c "$*"' "$host" "$@"
"""


class JobHangs(MachineError):
    """A job did not end in its time; all of its processes have been killed.

    Attributes:
        stdout: what it had written, where that was captured.
        stderr: likewise.
    """

    def __init__(self, message: str, stdout: str, stderr: str) -> None:
        super().__init__(message)
        self.stdout = stdout
        self.stderr = stderr


class Launcher:
    """The command lines and the environment of jobs on a network.

    Args:
        folder: for the launch agent and the session folders of Open MPI; ``prepare`` makes it.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.agent = folder / "agent"
        self.hostfile = folder / "hostfile"
        self.sessions = folder / "sessions"

    def prepare(self) -> None:
        """Write the files that jobs need."""
        self.sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
        programs = {name: find_program(name) for name in ("ip", "unshare", "hostname")}
        self.agent.write_text(_AGENT.format(prefix=self.network.namespace(""), **programs))
        self.hostfile.write_text("".join(f"{host} slots=1\n" for host in self.network.names))

    def on_host(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` on a host."""
        where = [find_program("ip"), "netns", "exec", self.network.namespace(host), find_program("unshare"), "--uts"]
        return [*where, "sh", "-c", f'{find_program("hostname")} "$0" && exec "$@"', host, *argv]

    def mpi(self, ranks: int, argv: Sequence[str], mca: Mapping[str, str]) -> list[str]:
        """The command line that runs ``argv`` as an MPI job, one rank on each of the first hosts.

        Args:
            mca: further parameters of Open MPI.
        """
        names = self.network.names[:ranks]
        prte, ompi = self._settings()
        words = [find_mpirun(), "--allow-run-as-root", "--bind-to", "none"]
        words += ["--host", ",".join(f"{name}:1" for name in names)]
        for key, value in prte.items():
            words += ["--prtemca", key, value]
        for key, value in {**ompi, **mca}.items():
            words += ["--mca", key, value]
        return self.on_host(names[0], [*words, "-n", str(ranks), *argv])

    def environment(self) -> dict[str, str]:
        """Variables for a program on the first host that calls ``mpirun -n N`` or PyTorch's gloo itself."""
        prte, ompi = self._settings()
        prte = {
            **prte,
            "prte_default_hostfile": str(self.hostfile),
            "hwloc_default_binding_policy": "none",
            # One rank on each host in turn, whatever this process was told of its own machine.
            "rmaps_default_mapping_policy": "node",
        }
        return {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            **{f"PRTE_MCA_{key}": value for key, value in prte.items()},
            **{f"OMPI_MCA_{key}": value for key, value in ompi.items()},
            "GLOO_SOCKET_IFNAME": DEVICE,
            "MASTER_ADDR": self.network.address(self.network.names[0]),
        }

    def _settings(self) -> tuple[dict[str, str], dict[str, str]]:
        """Parameters of the launcher and of Open MPI: the hosts share a kernel and must not make use of it."""
        prte = {
            "plm_ssh_agent": f"sh {self.agent}",  # by sh: /run may be mounted noexec
            "prte_if_include": DEVICE,
            "prte_tmpdir_base": str(self.sessions),
        }
        ompi = {"pml": "ob1", "btl": "tcp,self", "btl_tcp_if_include": DEVICE}
        return prte, ompi


def find_mpirun() -> str:
    """The mpirun beside this Python (of the same environment as mpi4py), else the first on the path.

    Raises:
        MachineError: there is none.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which("mpirun", path=path)
    if found is None:
        raise MachineError("an MPI job needs mpirun of Open MPI 5 or later on the path")
    return found


def run(
    command: Sequence[str],
    env: Mapping[str, str],
    timeout: float | None = None,
    cwd: str | os.PathLike[str] | None = None,
    capture: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for all of its processes, wherever they have gone; none is left, whatever happens.

    An ``mpirun`` that fails at its own start, as Open MPI's does once in a thousand times or so, is started once more.

    Args:
        env: variables beyond those of this process, of which those of an MPI job around it are left out.
        timeout: seconds until the job counts as hanging; ``None``: never.
        capture: keep its output; else it goes where this process writes.

    Raises:
        JobHangs: after the timeout.
    """
    done = _run(command, env, timeout, cwd, capture)
    return _run(command, env, timeout, cwd, capture) if done.returncode == NO_START else done


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    timeout: float | None,
    cwd: str | os.PathLike[str] | None,
    capture: bool,
) -> subprocess.CompletedProcess[str]:
    mark = uuid.uuid4().hex
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(OF_ANOTHER_JOB)}
    child = subprocess.Popen(
        list(command),
        env={**inherited, **env, MARK: mark},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE if capture else None,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes to this process alone, which then ends the job in order
    )
    try:
        out, err = child.communicate(timeout=timeout)
        processes.wait_for_none(lambda: processes.with_mark(MARK, mark), LEAVING_SECONDS)
    except subprocess.TimeoutExpired:
        out, err = _stop(child, mark)
        text = " ".join(command)
        raise JobHangs(f"{text[-200:]}: still running after {timeout:g} s, so it was killed", out, err) from None
    except BaseException:  # an interrupt
        with signals_held():
            _stop(child, mark)
        raise
    finally:
        processes.kill_all(lambda: processes.with_mark(MARK, mark))
    return subprocess.CompletedProcess(list(command), child.returncode, out or "", err or "")


def _stop(child: subprocess.Popen[str], mark: str) -> tuple[str, str]:
    """End a job: mpirun may clean up, then everything is killed. Returns the output so far."""
    child.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(ENDING_SECONDS)
    processes.kill_all(lambda: processes.with_mark(MARK, mark))
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    out, err = child.communicate()
    return out or "", err or ""
