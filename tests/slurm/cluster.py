"""A real Slurm of several nodes on this machine: ``python tests/slurm/cluster.py up``, ``exec -- COMMAND``, ``down``.

Every node is an emulated host with its own network and name, so that what Slurm and MPI say to another node crosses a
link. Each has more CPUs than the machine, and GPUs that Slurm counts but nobody has. Nothing of the machine's own Slurm
or munge is read or changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script, from a working copy that is not installed

from hpcdml.emulation import Cluster
from hpcdml.errors import HpcdmlError, MachineError

NAME = "slurm"
NODES = 3
CPUS = 40  # of each node, as far as Slurm knows
GPUS = 4
FOLDER = Path("/run/hpcdml-slurm")
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "srun": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "tc": "iproute2",
}
START_SECONDS = 30.0
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # often not on a user's path
# Of a job or of a running Slurm that this process is in: they would be taken for the cluster's.
_OF_ANOTHER_JOB = ("SLURM_", "SBATCH_", "OMPI_COMM", "OMPI_MCA_ess", "PMIX_", "PMI_", "PRTE_JOB", "PRTE_LAUNCHED")

# Daemons and jobs run as root: only root may have nodes. A job that is requeued may start again after cred_expire.
_SLURM_CONF = """\
ClusterName=hpcdml
SlurmctldHost=h0
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
ProctrackType=proctrack/linuxproc
TaskPlugin={task_plugin}
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=1,batch_sched_delay=0,kill_invalid_depend
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
MessageTimeout=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=h[0-{last}] CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class Slurm:
    """The cluster; a context manager that has it up within its block.

    Args:
        nodes: how many; their names are h0, h1, ...
        cpus: of each node, as far as Slurm knows; more than there are cores is fine.
        task_plugin: ``task/none``, or ``task/affinity`` where the CPUs are the machine's.
    """

    def __init__(self, nodes: int = NODES, cpus: int = CPUS, task_plugin: str = "task/none") -> None:
        self.nodes = nodes
        self.cpus = cpus
        self.task_plugin = task_plugin
        self.hosts = Cluster(hosts=nodes, rate="none", name=NAME)

    def up(self) -> None:
        """Start munge, the controller and a daemon for each node, and wait until all nodes can take jobs.

        Raises:
            HpcdmlError: the machine lacks something, or a daemon did not start; with the end of its log.
        """
        if reason := missing():
            raise MachineError(reason)
        self.hosts.up()
        try:
            self._write()
            self._start_munge()
            self._daemon("slurmctld", "h0", "-c")
            for node in self.hosts.hosts:
                self._daemon("slurmd", node)
            self._wait()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stop the daemons and every job, and remove all files. Can be repeated."""
        self.hosts.down(force=True)  # with all that runs on the hosts
        shutil.rmtree(FOLDER, ignore_errors=True)

    def __enter__(self) -> Slurm:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def run(
        self,
        *argv: str | os.PathLike[str],
        env: dict[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = 60,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the first node, which is where users log in."""
        command = self.hosts.command_on("h0", [os.fspath(word) for word in argv])
        return subprocess.run(
            command,
            env={**environment(), **(env or {})},
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=capture,
            text=True,
            errors="replace",
        )

    def _write(self) -> None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        # munge insists on folders that nobody else can write; its socket's must be open to all.
        for folder in ("munge", "state", *(f"{kind}-{node}" for node in self.hosts.hosts for kind in ("spool", "tmp"))):
            (FOLDER / folder).mkdir(parents=True)
        text = _SLURM_CONF.format(
            folder=FOLDER, task_plugin=self.task_plugin, last=self.nodes - 1, cpus=self.cpus, gpus=GPUS
        )
        (FOLDER / "slurm.conf").write_text(text)
        (FOLDER / "gres.conf").write_text(f"NodeName=h[0-{self.nodes - 1}] Name=gpu File={FOLDER}/gpu[0-{GPUS - 1}]\n")
        for gpu in range(GPUS):
            (FOLDER / f"gpu{gpu}").touch()
        (FOLDER / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = FOLDER / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))

    def _start_munge(self) -> None:
        folder = FOLDER / "munge"
        files = ("key-file", "pid-file", "log-file", "seed-file")
        words = [f"--{name}={folder / name.split('-')[0]}" for name in files]
        # On a host, as the other daemons, so that it ends with them; its socket is a file, which all hosts share.
        command = self.hosts.command_on("h0", [program("munged"), *words, f"--socket={folder / 'socket'}"])
        _check(subprocess.run(command, **_QUIET), "munged", folder / "log")

    def _daemon(self, name: str, node: str, *options: str) -> None:
        log = FOLDER / (f"{name}-{node}.log" if name == "slurmd" else f"{name}.log")
        command = self.hosts.command_on(node, [program(name), *options])
        _check(subprocess.run(command, env=environment(), **_QUIET), name, log)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            states = self.run("sinfo", "--noheader", "--Node", "--partition=all", "--format=%T").stdout.split()
            if states == ["idle"] * self.nodes:
                return
            time.sleep(0.2)
        log = (FOLDER / "slurmctld.log").read_text(errors="replace").split("\n")
        raise MachineError(f"the nodes are not ready after {START_SECONDS:g} s: {states}; {' / '.join(log[-4:])}")


_QUIET = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 30}


def missing() -> str:
    """Why this machine cannot have the cluster, in a line; empty: it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a Slurm for tests needs Linux and root"
    lacking = sorted({package for name, package in PROGRAMS.items() if not _find(name)})
    # Debian's PMIx plugin opens a library by the name that only the -dev package has.
    plugins = [path.parent.parent for path in Path("/usr/lib").glob("*/slurm-wlm/mpi_pmix_v4.so")]
    lacking += ["libpmix-dev"] if any(not (path / "pmix2/lib/libpmix.so").exists() for path in plugins) else []
    return f"a Slurm for tests needs the packages {', '.join(lacking)}" if lacking else ""


def environment() -> dict[str, str]:
    """Variables for a command that speaks with this Slurm."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(_OF_ANOTHER_JOB)}
    path = os.pathsep.join([clean.get("PATH", os.defpath), SYSTEM_FOLDERS])
    return {**clean, "PATH": path, "SLURM_CONF": str(FOLDER / "slurm.conf")}


def program(name: str) -> str:
    """The full path of a program of Slurm or munge."""
    return _find(name) or name


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), SYSTEM_FOLDERS]))


def _check(done: subprocess.CompletedProcess[str], name: str, log: Path) -> None:
    if done.returncode:
        said = (done.stdout + done.stderr).strip() or (log.read_text(errors="replace")[-500:] if log.exists() else "")
        raise MachineError(f"{name} did not start: {' / '.join(said.splitlines()[-4:]) or done.returncode}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["up", "down", "exec"])
    parser.add_argument("command", nargs="*", help="for exec: a command of a user, as sbatch, on the first node")
    args = parser.parse_args(argv)
    slurm = Slurm()
    try:
        if args.what == "exec":
            return slurm.run(*args.command, timeout=3600, capture=False).returncode
        getattr(slurm, args.what)()
    except HpcdmlError as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
