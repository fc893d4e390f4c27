"""From published files to the HDF5 file that ``--dataset`` takes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hpcdml.errors import UsageError
from hpcdml.storage.sample_file import write_samples
from hpcdml.training.data.published.batches import read_batch
from hpcdml.training.data.published.folder import Folder

Bytes = npt.NDArray[np.uint8]
Pair = tuple[Bytes, Bytes]
PICTURE = 3 * 32 * 32


@dataclass(frozen=True)
class _Cifar:
    """One of the two versions of each CIFAR: its files, and what precedes a picture in the binary one.

    Attributes:
        label: in the Python version the name of the labels, in the binary one the place of the label's byte.
        ahead: bytes before a picture in the binary version; 0: the Python version.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    label: str | int
    ahead: int


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY = tuple(f"{name}.bin" for name in _BATCHES)
KNOWN = ("cifar10", "cifar100", "mnist")
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10}
COARSE_CLASSES = 20


def convert(name: str, folder: str, target: str, coarse: bool = False, overwrite: bool = False) -> str:
    """Write the data set of a folder as one HDF5 file: bytes (N, channels, height, width) in x and x_test, with labels.

    Args:
        name: one of ``KNOWN``.
        folder: has the published files, unpacked or not.
        target: the file to write.
        coarse: of cifar100, the 20 classes instead of the 100.
        overwrite: replace the target.

    Returns:
        One line that tells what was read, and whether it is what was published.

    Raises:
        UsageError: a file is missing, is no such file, or the target exists.
        MachineError: the target could not be written.
    """
    place = Folder(folder)
    train, test = _mnist(place) if name == "mnist" else _cifar(place, _versions(name, coarse), name)
    classes = COARSE_CLASSES if coarse else CLASSES[name]
    for part, (_, labels) in (("training", train), ("test", test)):
        if int(labels.max()) >= classes:
            row = int(np.argmax(labels >= classes))
            raise UsageError(
                f"{folder}: picture {row} of the {part} part has the label {labels[row]}; {name} has {classes} classes"
            )
    arrays = {"x": train[0], "y": train[1], "x_test": test[0], "y_test": test[1]}
    write_samples(target, arrays, {"source": name, "classes": classes}, overwrite)
    return f"{target}: {len(train[1])} training and {len(test[1])} test pictures of {name}; {_verdict(place)}"


def _versions(name: str, coarse: bool) -> tuple[_Cifar, _Cifar]:
    if name == "cifar10":
        return (
            _Cifar("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, "test_batch", "labels", 0),
            _Cifar("cifar-10-binary.tar.gz", "cifar-10-batches-bin", _BINARY, "test_batch.bin", 0, 1),
        )
    label = "coarse_labels" if coarse else "fine_labels"
    return (
        _Cifar("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", label, 0),
        _Cifar("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", 0 if coarse else 1, 2),
    )


def _cifar(place: Folder, versions: tuple[_Cifar, ...], name: str) -> tuple[Pair, Pair]:
    for version in versions:
        if place.find(version.test, [version.folder]) or place.unpack(version.archive, [*version.train, version.test]):
            parts = [_cifar_part(place, version, file) for file in (*version.train, version.test)]
            pictures, labels = (np.concatenate(column) for column in zip(*parts[:-1], strict=True))
            return (pictures, labels), parts[-1]
    names = " or ".join(f"{v.test}, {v.folder}/{v.test}, {v.archive}" for v in versions)
    raise UsageError(f"{place.path}: has none of the files of {name}: {names}; download and unpack one of the archives")


def _cifar_part(place: Folder, version: _Cifar, file: str) -> Pair:
    where, data = place.read(file, [version.folder])
    if isinstance(version.label, str):
        pictures, labels = read_batch(where, data, version.label)
    else:
        size = version.ahead + PICTURE
        if not data or len(data) % size:
            raise UsageError(
                f"{where}: has {len(data)} bytes; must be a multiple of {size}, one picture after the other"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        pictures, labels = records[:, version.ahead :], records[:, version.label]
    return pictures.reshape(-1, 3, 32, 32), labels


def _mnist(place: Folder) -> tuple[Pair, Pair]:
    train, test = ((_idx(place, part, "images", 3), _idx(place, part, "labels", 1)) for part in ("train", "t10k"))
    for pictures, labels in (train, test):
        if len(pictures) != len(labels):
            raise UsageError(f"{place.path}: has {len(pictures)} pictures and {len(labels)} labels; must be as many")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise UsageError(
            f"{place.path}: training pictures have shape {train[0].shape[1:]} and test pictures {test[0].shape[1:]}; "
            "must be equal"
        )
    return (train[0][:, None], train[1]), (test[0][:, None], test[1])


def _idx(place: Folder, part: str, what: str, dimensions: int) -> Bytes:
    below = ("raw", "MNIST/raw")
    names = [f"{part}-{what}{dot}idx{dimensions}-ubyte{end}" for dot in "-." for end in (".gz", "")]
    name = next((n for n in names if place.find(n, below)), None)
    if name is None:
        raise UsageError(f"{place.path}: has none of {', '.join(names)}; one of them is needed")
    where, data = place.read(name, below)
    head = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < head:
        raise UsageError(
            f"{where}: is not an idx{dimensions} file of bytes: it begins with {data[:4].hex() or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    values = np.frombuffer(data, np.uint8, offset=head)
    if 0 in shape or values.size != np.prod(shape, dtype=object):
        raise UsageError(
            f"{where}: has {values.size} bytes of values; must be those of the shape {shape} that it tells"
        )
    return values.reshape(shape)


def _verdict(place: Folder) -> str:
    if place.other:
        return f"MD5 not as published: {', '.join(place.other)}"
    return f"MD5 as published: {', '.join(place.same)}" if place.same else "no published MD5 to compare with"
