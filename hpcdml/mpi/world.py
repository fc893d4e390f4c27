"""The ranks of a run: who they are, what they compare before training, and how one of them ends all."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import mpi4py
import numpy as np
from mpi4py import MPI

from hpcdml.errors import HpcdmlError, UsageError
from hpcdml.mpi import cores, faults
from hpcdml.mpi.backoff import Backoff, sleep_exactly
from hpcdml.mpi.tags import Tag
from hpcdml.mpi.yielding import keep_the_core

SERVER = faults.SERVER
_PIECE = 1 << 28
_MOST_CORES = 4096
# A failing rank waits so long for word of a lower one that fails as well: longer than an abort takes to end all ranks.
_GRACE_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
# What has become of the ranks by the end.
_WHOLE, _SOME_DIED, _SOME_HANG = range(3)
# Whether MPI_Finalize returns: ``finish`` knows.
_finalizes = True
# Kept until the process ends.
_sends: list[MPI.Request] = []
# Time for the launcher to pass the line on before its own notice of the abort.
_LAUNCHER_SECONDS = 0.1


@dataclass(frozen=True)
class World:
    """This rank's place in the run.

    Attributes:
        comm: a private duplicate of COMM_WORLD, so that no stray message of other code is received.
        local_worker: number of this worker among the workers on its host, from 0.
        cores: CPUs for this worker: those that it may run on and that Slurm gave to the job, less one for the server,
            shared with the other workers there.
        own_cpus: which CPUs this rank has for itself, if it is bound; all that it may run on where they are too few.
        run_id: a random number that every message of the run carries.
        beside_server: whether rank 0 is on this host, as far as it is known.
    """

    comm: MPI.Comm
    rank: int
    size: int
    local_worker: int
    cores: int
    own_cpus: frozenset[int]
    run_id: int
    host: str
    beside_server: bool

    @property
    def workers(self) -> range:
        """Ranks of the workers."""
        return range(1, self.size)

    @property
    def is_server(self) -> bool:
        return self.rank == SERVER


def join_world() -> World:
    """Return this process's place among the ranks that the launcher started."""
    keep_the_core()
    sleep_exactly()
    comm = MPI.COMM_WORLD.Dup()
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    run_id = np.frombuffer(np.random.default_rng().bytes(8), np.uint64).copy()
    wait(comm.Ibcast(run_id, root=SERVER))
    rank = comm.Get_rank()
    # Ranks keep their order in the split, so rank 0 is the first on its host, if it is there.
    first = np.array([rank], np.int64)
    wait(local.Ibcast(first, root=0))
    beside = bool(first[0] == SERVER)
    local_worker = max(0, local.Get_rank() - int(beside))
    count, own = _cores(local, rank)
    world = World(comm, rank, comm.Get_size(), local_worker, count, own, int(run_id[0]), socket.gethostname(), beside)
    local.Free()
    return world


def _cores(local: MPI.Comm, rank: int) -> tuple[int, frozenset[int]]:
    """How many CPUs this rank can count on, and which it would have for itself, beside the ranks of its host.

    The launcher may have bound each rank to cores of its own, or have left all of them to all.
    """
    allowed = frozenset(cpu for cpu in os.sched_getaffinity(0) if cpu < _MOST_CORES)
    mine = np.zeros(_MOST_CORES, np.uint8)
    mine[list(allowed)] = 1
    rows = np.zeros((local.Get_size(), _MOST_CORES), np.uint8)
    wait(local.Iallgather(mine, rows))
    ranks = np.zeros((local.Get_size(), 1), np.int64)
    wait(local.Iallgather(np.array([rank], np.int64), ranks))
    masks = [frozenset(np.flatnonzero(row).tolist()) for row in rows]
    server = 0 if ranks[0, 0] == SERVER else None
    here, limit = local.Get_rank(), cores.granted()
    count = cores.share(masks, here, server, limit)
    if limit is not None and limit < len(frozenset().union(*masks)):
        return count, allowed  # other jobs may have the rest, and nothing tells which
    return count, cores.divide(masks, here, server, cores.physical_cores(allowed))


