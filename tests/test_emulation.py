"""The emulated cluster: what it builds, what it leaves, the rates of its links, and MPI jobs on it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcdml.cli.ranks import launcher_rank
from hpcdml.emulation import Cluster, JobHangs, network, parse_rate, processes, rates, tools
from hpcdml.emulation.command_line import main
from hpcdml.emulation.jobs import find_mpirun
from hpcdml.errors import HpcdmlError, MachineError, UsageError

# Names that another run of these tests at the same time does not have.
NAME = f"t{os.getpid() % 10**6:06d}"
OTHER, CRASHING, WRONG = NAME + "o", NAME + "c", NAME + "w"
EMULATION = [sys.executable, "-m", "hpcdml.emulation"]

# Tells the rate at which one stream arrives, bits per second, its first half second left out.
RECEIVE = """
import socket, time
listener = socket.create_server(("0.0.0.0", 9000))
print("ready", flush=True)
stream, total, marks = listener.accept()[0], 0, []
while got := len(stream.recv(1 << 16)):
    total += got
    marks.append((time.monotonic(), total))
begin = next(mark for mark in marks if mark[0] > marks[0][0] + 0.5)
print((marks[-1][1] - begin[1]) * 8 / (marks[-1][0] - begin[0]))
"""
SEND = """
import socket, sys, time
stream, end = socket.create_connection((sys.argv[1], 9000), 5), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    stream.sendall(bytes(1 << 16))
"""
REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9001), 0.7).close()
except OSError:
    sys.exit(1)
"""
ANSWER = """
import socket
listener = socket.create_server(("0.0.0.0", 9001))
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""
# Rank 0 tells the seconds until 2 MB from each of the others have arrived; every rank, where it is.
MESSAGES = """
import socket, time
import numpy as np
from mpi4py import MPI
comm = MPI.COMM_WORLD
buffers = [np.zeros(2_000_000, np.uint8) for _ in range(comm.size)]
print("rank", comm.rank, socket.gethostname(), flush=True)
for repeat in range(3):
    comm.Barrier()
    begin = time.monotonic()
    if comm.rank:
        comm.Ssend(buffers[0], 0)
    else:
        MPI.Request.Waitall([comm.Irecv(buffers[i], i) for i in range(1, comm.size)])
        print("seconds", time.monotonic() - begin, flush=True)
"""
# mpirun may hang where its program ends at once (prrte issue 1839): 4 of 30 times with hostname alone, never with this.
BRIEFLY = "hostname; sleep 0.3"
HOLD = """
import sys, time
from hpcdml.emulation import Cluster
with Cluster(2, "none", sys.argv[1]) as cluster:
    print("up", flush=True)
    cluster.run_on("h1", ["sleep", "300"])
"""


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips the test where a cluster cannot be built."""
    if launcher_rank() is not None:
        pytest.skip("starts MPI jobs itself, so it does not run inside one")
    try:
        with Cluster(1, "1gbit", OTHER):
            pass
    except HpcdmlError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module")
def cluster(possible: None) -> Iterator[Cluster]:
    """Three hosts with 50 Mbit/s, for all tests of this file. A test that changes it changes it back."""
    with Cluster(3, "50mbit", NAME) as made:
        yield made


@pytest.fixture(scope="module")
def mpi_cluster(cluster: Cluster) -> Cluster:
    """The same, where Open MPI can launch jobs on it."""
    try:
        version = subprocess.run([find_mpirun(), "--version"], capture_output=True, text=True).stdout
    except MachineError as problem:
        pytest.skip(str(problem))
    if "Open MPI" not in version or version.split("Open MPI) ")[1][0] in "1234":
        pytest.skip(f"needs Open MPI 5 or later, not {version.splitlines()[0]}")
    return cluster


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process and waits for its first line; it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(command: list[str]) -> subprocess.Popen[str]:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None and child.stdout.readline()
        return child

    yield call
    for child in started:
        child.kill()
        child.communicate()


def left_of(name: str) -> list[str]:
    """Namespaces, settings and files of the cluster of that name."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    settings = os.listdir(network.SETTINGS) if network.SETTINGS.is_dir() else []
    files = [path.name for path in Path("/run/hpcdml-emulation").glob("*")]
    return [found for found in [*spaces, *settings, *files] if name in re.split("[-.]", found)]


def runs(pid: int) -> bool:
    """Whether a process is there and more than a zombie, which its parent may leave for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def emulation(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*EMULATION, *arguments], capture_output=True, text=True, timeout=60, **options)  # type: ignore


