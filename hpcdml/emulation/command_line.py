"""``python -m hpcdml.emulation up | run | exec | set-rate | status | down``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from hpcdml.emulation import network
from hpcdml.emulation.cluster import DEFAULT_NAME, Cluster, check_name
from hpcdml.emulation.rates import format_rate
from hpcdml.emulation.signals import EndingSignals
from hpcdml.emulation.tools import check_machine
from hpcdml.errors import HpcdmlError, UsageError

PROGRAM = "python -m hpcdml.emulation"
INTERRUPTED = 130
_TAKING_A_COMMAND = ("run", "exec")


class _Parser(argparse.ArgumentParser):
    """Raises ``UsageError`` where ``argparse`` prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}; {PROGRAM} --help shows the form")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 failed, 2 wrong use, or that of the job."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signals = EndingSignals()
    signals.install()
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except HpcdmlError as problem:
        print("hpcdml:", " ".join(str(problem).split()), file=sys.stderr)
        return problem.status
    except OSError as problem:
        print(f"hpcdml: {problem}", file=sys.stderr)
        return 1
    finally:
        signals.restore()


def _main(arguments: list[str]) -> int:
    command: list[str] = []
    if "--" in arguments and arguments[0] in _TAKING_A_COMMAND:
        at = arguments.index("--")
        arguments, command = arguments[:at], arguments[at + 1 :]
    chosen = _parser().parse_args(arguments)
    if chosen.task in _TAKING_A_COMMAND:
        if not command:
            raise UsageError(f"{chosen.task}: what to run comes after --, as in {chosen.task} -- python program.py")
        return _run(chosen, command)
    if chosen.task == "up":
        if chosen.delay is not None:
            raise UsageError(f"--delay {chosen.delay}: links have a rate only; a delay would need the kernel's netem")
        cluster = Cluster(_whole("--hosts", chosen.hosts), chosen.rate, chosen.name, _whole("--mtu", chosen.mtu))
        cluster.up()
        print(f"{cluster.name}: {', '.join(cluster.hosts)}, {cluster.rate} each way")
    elif chosen.task == "down":
        Cluster(name=chosen.name).down(force=True)
    elif chosen.task == "set-rate":
        Cluster.find(chosen.name).set_rate(chosen.rate)
    else:
        _tell(chosen.name)
    return 0


def _run(chosen: argparse.Namespace, command: list[str]) -> int:
    """Run a job on a cluster that is up; its output goes where that of this process goes."""
    timeout = _seconds(chosen.timeout)
    cluster = Cluster.find(chosen.name)
    if chosen.task == "run":
        ranks = len(cluster.hosts) if chosen.ranks is None else _whole("--ranks", chosen.ranks)
        status = cluster.run(ranks, command, timeout, capture=False).returncode
    else:
        status = cluster.run_on(chosen.host, command, timeout, capture=False).returncode
    return status if status >= 0 else 128 - status


def _tell(name: str | None) -> None:
    """Print a line for each host of one cluster, or of all."""
    check_machine()
    names = network.clusters() if name is None else [check_name(name)]
    form = "{:<9} {:<5} {:<11} {:<9} {:<5} {}"
    lines = []
    for one in names:
        hosts = network.count_hosts(one)
        if not hosts and name is not None:
            raise UsageError(f"--name {one}: there is no such cluster")
        if not hosts:  # up was killed at its very beginning
            lines.append(f"{one:<9} is not whole; down --name {one} removes it")
        for state in network.Network(one, hosts).states():
            rate, link = format_rate(state.rate), "up" if state.connected else "down"
            lines.append(form.format(one, state.name, state.address, rate, link, state.processes))
    if not lines:
        print("no emulated cluster is up")
        return
    print(form.format("cluster", "host", "address", "rate", "link", "processes"), *lines, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Several hosts on this machine, with links of a set rate each way.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")

    def task(name: str, text: str, cluster: str | None = DEFAULT_NAME) -> argparse.ArgumentParser:
        made = tasks.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--name", default=cluster, help="name of the cluster" + (f" ({cluster})" if cluster else ""))
        return made

    up = task("up", "build a cluster, anew if there is one of that name")
    up.add_argument("--hosts", default="3", metavar="N", help="from 1 to 64 (3)")
    up.add_argument("--rate", default="1gbit", help="of each link in each direction, as in 100mbit; none: unlimited")
    up.add_argument("--mtu", default="1500", metavar="BYTES", help="largest packet of the links (1500)")
    up.add_argument("--delay", help="not supported: it would need the kernel's netem")
    run = task("run", "run a program as an MPI job, one rank on each host: run -- python program.py")
    run.add_argument("--ranks", metavar="N", help="at most as many as hosts (all)")
    run.add_argument("--timeout", metavar="SECONDS", help="kill the job after so long (never)")
    on_host = task("exec", "run a command on one host; an mpirun in it spreads over the hosts: exec -- COMMAND")
    on_host.add_argument("--host", default="h0", help="which (h0)")
    on_host.add_argument("--timeout", metavar="SECONDS", help="kill it after so long (never)")
    task("set-rate", "change the rate of all links").add_argument("rate")
    task("status", "the hosts of one cluster, or of all", cluster=None)
    task("down", "kill what runs in a cluster and remove it")
    return parser


def _whole(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{option} {text}: must be a whole number")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UsageError(f"--timeout {text}: must be a number of seconds above 0")
    return seconds