def versions() -> dict[str, str]:
    """Versions of mpi4py, of the MPI standard and of the MPI library."""
    return {
        "mpi4py": mpi4py.__version__,
        "mpi_standard": ".".join(map(str, MPI.Get_version())),
        "mpi_library": MPI.Get_library_version().split("\n")[0].strip("\0 "),
    }


def wait(request: MPI.Request) -> None:
    """Wait for a request without keeping the core busy."""
    backoff = Backoff()
    while not request.Test():
        backoff.wait()


def barrier(world: World) -> None:
    """Wait for all ranks without keeping the core busy."""
    wait(world.comm.Ibarrier())


def same_everywhere(world: World, digest: bytes, what: str) -> None:
    """Make sure that ``digest`` is equal on all ranks.

    Raises:
        UsageError: on every rank, naming the first rank whose digest differs from the server's.
    """
    rank = differs(world, digest)
    if rank is not None:
        raise UsageError(f"{what} differs between rank 0 and rank {rank}; must be the same on every rank")


def differs(world: World, digest: bytes) -> int | None:
    """The first rank whose digest differs from the server's, on every rank; None: they are equal."""
    mine = np.frombuffer(digest, np.uint8).copy()
    ranks = world.comm.Get_size()  # one, in a process that joins later
    everybody = np.zeros((ranks, len(mine)), np.uint8)
    wait(world.comm.Iallgather(mine, everybody))
    return next((rank for rank in range(1, ranks) if not np.array_equal(everybody[rank], everybody[SERVER])), None)


def broadcast(world: World, arrays: Iterable[np.ndarray]) -> None:
    """Copy the server's arrays into those of every rank: C-contiguous, in the same order, of the same sizes."""
    for array in arrays:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE):
            wait(world.comm.Ibcast(flat[start : start + _PIECE], root=SERVER))


def share(world: World, data: bytes) -> bytes:
    """The server's bytes on every rank."""
    size = np.array([len(data)], np.int64)
    broadcast(world, [size])
    found = np.frombuffer(bytearray(data) if world.is_server else bytearray(int(size[0])), np.uint8)
    broadcast(world, [found])
    return found.tobytes()


def hand_out(world: World, of: Callable[[int], np.ndarray]) -> np.ndarray | None:
    """Give every worker its own bytes (uint8), one worker after the other; ``of`` is called on rank 0 only.

    Returns:
        This worker's bytes; None on rank 0.
    """
    size = np.zeros(1, np.int64)
    if world.is_server:
        for worker in world.workers:
            data = of(worker)
            size[0] = len(data)
            wait(world.comm.Isend(size, worker, Tag.STATE))
            for start in range(0, len(data), _PIECE):
                wait(world.comm.Isend(data[start : start + _PIECE], worker, Tag.STATE))
        return None
    wait(world.comm.Irecv(size, SERVER, Tag.STATE))
    found = np.empty(int(size[0]), np.uint8)
    for start in range(0, len(found), _PIECE):
        wait(world.comm.Irecv(found[start : start + _PIECE], SERVER, Tag.STATE))
    return found


def hosts(world: World) -> list[str]:
    """Host name of every rank, in rank order."""
    mine = np.zeros(64, np.uint8)
    name = world.host.encode()[:64]
    mine[: len(name)] = np.frombuffer(name, np.uint8)
    everybody = np.zeros((world.size, 64), np.uint8)
    wait(world.comm.Iallgather(mine, everybody))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everybody]


def gather(world: World, value: int) -> list[int]:
    """The integer of every rank, in rank order."""
    everybody = np.zeros((world.comm.Get_size(), 1), np.int64)
    wait(world.comm.Iallgather(np.array([value], np.int64), everybody))
    return [int(v) for v in everybody[:, 0]]


