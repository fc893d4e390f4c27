"""The folder of a run's checkpoints: writing the next one, finding the newest valid one, keeping only some."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py

from hpcdml.errors import MachineError, UsageError
from hpcdml.storage.checkpoint import FORMAT, FORMAT_VERSION, Checkpoint, check_format, check_sealed, write_file
from hpcdml.storage.faults import point
from hpcdml.storage.hdf5 import reading
from hpcdml.storage.seal import read_seal
from hpcdml.storage.whole_file import temporary_name

_RESERVE = 64 << 20
_NAME = re.compile(r"step-(\d{8,})\.h5")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.h5\.tmp")


def checkpoint_path(folder: str | os.PathLike[str], version: int) -> Path:
    """Where the checkpoint of a version of the global parameters lies."""
    return Path(folder) / f"step-{version:08d}.h5"


def checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """All files that are named as checkpoints are, as (version, path), oldest first; none where there is no folder.

    Raises:
        UsageError: the folder cannot be read.
    """
    where = Path(folder)
    try:
        names = os.listdir(where)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from error
    found = ((_NAME.fullmatch(name), name) for name in names)
    return sorted((int(match.group(1)), where / name) for match, name in found if match)


def newest_valid(folder: str | os.PathLike[str], tell: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None where there is none.

    Args:
        folder: the folder of the checkpoints.
        tell: is given one line about each damaged checkpoint that is passed over.
    """
    for _, path in reversed(checkpoints(folder)):
        try:
            check_checkpoint(path)
            return path
        except UsageError as error:
            if tell is not None:
                tell(f"{error}; passed over")
    return None


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Verify every byte of a checkpoint.

    Raises:
        UsageError: it is damaged, or not a checkpoint that this hpcdml reads.
    """
    source = Path(path)
    with reading(source):
        check_sealed(source)
        with h5py.File(source, "r", locking=False) as file:
            check_format(source, file, FORMAT, FORMAT_VERSION)


def write_checkpoint(
    folder: str | os.PathLike[str], checkpoint: Checkpoint, *, keep_last: int = 3, keep_every: int | None = None
) -> Path:
    """Write a checkpoint into the folder, which is made where it is missing, and delete those that are not kept.

    May be called from any thread, but from one at a time for a folder. What a killed writer left behind is deleted
    first. Nothing older is deleted before the new checkpoint is on the disk under its name.

    Args:
        folder: the folder of the checkpoints.
        checkpoint: its arrays must not change until this returns.
        keep_last: how many of the newest ones are kept; at least 1.
        keep_every: keep every so many-th for ever (by ``ordinal``); None: none.

    Returns:
        The file.

    Raises:
        TypeError: something in it cannot be stored; the message names it.
        UsageError: the folder cannot be made or written.
        MachineError: the disk is full or fails. All older checkpoints are as they were, and nothing else is left.
    """
    path = checkpoint_path(folder, checkpoint.version)
    _clean(path)
    write_file(path, checkpoint, 1 + max((_ordinal(p) or 0 for _, p in checkpoints(folder) if p != path), default=0))
    _prune(path, max(1, keep_last), keep_every)
    return path


def need_room(folder: str | os.PathLike[str], size: int) -> None:
    """Make sure that so many bytes more leave the file system something for the run's record, which must not fail.

    Raises:
        MachineError: they do not.
    """
    try:
        found = os.statvfs(folder)
    except OSError:
        return  # the writing itself will tell what is wrong with the folder
    free = found.f_bavail * found.f_frsize
    if size + min(_RESERVE, found.f_blocks * found.f_frsize // 20) > free:
        raise MachineError(f"needs {size / 1e6:,.1f} MB, and {folder} has {free / 1e6:,.1f} MB left")


def discard_newer(folder: str | os.PathLike[str], version: int) -> list[Path]:
    """Delete the checkpoints of versions after this one, and return which: a run that goes on from it will make others.

    Raises:
        UsageError: one of them cannot be deleted.
    """
    gone = [path for number, path in checkpoints(folder) if number > version]
    for path in reversed(gone):
        try:
            path.unlink()
        except OSError as error:
            raise UsageError(f"{path}: cannot be deleted: {error.strerror}") from error
    return gone


def _clean(target: Path) -> None:
    """Delete what killed writers left."""
    with contextlib.suppress(OSError):  # the writing itself will tell what is wrong with the folder
        for name in os.listdir(target.parent):
            if _LEFTOVER.fullmatch(name) and name != temporary_name(target).name:
                point("clean")
                (target.parent / name).unlink()


def _prune(newest: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete all but the last ones and every so many-th; a file with a broken seal is left for a person to look at."""
    paths = [path for _, path in checkpoints(newest.parent)]
    for path in paths[: paths.index(newest) + 1][:-keep_last]:
        ordinal = _ordinal(path)
        if ordinal is not None and (keep_every is None or ordinal % keep_every != 0):
            with contextlib.suppress(OSError):  # it is tried again next time
                point("prune")
                path.unlink()


def _ordinal(path: Path) -> int | None:
    try:
        seal = read_seal(path)
        return int(seal.about["ordinal"]) if seal is not None else None
    except (OSError, UsageError, KeyError, TypeError, ValueError):
        return None
