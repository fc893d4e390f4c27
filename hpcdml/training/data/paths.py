"""The files behind ``--dataset``: one, several with commas between them, a pattern, or all of a folder."""

from __future__ import annotations

import glob
import os

from hpcdml.errors import UsageError

ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")


def names_files(value: str) -> bool:
    """Whether the value means files at all, rather than a bundled data set or a function."""
    parts = [value, *value.split(",")]
    return any(os.path.exists(p) or p.endswith(ENDINGS) or os.sep in p or glob.has_magic(p) for p in parts if p)


def find_files(value: str) -> list[str]:
    """The files in the order of the set: lists as they are given, patterns and folders by name. None need exist.

    A folder stands for its files with one of ``ENDINGS``, not for those of folders in it.

    Raises:
        UsageError: a pattern or a folder has no file, or one file comes twice.
    """
    if os.path.isfile(value):
        return [value]
    found = [path for part in value.split(",") for path in _expand(part, f"--dataset {value}")]
    seen: dict[str, str] = {}
    for path in found:
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError(f"--dataset {value}: {path} is there twice; its samples would count double")
        seen[real] = path
    return found


def _expand(part: str, option: str) -> list[str]:
    if not part:
        raise UsageError(f"{option}: has nothing between two commas, or at an end; must be files with commas between")
    if os.path.isdir(part):
        found = sorted(os.path.join(part, name) for name in os.listdir(part) if name.endswith(ENDINGS))
        if not found:
            raise UsageError(f"{option}: the folder {part} has no file that ends in {', '.join(ENDINGS)}")
        return found
    if glob.has_magic(part) and not os.path.exists(part):
        found = sorted(path for path in glob.glob(part) if not os.path.isdir(path))
        if not found:
            raise UsageError(f"{option}: no file matches {part}; in quotes, or the shell expands it")
        return found
    return [part]
