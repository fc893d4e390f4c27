"""The files of a published data set: in a folder, in one below it, or in the archive that was downloaded."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpcdml.errors import UsageError

# MD5 as the publishers and torchvision give them. The files of CIFAR's binary version have no published ones, but the
# archive has.
MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
MOST_BYTES = 1 << 30
"""Of one file; the largest of the known ones has 154 MB. What unpacks to more is something else."""


class Folder:
    """Finds the files of a data set and remembers what their checksums said.

    Args:
        path: the folder that the user names.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isdir(path):
            raise UsageError(f"{path}: there is no such folder; name the one that has the downloaded files")
        self.path = Path(path)
        self.same: list[str] = []
        self.other: list[str] = []
        self._members: dict[str, bytes] = {}

    def find(self, name: str, below: Sequence[str] = ()) -> Path | None:
        """A file of that name in the folder or in one of those below it; None if there is none."""
        places = [self.path, *(self.path / folder for folder in below)]
        return next((place / name for place in places if (place / name).is_file()), None)

    def unpack(self, archive: str, names: Sequence[str]) -> bool:
        """Take files from an archive in the folder, into memory; returns whether the archive is there.

        Raises:
            UsageError: it cannot be read, or lacks one of the files.
        """
        path = self.find(archive)
        if path is None:
            return False
        self._note(path)
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    name = os.path.basename(member.name)
                    if member.isfile() and name in names:
                        if member.size > MOST_BYTES:
                            raise UsageError(f"{path}: {name} has {member.size} bytes; this is not the data set")
                        file = tar.extractfile(member)
                        self._members[name] = file.read() if file else b""
        except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
            raise UsageError(f"{path}: cannot be unpacked: {error}; download it again") from error
        for name in names:
            if name not in self._members:
                raise UsageError(f"{path}: has no {name}; download it again")
        return True

    def read(self, name: str, below: Sequence[str] = ()) -> tuple[str, bytes]:
        """The place of a file, for messages, and its contents, unpacked where its name ends in ``.gz``.

        Raises:
            UsageError: it is missing, too large or cannot be read.
        """
        if name in self._members:
            return f"{self.path}: {name}", self._members[name]
        path = self.find(name, below)
        if path is None:
            raise UsageError(f"{self.path}: has no {name}, which is needed")
        self._note(path)
        try:
            with gzip.open(path) if name.endswith(".gz") else open(path, "rb") as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path}: cannot be read: {error}; download it again") from error
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path}: has more than {MOST_BYTES} bytes; this is not the data set")
        return str(path), data

    def _note(self, path: Path) -> None:
        if path.name not in MD5:
            return
        digest = hashlib.md5(usedforsecurity=False)
        with suppress(OSError), open(path, "rb") as file:  # who reads the file next tells of the error
            while block := file.read(1 << 20):
                digest.update(block)
        (self.same if digest.hexdigest() == MD5[path.name] else self.other).append(path.name)
