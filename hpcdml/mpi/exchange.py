"""An MPI program that measures how fast messages go both ways at once between rank 0 and all others.

It is the yardstick of ``hpcdml bench link``: nothing but MPI, messages of one size from buffers that are used again and
again, a few in flight in each direction and to each rank, and MPI's own waiting.

    mpirun -n 3 python -m hpcdml.mpi.exchange '{"sizes": [524288], "flights": [4], "seconds": 0.5}'
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
from mpi4py import MPI

_TRIAL_BYTES = 4 << 20


def measure(comm: MPI.Intracomm, size: int, flight: int, seconds: float) -> dict[str, float]:
    """Exchange messages for about so long. Every rank calls it.

    Args:
        size: of a message, bytes.
        flight: messages in flight in each direction between rank 0 and each other rank.

    Returns:
        up, down: bytes per second that rank 0 received, and that the others received, all of them together.
    """
    count = math.ceil(_TRIAL_BYTES / size)
    took = max(_exchange(comm, size, flight, count))
    wanted = np.array([max(count, round(count * seconds / took))])
    comm.Bcast(wanted, root=0)
    count = int(wanted[0])
    up, down = _exchange(comm, size, flight, count)
    total = float(count * size * (comm.Get_size() - 1))
    return {"size": size, "flight": flight, "up": total / up, "down": total / down}


def _exchange(comm: MPI.Intracomm, size: int, flight: int, count: int) -> tuple[float, float]:
    """Seconds until rank 0 had all messages, and until all others had all of theirs, ``count`` for each rank and way.

    Both are the same on all ranks.
    """
    others = range(1, comm.Get_size()) if comm.Get_rank() == 0 else [0]
    requests: list[MPI.Prequest] = []
    for other in others:
        for _ in range(min(flight, count)):
            requests.append(comm.Recv_init(np.zeros(size, np.uint8), other))
            requests.append(comm.Send_init(np.zeros(size, np.uint8), other))
    # A request is started again until its share of the messages is through.
    lanes = min(flight, count)
    left = [count // lanes + (lane < count % lanes) for _ in others for lane in range(lanes) for _ in range(2)]
    comm.Barrier()
    begin = time.perf_counter()
    MPI.Prequest.Startall(requests)
    receiving, received = sum(left[::2]), 0.0
    while any(left):
        for index in MPI.Request.Waitsome(requests) or ():
            left[index] -= 1
            if index % 2 == 0:
                receiving -= 1
                if not receiving:
                    received = time.perf_counter() - begin
            if left[index]:
                requests[index].Start()
    times = np.zeros(comm.Get_size())
    comm.Allgather(np.array([received]), times)
    for request in requests:
        request.Free()
    return float(times[0]), float(times[1:].max())


def main(argv: list[str]) -> int:
    """Measure every pair of size and flight and let rank 0 print the list as JSON."""
    asked = json.loads(argv[0])
    comm = MPI.COMM_WORLD
    found = [measure(comm, size, flight, asked["seconds"]) for size in asked["sizes"] for flight in asked["flights"]]
    if comm.Get_rank() == 0:
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
