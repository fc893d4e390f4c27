"""Checkpoints: the whole state of a run at one version of the global parameters, in one sealed HDF5 file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdml.errors import UsageError
from hpcdml.storage.hdf5 import escape, get_attributes, read_group, reading, set_attribute, unescape
from hpcdml.storage.seal import read_seal, verify
from hpcdml.storage.tree import DTYPE, TensorArray, read_tree, write_tree
from hpcdml.storage.whole_file import Place, write_whole

FORMAT = "hpcdml-checkpoint"
FORMAT_VERSION = 1

_DESCRIPTION = (
    "State of a training run by hpcdml at one version of its global parameters, which are in /parameters by their "
    "names in the model's state_dict. /server and /workers/RANK hold the rest of the state; docs/files.md tells more."
)


@dataclass
class Checkpoint:
    """The state of a run.

    Attributes:
        version: number of the version of the global parameters, which is also the file's.
        parameters: parameters and buffers of that version by their names in the ``state_dict``, in its order.
        server: outer optimizer, counters, policy, residuals: a tree (see ``tree.write_tree``).
        workers: by rank, the worker's optimizer, random-number states, place in its data, ...: a tree each.
        config: every option with its value.
        environment: versions, host, command line, ...
        ordinal: number among the run's checkpoints, from 1; set when it is written.
        created: ISO time; set when it is written.
    """

    version: int
    parameters: Mapping[str, TensorArray | np.ndarray]
    server: Any = field(default_factory=dict)
    workers: dict[int, Any] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    ordinal: int = 0
    created: str = ""


def write_file(path: Path, checkpoint: Checkpoint, ordinal: int) -> None:
    """Write a checkpoint to a file that appears under its name only when it is whole and on the disk.

    Arrays are written from the memory that they lie in and must not change meanwhile.

    Raises:
        TypeError: something in it cannot be stored; the message names it.
        UsageError: the folder cannot be made or written.
        MachineError: the disk is full or fails.
    """
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    root = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": checkpoint.version,
        "ordinal": ordinal,
        "created": created,
        "description": _DESCRIPTION,
    }

    def build(file: h5py.File, place: Place) -> None:
        _attributes(file, root)
        _attributes(file.create_group("config"), checkpoint.config)
        _attributes(file.create_group("environment"), checkpoint.environment)
        write_parameters(file, checkpoint.parameters, place)
        write_tree(file.create_group("server"), checkpoint.server, place)
        workers = file.create_group("workers")
        for rank, tree in checkpoint.workers.items():
            write_tree(workers.create_group(str(rank)), tree, place)

    write_whole(path, build, {"format": FORMAT, "version": checkpoint.version, "ordinal": ordinal})


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    parameters: bool = True,
    server: bool = True,
    workers: Collection[int] | None = None,
    check: bool = True,
) -> Checkpoint:
    """Read a checkpoint, or parts of it.

    Args:
        path: the file.
        parameters, server: whether to read these; they are empty otherwise.
        workers: the ranks whose states are to be read, where they are there; None: all.
        check: verify all bytes first. Without, only for a file that was verified just now: a damaged one may then
            crash the interpreter.

    Raises:
        UsageError: there is no such file, it is damaged in any bit, or it is no checkpoint.
    """
    source = Path(path)
    with reading(source):
        check_sealed(source, whole=check)
        with h5py.File(source, "r", locking=False) as file:
            root = check_format(source, file, FORMAT, FORMAT_VERSION)
            ranks = [int(rank) for rank in file["workers"]]
            return Checkpoint(
                version=int(root["version"]),
                parameters=read_parameters(file) if parameters else {},
                server=read_tree(file["server"]) if server else {},
                workers={
                    rank: read_tree(file["workers"][str(rank)])
                    for rank in sorted(ranks)
                    if workers is None or rank in workers
                },
                config=get_attributes(file["config"]),
                environment={name: str(value) for name, value in get_attributes(file["environment"]).items()},
                ordinal=int(root["ordinal"]),
                created=str(root["created"]),
            )


def write_parameters(file: h5py.File, state: Mapping[str, TensorArray | np.ndarray], place: Place) -> None:
    """The group ``parameters`` of a checkpoint or a file of parameters."""
    group = file.create_group("parameters", track_order=True)
    for name, entry in state.items():
        values = entry.values if isinstance(entry, TensorArray) else np.asarray(entry)
        dataset = place(group, escape(name), values)
        set_attribute(dataset, DTYPE, entry.torch_dtype if isinstance(entry, TensorArray) else values.dtype.name)


def read_parameters(file: h5py.File) -> dict[str, TensorArray]:
    """The inverse of ``write_parameters``; without the names of types, as in files of others, those of numpy."""
    group, dtypes = file["parameters"], {}
    for name in group:
        dtypes[unescape(name)] = get_attributes(group[name]).get(DTYPE)
    return {name: TensorArray(a, str(dtypes[name] or a.dtype.name)) for name, a in read_group(group).items()}


def check_sealed(source: Path, whole: bool = True) -> dict[str, Any]:
    """What the seal says about a file that has one, after all bytes were verified, or (not ``whole``) the seal only.

    Raises:
        UsageError: there is no such file, it has no seal, or it is damaged.
    """
    if not source.is_file():
        raise UsageError(f"{source}: there is no such file")
    seal = verify(source) if whole else read_seal(source)
    if seal is None:
        raise UsageError(f"{source}: has no seal: it was cut short, changed by another program, or is none of ours")
    return seal.about


def check_format(source: Path, file: h5py.File, name: str, version: int) -> dict[str, Any]:
    """The attributes of a file of the right format.

    Raises:
        UsageError: it is of another.
    """
    root = get_attributes(file)
    if root.get("format") != name:
        raise UsageError(f"{source}: is not a file of the format {name}, but of {root.get('format')}")
    if root.get("format_version") != version:
        raise UsageError(f"{source}: has format version {root.get('format_version')}; this hpcdml reads {version}")
    return root


def _attributes(group: h5py.Group, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        set_attribute(group, name, value)
