"""What any of the project's HDF5 files holds, once every byte or row of it that has a checksum was verified."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdml.errors import UsageError
from hpcdml.storage import checkpoint, parameters_file, run_file
from hpcdml.storage.checkpoint_folder import newest_valid
from hpcdml.storage.hdf5 import reading
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.seal import verify
from hpcdml.storage.tree import TensorArray


@dataclass
class Contents:
    """A verified file.

    Attributes:
        path: the file.
        kind: "run", "checkpoint" or "parameters".
        sealed: whether all its bytes are as they were when it was closed; False for a run that goes on or was killed.
        parameters: by their names in the ``state_dict``; None for a run that has not finished.
        config: every option with its value; of a file of parameters, its attributes.
        environment: versions, host, command line, ...
        run: of a run, its reader.
        checkpoint: of a checkpoint, all of it.
    """

    path: Path
    kind: str
    sealed: bool
    parameters: dict[str, TensorArray] | None
    config: dict[str, Any]
    environment: dict[str, str]
    run: RunReader | None = None
    checkpoint: checkpoint.Checkpoint | None = None


def read_contents(path: str | os.PathLike[str], state: bool = True) -> Contents:
    """Verify and read a run's folder or file, a checkpoint, or a file of parameters.

    Args:
        path: the folder or file.
        state: read all of a checkpoint, not its parameters only.

    Raises:
        UsageError: there is no such file, it is damaged, or it is none of ours.
    """
    source = Path(path)
    with reading(source):
        if source.is_dir():
            return _run(source)
        if not source.is_file():
            raise UsageError(f"{source}: there is no such file")
        seal = verify(source)
    kind = run_file.FORMAT if seal is None else seal.about.get("format")
    if kind == checkpoint.FORMAT:
        found = checkpoint.read_checkpoint(source, server=state, workers=None if state else (), check=False)
        typed = {name: entry for name, entry in found.parameters.items() if isinstance(entry, TensorArray)}
        config, environment = dict(found.config), dict(found.environment)
        return Contents(source, "checkpoint", True, typed, config, environment, checkpoint=found)
    if kind == parameters_file.FORMAT:
        parameters, attributes = parameters_file.read_typed_state(source)
        return Contents(source, "parameters", True, parameters, attributes, {})
    return _run(source)


def read_parameters(path: str | os.PathLike[str]) -> tuple[dict[str, TensorArray], Path]:
    """The parameters of a file, and the file: of a run its final ones, or else those of its newest valid checkpoint.

    Raises:
        UsageError: there are none, or the file is damaged.
    """
    contents = read_contents(path, state=False)
    if contents.parameters is None:
        newest = newest_valid(contents.path.parent / run_file.CHECKPOINT_FOLDER)
        if newest is None:
            raise UsageError(f"{path}: the run has neither finished nor left a valid checkpoint")
        contents = read_contents(newest, state=False)
    return contents.parameters or {}, contents.path


def _run(source: Path) -> Contents:
    run = RunReader(source)
    parameters = run.parameters()
    if parameters is not None:
        dtypes = run.torch_dtypes()
        typed = {name: TensorArray(array, dtypes[name]) for name, array in parameters.items()}
    else:
        typed = None
    return Contents(run.path, "run", run.sealed, typed, run.config, run.environment, run=run)