def told(text: str, word: str) -> list[list[str]]:
    """The rest of each line that begins with the word, split."""
    return [line.split()[1:] for line in text.splitlines() if line.startswith(word)]


# What it builds and what it leaves


def test_up_and_down_may_be_repeated_and_leave_nothing(possible: None) -> None:
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout
    made = Cluster(2, "1gbit", OTHER)
    for _ in range(2):
        made.up()
        assert len(left_of(OTHER)) == 7  # two hosts and a switch, two settings, a folder and a lock
        assert [state.rate for state in made.states()] == [10**9, 10**9]
    assert subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout == links
    for _ in range(2):
        made.down()
        assert left_of(OTHER) == []
    assert subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout == links


def test_commands_build_tell_run_and_remove(possible: None) -> None:
    try:
        assert emulation("up", "--hosts", "2", "--rate", "200mbit", "--name", OTHER).stdout.split(":")[0] == OTHER
        emulation("set-rate", "none", "--name", OTHER, check=True)
        emulation("set-rate", "2.5gbit", "--name", OTHER, check=True)
        rows = [line.split() for line in emulation("status", "--name", OTHER).stdout.splitlines()]
        assert rows[1] == [OTHER, "h0", "10.77.0.1", "2.5gbit", "up", "0"]
        assert len(rows) == 3
        done = emulation("exec", "--host", "h1", "--name", OTHER, "--", "sh", "-c", 'hostname; exit "$0"', "7")
        assert (done.stdout, done.returncode) == ("h1\n", 7)
    finally:
        assert emulation("down", "--name", OTHER).returncode == 0
    assert left_of(OTHER) == []
    assert emulation("down", "--name", OTHER).returncode == 0


def test_hosts_have_names_that_others_resolve(cluster: Cluster) -> None:
    program = "import socket; print(socket.gethostname(), *map(socket.gethostbyname, ('h0', 'h1', 'h2', 'localhost')))"
    for host in cluster.hosts:
        done = cluster.run_on(host, [sys.executable, "-c", program], timeout=20)
        assert done.stdout.split() == [host, "10.77.0.1", "10.77.0.2", "10.77.0.3", "127.0.0.1"]
    assert cluster.address("h2") == "10.77.0.3"


def test_two_clusters_do_not_meet(cluster: Cluster, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(cluster.command_on("h1", [sys.executable, "-c", ANSWER]))
    reach = [sys.executable, "-c", REACH, "h1"]
    with Cluster(2, "50mbit", OTHER) as other:
        assert cluster.run_on("h0", reach).returncode == 0
        assert other.run_on("h0", reach).returncode == 1
    assert cluster.run_on("h0", reach).returncode == 0


def test_an_exception_in_the_block_takes_it_down(possible: None) -> None:
    with pytest.raises(ZeroDivisionError), Cluster(1, "none", OTHER):
        raise ZeroDivisionError
    assert left_of(OTHER) == []


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2)])
def test_a_signal_takes_it_down(
    possible: None, start: Callable[..., subprocess.Popen[str]], number: int, status: int
) -> None:
    child = start([sys.executable, "-c", HOLD, CRASHING])
    child.send_signal(number)
    assert child.wait(20) == status
    assert left_of(CRASHING) == []


