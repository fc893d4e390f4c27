"""One rank of a peer: ``mpirun -n 2 python -m hpcdml.benchmarks.peers '{"side": "ddp", ...}'``, see ``PeerOptions``."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

from hpcdml.benchmarks.peers.loop import Prepared, train
from hpcdml.benchmarks.peers.meeting import join
from hpcdml.benchmarks.peers.options import PeerOptions
from hpcdml.errors import HpcdmlError, MachineError
from hpcdml.launcher import ALONE, Launched, launched

# What a rank waits before it tells of a failure: a lower rank that fails alike tells it first, and its exit ends all;
# so does the exit of the neighbour that this rank has lost.
GRACE_SECONDS = 2.0
LOST_SECONDS = 4.0


def main(text: str) -> int:
    """Train as the JSON object says; the exit status is 0 done, 1 failed, 2 wrong use."""
    place = launched() or ALONE
    try:
        options = PeerOptions.from_json(text)
        prepared = Prepared(options, place)
        join(options.meeting, place)
        result = train(prepared)
        if result is not None:
            _write(Path(options.result), json.dumps(result, allow_nan=False))
    except HpcdmlError as error:
        return _tell(place, str(error), error.status, GRACE_SECONDS)
    except Exception as error:
        return _tell(place, f"failed: {type(error).__name__}: {error}", 1, LOST_SECONDS)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _tell(place: Launched, text: str, status: int, grace: float) -> int:
    if place.rank or status == 1:
        time.sleep(grace)
    where = f" (rank {place.rank} on {socket.gethostname()})" if place.rank else ""
    print(f"hpcdml: {' '.join(text.split())}{where}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    # Not sys.exit: the group is still there, and its threads may wait for a rank that is lost.
    os._exit(code)
