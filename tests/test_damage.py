"""Every kind of file cut at random places and with random bytes changed: an error of one line, or nothing is wrong.

HPCDML_DAMAGE=20 makes twenty times as many trials, and some with two more kinds of file; -s shows the counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcdml.storage import Checkpoint, RunWriter, TensorArray, write_checkpoint, write_state
from hpcdml.storage.tables import EVALUATIONS, ROUNDS, STEPS

ROOT = Path(__file__).resolve().parent.parent
TIMES = int(os.environ.get("HPCDML_DAMAGE", "1"))
CUTS, CHANGES = 50, 200
KINDS = ["checkpoint", "finished run", "killed run"] + ["parameters", "killed after parameters"] * (TIMES > 1)

TRIALS = """if 1:
    import collections, json, random, sys, time
    from pathlib import Path
    import numpy as np
    from hpcdml.errors import UsageError
    from hpcdml.storage import TABLES
    from hpcdml.storage.contents import read_contents
    source, cuts, changes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

    def plain(value):
        if isinstance(value, np.ndarray):
            return [value.dtype.str, value.shape, value.tobytes()]
        if hasattr(value, "__dict__") and not isinstance(value, type):
            return {name: plain(item) for name, item in vars(value).items() if name != "path"}
        if isinstance(value, dict):
            return [[plain(k), plain(v)] for k, v in value.items()]
        if isinstance(value, (list, tuple)):
            return [type(value).__name__, [plain(item) for item in value]]
        return repr(value)

    def read(path):
        # All that a reader gets; of tables, the rows themselves.
        contents = read_contents(path)
        run, contents.run = contents.run, None
        sealed, contents.sealed = contents.sealed, None
        tables, told, rest = {}, 0, [plain(contents)]
        if run is not None:
            tables = {table.name: run.table(table.name) for table in TABLES}
            told = sum(run.unreadable.values())
            rest += [plain(v) for v in (run.config, run.environment, run.workers, run.created, run.torch_dtypes())]
        return rest, tables, told, sealed

    def outcome(good, found):
        if found[0] == good[0] and all((found[1][name] == rows).all() if len(found[1][name]) == len(rows) else False
                                       for name, rows in good[1].items()):
            return "all there"
        first = all((rows == good[1][name][: len(rows)]).all() for name, rows in found[1].items())
        # With the event "finished", the parameters are gone as well.
        unfinished = len(found[1].get("events", ())) < len(good[1].get("events", ()))
        if first and found[2] and not found[3] and (found[0] == good[0] or unfinished):
            return "rows at the end missing, and told"
        return "WRONG"

    rng, data, good = random.Random(7), source.read_bytes(), read(source)
    busy = [i for i, byte in enumerate(data) if byte]
    path = source.with_name("damaged.h5")
    counts = {"cut": collections.Counter(), "changed": collections.Counter()}
    slowest = 0.0
    for trial in range(cuts + changes):
        damaged = bytearray(data)
        kind = "cut" if trial < cuts else "changed"
        if kind == "cut":
            del damaged[rng.randrange(len(data)):]
        elif rng.random() < 0.1:
            at = rng.randrange(len(data))
            damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
        else:
            for _ in range(rng.choice([1, 1, 2, 8])):
                at = rng.choice([rng.randrange(len(data)), rng.choice(busy), rng.choice(busy[:3000])])
                damaged[at] ^= rng.randrange(1, 256)
        if bytes(damaged) == data:
            continue
        path.write_bytes(damaged)
        source.with_name("last").write_bytes(damaged)
        begin = time.monotonic()
        try:
            what = outcome(good, read(path))
        except UsageError as error:
            assert len(str(error).splitlines()) == 1 and str(path) in str(error), error
            what = "refused in one line"
        slowest = max(slowest, time.monotonic() - begin)
        if what == "WRONG":
            path.rename(source.with_name(f"wrong{trial}.h5"))
        counts[kind][what] += 1
    print(json.dumps([counts, slowest]))
"""


def make(kind: str, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    state = {"layer.w": rng.normal(size=(40, 50)).astype("f4"), "half": np.arange(5, dtype="f4"), "n": np.array(3)}
    if kind == "checkpoint":
        worker = {
            "optimizer": {"state": {0: {"exp_avg": TensorArray(rng.normal(size=(40, 50)), "float64")}}},
            "random": (3, tuple(range(625)), None),
            "place": [1, 2],
        }
        given = {**state, "half": TensorArray(state["half"], "bfloat16")}
        return write_checkpoint(
            folder, Checkpoint(3, given, {"x": [1, 2.5]}, {1: worker, 2: worker}, {"lr": 0.1}, {"host": "h"})
        )
    if kind == "parameters":
        write_state(folder / "a.h5", state, {"round": 3})
        return folder / "a.h5"
    types = {name: (array.shape, "bfloat16" if name == "half" else array.dtype) for name, array in state.items()}
    with RunWriter.create(folder, {"policy": "losp", "lr": 0.1}, {"host": "here"}, 2, types, False) as writer:
        for i in range(1, 1500, 100):
            rows = np.zeros(100, STEPS.dtype)
            rows["worker"], rows["step"], rows["loss"] = 1, np.arange(i, i + 100), rng.normal(size=100)
            writer.append("steps", rows)
            writer.append("rounds", ROUNDS.rows((i, i * 0.5, 2, 9, 99, 0.1, 1000, 2.0, 0, i)))
            writer.append("evaluations", EVALUATIONS.rows((i, i * 0.5, 99, 0.5, 1.0, 0.1)))
            writer.event(i, 0, "kind", "text")
            writer.flush(force=True)
        if kind != "killed run":
            writer.write_parameters(state, 9.0)
        data = writer.path.read_bytes()  # as it lies there when the writer is killed now
    if kind.startswith("killed"):
        writer.path.write_bytes(data)
    return writer.path


@pytest.mark.timeout(120 * TIMES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told_in_one_line_or_does_no_harm(kind: str, tmp_path: Path) -> None:
    path = make(kind, tmp_path)
    command = [sys.executable, "-X", "faulthandler", "-c", TRIALS, str(path), str(CUTS * TIMES), str(CHANGES * TIMES)]
    # In a process of its own: a damaged file may crash HDF5.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110 * TIMES)
    assert (done.returncode, done.stderr) == (0, "")
    counts, slowest = json.loads(done.stdout)
    print(f"{kind}, {path.stat().st_size:,} bytes: cut {counts['cut']}, bytes changed {counts['changed']}")
    assert "WRONG" not in counts["cut"] and "WRONG" not in counts["changed"]
    assert slowest < 20
    if kind in ("checkpoint", "parameters"):
        assert set(counts["cut"]) == set(counts["changed"]) == {"refused in one line"}
    elif kind == "finished run":
        # A seal that was hit, or cut off, is no longer a seal; what it guarded is still there.
        assert counts["changed"]["refused in one line"] > 0.9 * sum(counts["changed"].values())
        assert set(counts["cut"]) | set(counts["changed"]) <= {"refused in one line", "all there"}