def finish(
    world: World,
    status: int,
    live: Iterable[int],
    silent: Collection[int] = (),
    joined: Mapping[int, MPI.Comm] | None = None,
) -> int:
    """End together: nobody leaves before rank 0 says that the result is written.

    A launcher would count a rank that fails after the others have left as the only one. No collective call serves here,
    since ranks may have died; and where some have, nobody calls ``MPI_Finalize``, in which Open MPI 5 hangs then, not
    always. Where some are silent, all are ended by force, with status 1 where it were 0.

    Args:
        status: on rank 0 the exit status of the run.
        live: on rank 0 the workers that are to hear of it.
        silent: on rank 0 the workers from which nothing comes any more.
        joined: on rank 0 the way to workers that have joined since the start.

    Returns:
        The status, on every rank.

    Raises:
        ServerLost: rank 0 has died before.
    """
    value = np.array([status, _WHOLE], np.int64)
    if world.is_server:
        if faults.failed(world.comm) or joined:
            value[1] = _SOME_DIED
        if silent:
            value[1] = _SOME_HANG
        ways = {worker: (world.comm, worker) for worker in live}
        _tell_end(value, [(joined[w], 0) if joined and w in joined else way for w, way in ways.items()])
    else:
        with faults.ToServer(world.comm):
            wait(world.comm.Irecv(value, SERVER, Tag.END))
            wait(world.comm.Isend(value, SERVER, Tag.END))
    global _finalizes
    _finalizes = value[1] != _SOME_DIED or world.comm.Is_inter()
    if value[1] == _SOME_DIED:
        leave = functools.partial(_leave_mpi_as_it_is, int(value[0]))
        if world.comm.Is_inter():
            # Of a process that was started later, the launcher wants it; should it hang, it is cut short.
            watch = threading.Timer(_PATIENCE_SECONDS, leave)
            watch.daemon = True
            watch.start()
        else:
            atexit.register(leave)
    if value[1] == _SOME_HANG:
        _end_by_force(world, int(value[0]), silent)
    return int(value[0])


def _tell_end(value: np.ndarray, ways: Iterable[tuple[MPI.Comm, int]]) -> None:
    """Tell the workers, and see that they have heard of it before this rank leaves."""
    requests = []
    answer = np.zeros(2, np.int64)
    for comm, rank in ways:
        with suppress(MPI.Exception):  # it has died meanwhile
            requests += [comm.Isend(value, rank, Tag.END), comm.Irecv(answer.copy(), rank, Tag.END)]
    until = time.monotonic() + _PATIENCE_SECONDS
    for request in requests:
        with suppress(MPI.Exception):
            while not request.Test() and time.monotonic() < until:
                time.sleep(0.001)


def _leave_mpi_as_it_is(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or int(hasattr(sys, "last_value")))


def end_process(status: int) -> None:
    """Within an ``atexit`` call, after ``finish``: end the process with this status. Does not return."""
    if _finalizes and not MPI.Is_finalized():
        MPI.Finalize()
    _leave_mpi_as_it_is(status)


def at_server(world: World, value: bool) -> bool:
    """Rank 0's truth value on every rank; collective."""
    return bool(gather(world, int(value))[SERVER])


def send_final(world: World, arrays: Iterable[np.ndarray], workers: Iterable[int]) -> None:
    """Copy rank 0's arrays, after ``finish``, into those of the workers that it names: contiguous, of the same sizes.

    Raises:
        ServerLost: rank 0 has died before.
    """
    workers = tuple(workers)
    for array in arrays:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            for worker in workers:
                with suppress(MPI.Exception):  # it has died meanwhile
                    wait(world.comm.Isend(piece, worker, Tag.END))
            if not world.is_server:
                with faults.ToServer(world.comm):
                    wait(world.comm.Irecv(piece, SERVER, Tag.END))


