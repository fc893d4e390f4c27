"""What a worker does when the server has died: its model is all that is left of what it has not sent."""

from __future__ import annotations

from pathlib import Path

from hpcdml.errors import HpcdmlError
from hpcdml.storage.parameters_file import write_state
from hpcdml.training.state import state_arrays
from hpcdml.training.worker_state import WorkerState

RESCUE_FOLDER = "rescued"
"""Folder, in that of the run, of what workers save."""


def rescue(state: WorkerState, output: str) -> str:
    """Save a worker's model to a file of its own.

    Args:
        output: the run's folder.

    Returns:
        The end of a sentence that says where it is, or why it is nowhere.
    """
    machine = state.machine
    path = Path(output) / RESCUE_FOLDER / f"worker-{machine.rank}.h5"
    about = {"worker": machine.rank, "version": machine.version, "unsent_local_steps": machine.unsent}
    try:
        write_state(path, state_arrays(state.flat.model), about)
    except HpcdmlError as error:
        return f"; this worker's model could not be saved: {error}"
    return f"; this worker's model is in {path}"
