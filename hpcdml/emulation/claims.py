"""Who uses a cluster: a lock that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from hpcdml.errors import MachineError


class Claim:
    """A lock on a name. Alone while a cluster is built or torn down, with others while it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has the lock, alone or with others."""
        return self._file is not None

    def take(self) -> None:
        """Lock it alone.

        Raises:
            MachineError: another process has it.
        """
        self._lock(fcntl.LOCK_EX)

    def share(self) -> None:
        """Lock it with others; as ``take``, whose lock it may also loosen."""
        self._lock(fcntl.LOCK_SH)

    def release(self) -> None:
        """Give it back; nothing happens where it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def remove(self) -> None:
        """Give it back, and remove its file where nobody else has it."""
        with suppress(MachineError):
            self.take()
            self.path.unlink(missing_ok=True)
        self.release()

    def _lock(self, kind: int) -> None:
        while True:
            if self._file is None:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                self.release()
                raise MachineError(
                    f"the emulated cluster {self.path.stem} is in use by another process; take another --name"
                ) from None
            if os.fstat(self._file).st_nlink:
                return
            self.release()  # it was removed meanwhile; the next process would lock another file