def _end_by_force(world: World, status: int, silent: Iterable[int]) -> None:
    """End all ranks with ``status``, or 1 (with 0, Open MPI lets stopped ones live, and waits). Does not return."""
    sys.stdout.flush()
    if world.is_server:
        ranks = ", ".join(map(str, sorted(silent)))
        done = "" if status else "the result is written; "
        text = f"hpcdml: {done}all ranks are ended by force, as nothing comes from {ranks} any more"
        print(text, file=sys.stderr, flush=True)
        faults.end_launcher(3 * _PATIENCE_SECONDS)
        time.sleep(_LAUNCHER_SECONDS)
        world.comm.Abort(status or 1)
    time.sleep(_PATIENCE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def failure(world: World, error: BaseException) -> str:
    """The line that says why this rank cannot go on."""
    kind = "" if isinstance(error, HpcdmlError) else f"{type(error).__name__}: "
    return f"hpcdml: rank {world.rank} on {world.host}: {kind}{' '.join(str(error).split())}"


def abort(world: World, error: BaseException) -> None:
    """Print why this rank cannot go on and end all ranks with status 1. Does not return.

    What fails on one rank often fails on all of them at once; the lowest of those that fail together speaks alone.
    """
    _let_lower_ranks_speak(world)
    print(failure(world, error), file=sys.stderr, flush=True)
    time.sleep(_LAUNCHER_SECONDS)
    if faults.tolerated():
        # Seen: after a death and aborts on all other ranks, these had ended, and mpirun of Open MPI 5.0.11 had not.
        faults.end_launcher(3 * _PATIENCE_SECONDS)
        if SERVER in faults.failed(world.comm):
            # Every other rank notices it too, and leaves when it has saved what it can. An abort would cut that short,
            # and where it comes from another host than mpirun's, Open MPI 5.0.11 ends with status 0 after a death.
            _all_workers_end(world)
            _leave_mpi_as_it_is(1)
        if len(faults.failed(world.comm)) == world.size - 1:
            # Open MPI 5.0.11 ends with status 0 where the only rank that is left aborts.
            _leave_mpi_as_it_is(1)
    world.comm.Abort(1)


def others_go_on(world: World, error: BaseException) -> bool:
    """Whether the others may train on when this rank, which has failed, leaves alone; all that it has is saved by now.

    They cannot where rank 0 has died, or hangs: a worker of another host from which nothing has come asks the other
    workers, as perhaps the way to its own host is cut.
    """
    if not faults.tolerated() or world.is_server or isinstance(error, faults.ServerLost):
        return False
    return not isinstance(error, faults.NoWord) or not (world.beside_server or _all_workers_end(world))


def _let_lower_ranks_speak(world: World) -> None:
    """Return if no lower rank fails, after a moment; if one does, wait to be ended by it. No rank ends workers who have
    lost their server.
    """
    _speak(world, range(world.rank + 1, world.size))
    start = time.monotonic()
    limit = _GRACE_SECONDS
    while time.monotonic() - start < limit and SERVER not in faults.failed(world.comm):
        # This rank is among them so that MPI sends what it has to, on rank 0 as well.
        if any([_has_spoken(world, rank) for rank in range(world.rank + 1)]):
            limit = _PATIENCE_SECONDS
        time.sleep(0.01)


def _all_workers_end(world: World) -> bool:
    """Tell the other workers that this one ends; whether all live ones have told the same, at once or within a while.

    With the first rank that leaves mpirun ends, and a batch system then ends those that are still saving.
    """
    left = set(world.workers) - {world.rank}
    _speak(world, left)
    until = time.monotonic() + _PATIENCE_SECONDS
    while left and time.monotonic() < until:
        left -= faults.failed(world.comm)
        left -= {rank for rank in left if _has_spoken(world, rank)}
        time.sleep(0.01)
    return not left


def _speak(world: World, ranks: Iterable[int]) -> None:
    """Tell these ranks that this one has failed."""
    for rank in ranks:
        with suppress(MPI.Exception):  # it has died
            _sends.append(world.comm.Isend(bytearray(), rank, Tag.FAILURE))


def _has_spoken(world: World, rank: int) -> bool:
    with suppress(MPI.Exception):  # it has died
        return bool(world.comm.Iprobe(rank, Tag.FAILURE))
    return False
