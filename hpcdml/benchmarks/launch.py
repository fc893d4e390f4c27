"""Where the jobs of a benchmark run: on this machine or in the present allocation as it is, or on emulated hosts."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpcdml.emulation import Cluster, parse_rate
from hpcdml.emulation.jobs import find_mpirun, run
from hpcdml.errors import HpcdmlError, MachineError, UsageError

JOB_SECONDS = 1800.0
"""Time after which a job counts as hanging."""

TCP_SHARE = 0.956
"""Share of an Ethernet link's rate that TCP's data can have with an MTU of 1500."""

AS_IT_IS = "none"
"""The rate that stands for no emulated hosts."""

# What Open MPI 5 and 4 need where one machine has fewer cores than ranks, and in containers, where everybody is root.
# Ranks of both sides are bound alike: not at all, as Open MPI would bind two ranks otherwise than three.
_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


class Site:
    """Starts jobs.

    Args:
        cluster: emulated hosts, which are up; None: ``mpirun`` decides where ranks run, as in any allocation.
    """

    def __init__(self, cluster: Cluster | None = None, timeout: float = JOB_SECONDS) -> None:
        self._cluster = cluster
        self._timeout = timeout

    @property
    def rate(self) -> str:
        """The rate of each link, as ``--rate`` has it."""
        return AS_IT_IS if self._cluster is None else self._cluster.rate

    @rate.setter
    def rate(self, rate: str) -> None:
        if self._cluster is not None:
            self._cluster.set_rate(rate)

    def transfer_seconds(self, size: float) -> float:
        """Seconds that so many bytes need on one host's link in one direction; 0 where no rate is set."""
        bits = parse_rate(self.rate)
        return size * 8.0 / (TCP_SHARE * bits) if bits else 0.0

    def run(self, ranks: int, command: Sequence[str]) -> str:
        """Run ``command`` as an MPI job and wait for all of its processes; none is left, whatever happens.

        Returns:
            Its standard output.

        Raises:
            UsageError, MachineError: the job ended with status 2, or with another or not at all; with its first line.
        """
        if self._cluster is not None:
            done = self._cluster.run(ranks, command, self._timeout)
        else:
            missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
            done = run([find_mpirun(), "-n", str(ranks), *command], missing, self._timeout)
        if done.returncode:
            raise _failure(done)
        return done.stdout

    @contextmanager
    def meeting(self) -> Iterator[str]:
        """Where ranks can meet that are no MPI program: a file that all see, or HOST:PORT of rank 0."""
        if self._cluster is None and _several_hosts():
            with socket.socket() as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
            yield f"{socket.gethostname()}:{port}"
            return
        with tempfile.TemporaryDirectory(prefix="hpcdml-bench-") as folder:
            yield str(Path(folder) / "meeting")


@contextmanager
def open_site(hosts: int, rates: Sequence[str], name: str = "bench") -> Iterator[Site]:
    """The place for jobs of up to ``hosts`` ranks: emulated hosts at the first of the rates, or none.

    Args:
        rates: as ``check_rates`` returns them.

    Raises:
        UsageError: the user is not root.
        MachineError: the machine lacks what emulated hosts need.
    """
    if AS_IT_IS in rates:
        yield Site()
        return
    with Cluster(hosts, rates[0], name) as cluster:
        yield Site(cluster)


def check_rates(text: str, option: str) -> list[str]:
    """The rates in a comma-separated list, each as in ``1gbit``; or ``none`` alone.

    Raises:
        UsageError: it is no such list.
    """
    rates = [rate.strip() for rate in text.split(",")]
    if AS_IT_IS in rates and len(rates) > 1:
        raise UsageError(f"{option} {text}: {AS_IT_IS} stands alone, for this machine as it is")
    for rate in rates:
        try:
            parse_rate(rate)
        except UsageError as error:
            raise UsageError(str(error).replace("--rate", option, 1)) from None
    return list(dict.fromkeys(rates))


def names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        UsageError: one of them is not known.
    """
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in known:
            raise UsageError(f"{option} {text}: must be of {','.join(known)}")
    return list(dict.fromkeys(found))


def _several_hosts() -> bool:
    """Whether mpirun would start ranks on other hosts as well, as batch systems and users tell it."""
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", os.environ.get("SLURM_NNODES", "1"))
    file = os.environ.get("PBS_NODEFILE", os.environ.get("PE_HOSTFILE", os.environ.get("LSB_DJOB_HOSTFILE", "")))
    if file and os.path.exists(file):
        return len({line.split()[0] for line in Path(file).read_text().splitlines() if line.strip()}) > 1
    return nodes.isdigit() and int(nodes) > 1


def _failure(done: subprocess.CompletedProcess[str]) -> HpcdmlError:
    """The first line of hpcdml is the one that counts: what other ranks say of a lost neighbour comes after it.

    Without one it is the last line that a program wrote (of Python's traceback), else the first of the launcher's text,
    which stands between two rules.
    """
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    rule = next((i for i, line in enumerate(lines) if not line.strip("-")), len(lines))
    told = [line.removeprefix("hpcdml: ") for line in lines if line.startswith("hpcdml: ")]
    text = next(iter([*told, *lines[:rule][-1:], *lines[rule + 1 :]]), "it wrote nothing")
    return (
        UsageError(text) if done.returncode == UsageError.status else MachineError(f"status {done.returncode}: {text}")
    )
