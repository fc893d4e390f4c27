"""Files and folders that a report is written to: whole or not at all, and a failure told in one line."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcdml.errors import HpcdmlError, MachineError, UsageError

_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


def check_ending(option: str, path: str, endings: Sequence[str]) -> None:
    """Check that a file's name says what it will hold; so a run is never written over by mistake.

    Raises:
        UsageError: it does not.
    """
    if not path.endswith(tuple(endings)):
        raise UsageError(f"{option} {path}: must end with {' or '.join(endings)}")


@contextlib.contextmanager
def replacing(option: str, path: str) -> Iterator[Path]:
    """A place to write a file to; it gets its name, in place of one that has it, when all of it is written.

    Raises:
        UsageError: the folder cannot be written.
        MachineError: the disk is full or fails.
    """
    target = Path(path)
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    with writing(f"{option} {path}"):
        try:
            above = next((folder for folder in target.parents if folder.exists()), target.parent)
            if not above.is_dir():
                raise UsageError(f"{option} {path}: {above} is a file, not a folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise UsageError(f"{option} {path}: is a folder; name a file")
            yield temporary
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn a failure to write into one line that begins with ``what``."""
    try:
        yield
    except OSError as error:
        kind: type[HpcdmlError] = MachineError if error.errno in _MACHINE_ERRORS else UsageError
        raise kind(f"{what}: cannot be written: {(error.strerror or str(error)).lower()}") from error
