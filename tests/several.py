"""Runs scripts one after the other, in one process or on each rank of an MPI job: ``several.py "A.py --x 1" ...``."""

from __future__ import annotations

import runpy
import shlex
import sys

for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    print(f"--- {line}", flush=True)
    runpy.run_path(sys.argv[0], run_name="__main__")
