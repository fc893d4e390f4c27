"""The network of an emulated cluster: a namespace for each host and one for the switch that joins them.

The switch, too, has a namespace of its own. So nothing appears among the machine's own interfaces, a firewall of the
machine is not met, and clusters of different names can have the same addresses.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcdml.emulation import processes
from hpcdml.emulation.rates import bucket
from hpcdml.emulation.tools import ip, ip_json, tc, tc_json
from hpcdml.errors import MachineError

DEVICE = "eth0"  # of each host
SETTINGS = Path("/etc/netns")  # where ip netns exec finds a namespace's own /etc/hosts
_SWITCH = "switch"
_SUBNET = "10.77.0"
_RIGHTS = "the rights to make network namespaces (CAP_SYS_ADMIN, CAP_NET_ADMIN), as in a privileged container"
_SHAPING = "the kernel's sch_tbf, as by modprobe sch_tbf; or --rate none"
# TCP's congestion control is set, where the kernel has it, so that figures of different machines compare.
_CONGESTION = "cubic"


@dataclass(frozen=True)
class HostState:
    """What is known of a host.

    Attributes:
        rate: of its link, bits per second each way; ``None``: unlimited.
        connected: whether its link is up.
        processes: running in it.
    """

    name: str
    address: str
    namespace: str
    rate: int | None
    connected: bool
    processes: int


@dataclass(frozen=True)
class Network:
    """Builds, changes and removes the namespaces of a cluster; remembers nothing.

    Attributes:
        hosts: how many.
        mtu: of all links, bytes.
    """

    name: str
    hosts: int
    mtu: int = 1500

    @property
    def names(self) -> list[str]:
        """The hosts' names, in the order of ranks."""
        return [f"h{i}" for i in range(self.hosts)]

    def address(self, host: str) -> str:
        return f"{_SUBNET}.{self.names.index(host) + 1}"

    def namespace(self, host: str) -> str:
        return namespace(self.name, host)

    def create(self) -> None:
        """Build it, links up and without limits.

        Raises:
            MachineError: rights or parts of the kernel are missing; what was built until then is left.
        """
        switch = self.namespace(_SWITCH)
        ip("netns", "add", switch, need=_RIGHTS)
        # Without addresses of its own (addrgenmode) and without waiting for others that would speak as bridges.
        bridge = ("type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        ip("-n", switch, "link", "add", "name", "br0", *bridge, need="the kernel's bridge, as by modprobe bridge")
        ip("-n", switch, "link", "set", "dev", "br0", "mtu", str(self.mtu), "addrgenmode", "none", "up")
        for host in self.names:
            self._add(host, switch)

    def shape(self, bits: int | None) -> None:
        """Limit all links to so many bits per second each way, or lift the limits; running transfers go on.

        A limit counts where packets leave an interface, so each direction has its limit at its own end of the link.
        """
        switch = self.namespace(_SWITCH)
        for host in self.names:
            for where, device in ((self.namespace(host), DEVICE), (switch, host)):
                if bits is None:
                    if any(row["kind"] == "tbf" for row in tc_json("-n", where, "qdisc", "show", "dev", device)):
                        tc("-n", where, "qdisc", "del", "dev", device, "root")
                    ip("-n", where, "link", "set", "dev", device, "gso_max_size", "65536")
                    continue
                form = bucket(bits)
                sizes = ("rate", f"{form.rate}bit", "burst", str(form.burst), "limit", str(form.queue))
                tc("-n", where, "qdisc", "replace", "dev", device, "root", "tbf", *sizes, need=_SHAPING)
                ip("-n", where, "link", "set", "dev", device, "gso_max_size", str(form.packet))

    def connect(self, host: str, up: bool) -> None:
        """Plug the cable of a host in or out, at the switch."""
        ip("-n", self.namespace(_SWITCH), "link", "set", "dev", host, "up" if up else "down")

    def states(self) -> list[HostState]:
        """What is known of each host."""
        rows = []
        for host in self.names:
            where = self.namespace(host)
            rate, connected = None, False
            with suppress(MachineError):  # without its link, after a crash in the middle of create
                connected = "LOWER_UP" in ip_json("-n", where, "link", "show", "dev", DEVICE)[0]["flags"]
                for row in tc_json("-n", where, "qdisc", "show", "dev", DEVICE):
                    if row["kind"] == "tbf":
                        rate = 8 * int(row["options"]["rate"])
            count = len(processes.in_namespaces([where]))
            rows.append(HostState(host, self.address(host), where, rate, connected, count))
        return rows

    def _add(self, host: str, switch: str) -> None:
        own = self.namespace(host)
        folder = SETTINGS / own
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.names)]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        ip("netns", "add", own, need=_RIGHTS)
        ip("-n", own, "link", "set", "dev", "lo", "up")
        pair = ("type", "veth", "peer", "name", host, "netns", switch)
        ip("-n", own, "link", "add", "name", DEVICE, *pair, need="the kernel's veth, as by modprobe veth")
        size = ("mtu", str(self.mtu), "addrgenmode", "none")
        ip("-n", switch, "link", "set", "dev", host, "master", "br0", *size, "up")
        ip("-n", own, "link", "set", "dev", DEVICE, *size, "up")
        ip("-n", own, "address", "add", f"{self.address(host)}/24", "dev", DEVICE)
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
        if _CONGESTION in known.read_text().split():
            route = (f"{_SUBNET}.0/24", "dev", DEVICE, "src", self.address(host), "congctl", _CONGESTION)
            ip("-n", own, "route", "replace", *route)
        with suppress(MachineError):  # /proc may be read-only; then a connection begins with what the last one learned
            ip("netns", "exec", own, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")


def namespace(name: str, host: str) -> str:
    """The network namespace of a host of the cluster of that name."""
    return f"hpcdml-{name}-{host}"


def count_hosts(name: str) -> int:
    """How many hosts the cluster of that name has on this machine; 0: there is none."""
    return sum(not part.endswith(f"-{_SWITCH}") for part in _parts(processes.NAMESPACES, name))


def clusters() -> list[str]:
    """The names of the clusters on this machine."""
    return sorted({part.split("-")[1] for part in _parts(processes.NAMESPACES, "[a-z0-9]+")})


def remove(name: str) -> None:
    """Kill what runs in the cluster of that name and remove it, whole or not; nothing happens where there is none.

    Raises:
        MachineError: a process cannot be killed.
    """
    parts = _parts(processes.NAMESPACES, name)
    if left := processes.kill_all(lambda: processes.in_namespaces(parts)):
        raise MachineError(f"cluster {name}: process {left[0]} cannot be killed")
    for part in parts:
        try:
            ip("netns", "delete", part)
        except MachineError:
            if (processes.NAMESPACES / part).exists():  # else another process removes it, too
                raise
    for part in _parts(SETTINGS, name):
        shutil.rmtree(SETTINGS / part, ignore_errors=True)
    with suppress(OSError):  # others have theirs there, or there is none
        SETTINGS.rmdir()


def _parts(folder: Path, name: str) -> list[str]:
    """What of the cluster of that name is in a folder; ``name`` is a pattern."""
    form = re.compile(rf"hpcdml-{name}-(h\d+|{_SWITCH})")
    return [part for part in os.listdir(folder) if form.fullmatch(part)] if folder.is_dir() else []
