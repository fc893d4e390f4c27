"""``Cluster``: several hosts on this machine, for as long as a ``with`` block lasts or until ``down``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from hpcdml.emulation import jobs, network
from hpcdml.emulation.claims import Claim
from hpcdml.emulation.network import HostState, Network
from hpcdml.emulation.rates import format_rate, parse_rate
from hpcdml.emulation.signals import EndingSignals, signals_held
from hpcdml.emulation.tools import check_machine
from hpcdml.errors import UsageError

FOLDER = Path("/run/hpcdml-emulation")
MOST_HOSTS = 64
SMALLEST_MTU, LARGEST_MTU = 576, 9216
DEFAULT_NAME = "bench"


class Cluster:
    """Hosts ``h0``, ``h1``, ... on this machine, joined by a switch, with links of a set rate each way.

    As a context manager it is up within the block and gone after it: after an exception, SIGINT, SIGTERM or SIGHUP
    too. What kill -9 leaves, the next ``up`` of the same name removes. A cluster in use is protected from the ``up`` of
    another process. Clusters of different names do not meet.

    Args:
        hosts: how many, from 1 to 64.
        rate: of each link in each direction, as in ``1gbit``; ``none``: unlimited. Ethernet headers count: with an MTU
            of 1500 at most 0.956 of it are TCP's data.
        name: at most 8 small letters and digits.
        mtu: of all links, bytes.

    Raises:
        UsageError: one of these is out of its range.
    """

    def __init__(self, hosts: int = 3, rate: str = "1gbit", name: str = DEFAULT_NAME, mtu: int = 1500) -> None:
        if not 1 <= hosts <= MOST_HOSTS:
            raise UsageError(f"--hosts {hosts}: must be from 1 to {MOST_HOSTS}")
        if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
            raise UsageError(f"--mtu {mtu}: must be from {SMALLEST_MTU} to {LARGEST_MTU} bytes")
        self.name = check_name(name)
        self.rate = rate
        self._bits = parse_rate(rate)
        self._network = Network(name, hosts, mtu)
        self._launcher = jobs.Launcher(self._network, FOLDER / name)
        self._claim = Claim(FOLDER / f"{name}.lock")
        self._signals = EndingSignals()

    @classmethod
    def find(cls, name: str = DEFAULT_NAME) -> Cluster:
        """The cluster of that name that is up on this machine. While this process has it, no ``up`` replaces it.

        Raises:
            UsageError: there is none, or the user is not root.
            MachineError: it is being set up, or the machine lacks a program.
        """
        check_machine()
        check_name(name)
        claim = Claim(FOLDER / f"{name}.lock")
        claim.share()
        hosts = network.count_hosts(name)
        if not hosts:
            claim.remove()
            raise UsageError(f"--name {name}: there is no such cluster; up --name {name} makes one")
        rate = format_rate(Network(name, hosts).states()[0].rate)
        found = cls(hosts, rate, name)
        found._claim = claim
        return found

    @property
    def hosts(self) -> list[str]:
        """The names of the hosts; rank i of a job is on the i-th."""
        return self._network.names

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return self._network.address(self._check_host(host))

    def up(self) -> None:
        """Build the cluster, anew if there is one of its name.

        Raises:
            UsageError: the user is not root.
            MachineError: another process uses a cluster of that name, or the machine lacks something; nothing is left.
        """
        check_machine()
        self._claim.take()
        try:
            self._remove()
            self._launcher.prepare()
            self._network.create()
            self._network.shape(self._bits)
        except BaseException:
            with signals_held():
                self._remove()
                self._claim.remove()
            raise
        self._claim.share()

    def down(self, force: bool = False) -> None:
        """Kill what runs in the cluster and remove it; nothing happens where there is none.

        Args:
            force: also where another process uses it.

        Raises:
            MachineError: another process uses it.
        """
        check_machine()
        with signals_held():
            if not self._claim.held and not force:
                self._claim.take()
            self._remove()
            self._claim.remove()

    def __enter__(self) -> Cluster:
        self._signals.install()
        try:
            self.up()
        except BaseException:
            self._signals.restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.down()
        finally:
            self._signals.restore()

    def set_rate(self, rate: str) -> None:
        """Change the rate of all links, both ways; running jobs go on.

        Raises:
            UsageError: the rate is none.
        """
        self._bits = parse_rate(rate)
        self.rate = rate
        self._network.shape(self._bits)

    def link_down(self, host: str) -> None:
        """Cut the link of a host. Connections notice as they would with a cable: by nothing arriving."""
        self._network.connect(self._check_host(host), False)

    def link_up(self, host: str) -> None:
        """Join a host again, at the same rate."""
        self._network.connect(self._check_host(host), True)

    def states(self) -> list[HostState]:
        """What is known of each host now."""
        return self._network.states()

    def environment(self) -> dict[str, str]:
        """Variables with which ``mpirun -n N``, called by a program on ``h0``, places one rank on each host.

        They also tell PyTorch's gloo its interface and the address of ``h0``. They are in addition to those of this
        process: ``{**os.environ, **cluster.environment()}``. ``run`` and ``run_on`` set them by themselves.
        """
        return self._launcher.environment()

    def command(self, ranks: int, argv: Sequence[str], mca: Mapping[str, str] | None = None) -> list[str]:
        """The command line of an MPI job of ``argv``, rank i on host i, over TCP.

        It needs Open MPI 5 or later and no environment. Ranks are not bound to cores: all hosts have the same. A
        program that ends within milliseconds may keep mpirun waiting for ever (prrte issue 1839): set a timeout.

        Args:
            ranks: at most as many as there are hosts.
            mca: further parameters of Open MPI, as in ``{"btl_tcp_eager_limit": "1048576"}``.

        Raises:
            UsageError: more ranks than hosts.
            MachineError: there is no mpirun.
        """
        if not 1 <= ranks <= len(self.hosts):
            raise UsageError(f"--ranks {ranks}: must be from 1 to {len(self.hosts)}, one for each host of {self.name}")
        return self._launcher.mpi(ranks, argv, mca or {})

    def command_on(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` on one host, without MPI.

        Raises:
            UsageError: there is no such host.
        """
        return self._launcher.on_host(self._check_host(host), argv)

    def run(
        self,
        ranks: int,
        argv: Sequence[str],
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        mca: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run an MPI job of ``argv`` (see ``command``) and wait for all of its processes.

        Args:
            timeout: seconds until the job counts as hanging; ``None``: never.
            env: variables beyond those of this process and ``environment()``.
            capture: keep the output as text; else it goes where this process writes.

        Raises:
            JobHangs: after the timeout; all of its processes have been killed.
        """
        command = self.command(ranks, argv, mca)
        return jobs.run(command, {**self.environment(), **(env or {})}, timeout, cwd, capture)

    def run_on(
        self,
        host: str,
        argv: Sequence[str],
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        capture: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` on one host, without MPI around it; as ``run``."""
        command = self.command_on(host, argv)
        return jobs.run(command, {**self.environment(), **(env or {})}, timeout, cwd, capture)

    def _remove(self) -> None:
        network.remove(self.name)
        shutil.rmtree(self._launcher.folder, ignore_errors=True)

    def _check_host(self, host: str) -> str:
        if host not in self.hosts:
            raise UsageError(f"{host}: no such host; {self.name} has {self.hosts[0]} to {self.hosts[-1]}")
        return host


def check_name(name: str) -> str:
    """The name of a cluster, if it can be one.

    Raises:
        UsageError: it cannot.
    """
    if not re.fullmatch(r"[a-z0-9]{1,8}", name):
        raise UsageError(f"--name {name}: must be 1 to 8 of the characters a-z and 0-9")
    return name