def test_after_kill_9_up_works_again(possible: None, start: Callable[..., subprocess.Popen[str]]) -> None:
    child = start([sys.executable, "-c", HOLD, CRASHING])
    spaces = [f"hpcdml-{CRASHING}-h{i}" for i in range(2)]
    deadline = time.monotonic() + 10
    while not (left := processes.in_namespaces(spaces)) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert left and set(left) <= set(processes.in_namespaces(spaces))  # the job outlived it
    with Cluster(1, "none", CRASHING) as again:
        assert not [pid for pid in left if runs(pid)]
        assert [state.processes for state in again.states()] == [0]
    assert left_of(CRASHING) == []


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3])
def test_after_kill_9_in_the_middle_of_up_it_works_again(possible: None, seconds: float) -> None:
    child = subprocess.Popen([*EMULATION, "up", "--hosts", "12", "--name", CRASHING], stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    child.kill()
    child.wait()
    assert emulation("status").returncode == 0
    with Cluster(1, "none", CRASHING) as again:
        assert len(again.states()) == 1
    assert left_of(CRASHING) == []


def test_a_cluster_in_use_is_not_replaced(cluster: Cluster) -> None:
    done = emulation("up", "--name", NAME)
    assert done.returncode == 1
    assert done.stderr == f"hpcdml: the emulated cluster {NAME} is in use by another process; take another --name\n"
    with pytest.raises(MachineError, match="in use"):
        Cluster(name=NAME).down()
    assert len(cluster.states()) == 3


# Links


def both_ways(cluster: Cluster, seconds: float) -> list[float]:
    """Rates of two streams between h0 and h1, one each way at once, bits per second."""
    receivers, senders = [], []
    for host in ("h0", "h1"):
        command = cluster.command_on(host, [sys.executable, "-c", RECEIVE])
        receivers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    for receiver in receivers:
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
    for host, peer in (("h0", "h1"), ("h1", "h0")):
        senders.append(subprocess.Popen(cluster.command_on(host, [sys.executable, "-c", SEND, peer, str(seconds)])))
    for sender in senders:
        assert sender.wait(seconds + 20) == 0
    return [float(receiver.communicate(timeout=20)[0]) for receiver in receivers]


def test_rate_is_kept_both_ways_and_can_be_changed(cluster: Cluster) -> None:
    for rate in both_ways(cluster, 3.0):
        assert 0.8 * 50e6 < rate < 1.1 * 50e6
    cluster.set_rate("20mbit")
    try:
        assert [state.rate for state in cluster.states()] == [20_000_000] * 3
        for rate in both_ways(cluster, 2.0):
            assert 0.7 * 20e6 < rate < 1.1 * 20e6
    finally:
        cluster.set_rate("50mbit")


def test_a_link_goes_down_and_up_again(cluster: Cluster, start: Callable[..., subprocess.Popen[str]]) -> None:
    start(cluster.command_on("h1", [sys.executable, "-c", ANSWER]))

    def reaches(host: str) -> bool:
        return cluster.run_on(host, [sys.executable, "-c", REACH, "h1"], timeout=20).returncode == 0

    assert reaches("h0")
    cluster.link_down("h1")
    try:
        assert [state.connected for state in cluster.states()] == [True, False, True]
        assert not reaches("h0")
    finally:
        cluster.link_up("h1")
    assert reaches("h0") and reaches("h2")
    assert [state.connected for state in cluster.states()] == [True] * 3
    assert [state.rate for state in cluster.states()] == [50_000_000] * 3


# Jobs


def test_an_mpi_job_has_a_rank_on_each_host_and_the_rate_of_the_link(mpi_cluster: Cluster) -> None:
    done = mpi_cluster.run(3, [sys.executable, "-c", MESSAGES], timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(told(done.stdout, "rank")) == [["0", "h0"], ["1", "h1"], ["2", "h2"]]
    seconds = min(float(words[0]) for words in told(done.stdout, "seconds"))
    ideal = 2 * 2_000_000 * 8 / 50e6  # both messages go through the link of h0
    assert 0.9 * ideal < seconds < 1.6 * ideal


def test_mpirun_within_a_host_uses_all_hosts(mpi_cluster: Cluster) -> None:
    command = [find_mpirun(), "-n", "3", "sh", "-c", BRIEFLY]
    done = emulation("exec", "--name", mpi_cluster.name, "--", *command)
    assert sorted(done.stdout.split()) == ["h0", "h1", "h2"], done.stderr


def test_run_takes_a_program_without_mpirun(mpi_cluster: Cluster) -> None:
    done = emulation("run", "--ranks", "2", "--name", mpi_cluster.name, "--", "sh", "-c", BRIEFLY + "; exit 3")
    assert done.returncode == 3
    assert set(done.stdout.split()) <= {"h0", "h1"}


def test_a_job_that_hangs_is_killed_on_every_host(mpi_cluster: Cluster) -> None:
    with pytest.raises(JobHangs, match="still running after 2 s") as caught:
        mpi_cluster.run(3, ["sh", "-c", "hostname; trap '' TERM; while :; do sleep 0.3; done"], timeout=2)
    assert set(caught.value.stdout.split()) == {"h0", "h1", "h2"}
    assert [state.processes for state in mpi_cluster.states()] == [0, 0, 0]


def test_an_interrupted_run_ends_its_job(mpi_cluster: Cluster) -> None:
    command = [*EMULATION, "run", "--name", mpi_cluster.name, "--", "sh", "-c", "echo started; exec sleep 300"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "started\n"
    child.terminate()
    assert child.wait(20) == 143
    child.communicate()
    assert [state.processes for state in mpi_cluster.states()] == [0, 0, 0]


# Wrong use, and machines that cannot


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["up", "--hosts", "0"], "--hosts 0: must be from 1 to 64"),
        (["up", "--hosts", "three"], "--hosts three: must be a whole number"),
        (["up", "--rate", "fast"], "--rate fast: must be from 1mbit to 100gbit"),
        (["up", "--rate", "10kbit"], "--rate 10kbit: must be from 1mbit"),
        (["up", "--mtu", "100"], "--mtu 100: must be from 576 to 9216 bytes"),
        (["up", "--delay", "1ms"], "netem"),
        (["up", "--name", "Bench-1"], "--name Bench-1: must be 1 to 8"),
        (["down", "--name", "../../x"], "--name ../../x: must be 1 to 8"),
        (["up", "--host", "2"], "--host"),
        (["run"], "comes after --"),
        (["run", "--"], "comes after --"),
        (["run", "--timeout", "soon", "--", "true"], "--timeout soon: must be a number of seconds"),
        (["fly"], "fly"),
        ([], "TASK"),
    ],
)
def test_wrong_use_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.setattr(Cluster, "up", lambda self: pytest.fail("must not come so far"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hpcdml: ") and err.count("\n") == 1
    assert words in err


def test_a_cluster_that_is_not_there_gets_one_line(possible: None, capsys: pytest.CaptureFixture[str]) -> None:
    for task in (["run", "--name", WRONG, "--", "true"], ["status", "--name", WRONG]):
        assert main(task) == 2
        assert f"--name {WRONG}: there is no such cluster" in capsys.readouterr().err


def test_more_ranks_than_hosts_and_unknown_hosts_are_refused() -> None:
    made = Cluster(3, "1gbit", WRONG)
    with pytest.raises(UsageError, match="--ranks 4: must be from 1 to 3"):
        made.command(4, ["true"])
    with pytest.raises(UsageError, match="h3: no such host"):
        made.link_down("h3")


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for task in (["up"], ["down"], ["status"], ["run", "--", "true"]):
        assert main(task) == 2
        assert "needs root" in capsys.readouterr().err


def test_without_iproute2_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "_SYSTEM_FOLDERS", "")
    monkeypatch.setenv("PATH", "")
    assert main(["up", "--name", WRONG]) == 1
    assert capsys.readouterr().err == "hpcdml: an emulated cluster needs ip: install the package iproute2\n"


def test_without_the_rights_it_says_so_and_leaves_nothing(possible: None) -> None:
    drop = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    if subprocess.run([*drop, "true"], capture_output=True).returncode:
        pytest.skip("setpriv cannot take rights away here")
    done = subprocess.run([*drop, *EMULATION, "up", "--name", WRONG], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "CAP_SYS_ADMIN" in done.stderr
    assert left_of(WRONG) == []


def test_without_a_part_of_the_kernel_it_says_so_and_leaves_nothing(possible: None, tmp_path: Path) -> None:
    fake = tmp_path / "tc"
    fake.write_text("#!/bin/sh\necho 'Error: Specified qdisc kind is unknown.' >&2\nexit 2\n")
    fake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = emulation("up", "--name", WRONG, env={**os.environ, "PATH": path})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "qdisc kind is unknown" in done.stderr and "--rate none" in done.stderr
    assert left_of(WRONG) == []


def test_rates_are_read_and_written() -> None:
    for text, bits in (("1gbit", 10**9), ("2.5gbit", 2_500_000_000), ("50mbit", 50_000_000), ("1500kbit", 1_500_000)):
        assert parse_rate(text) == bits
        assert parse_rate(rates.format_rate(bits)) == bits
    assert parse_rate("none") is None and rates.format_rate(None) == "none"


@pytest.mark.parametrize("bits", [10**6, 10**8, 10**9, 10**10, 10**11])
def test_a_bucket_holds_two_of_its_packets(bits: int) -> None:
    form = rates.bucket(bits)
    assert form.rate == bits
    assert 9216 <= form.packet <= form.burst // 2
    assert form.queue >= form.burst + 4 * form.packet
