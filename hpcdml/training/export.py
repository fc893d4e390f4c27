"""Parameters in other programs' formats and back: ``.safetensors``, torch's ``.pt``, and the project's own ``.h5``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hpcdml.errors import UsageError
from hpcdml.storage.contents import read_parameters
from hpcdml.storage.hdf5 import write_failure
from hpcdml.storage.parameters_file import write_state
from hpcdml.storage.seal import sync
from hpcdml.training.state import to_array, to_tensor

FORMATS = (".safetensors", ".pt", ".h5")


def export(source: str | os.PathLike[str], target: str | os.PathLike[str], overwrite: bool = False) -> tuple[Path, int]:
    """Write the parameters of one file to another; what the files are is told by the ends of their names.

    Args:
        source: a checkpoint, a run (its folder or file), a file of parameters, or a ``.safetensors`` or ``.pt`` file.
        target: ends in ``.safetensors``, ``.pt`` or ``.h5``; it appears under its name only when it is whole.
        overwrite: replace a file of that name.

    Returns:
        The file that was read, and how many parameters and buffers there are.

    Raises:
        UsageError: a file is missing, damaged or of another kind, or the library for it is not installed.
        MachineError: the disk is full or fails.
    """
    read, write = Path(source), Path(target)
    if write.suffix not in FORMATS:
        raise UsageError(f"{write}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if write.exists() and not overwrite:
        raise UsageError(f"{write}: is there already; name another file or add --overwrite")
    tensors, found = _read(read)
    if write.suffix == ".safetensors":
        save = _safetensors("save_file")
        _write(write, lambda path: save(tensors, path, metadata={"format": "pt"}))
    elif write.suffix == ".pt":
        _write(write, lambda path: _write_pt(tensors, path))
    else:
        write_state(write, {name: to_array(tensor, name) for name, tensor in tensors.items()}, {"source": read.name})
    return found, len(tensors)


def _read(source: Path) -> tuple[dict[str, torch.Tensor], Path]:
    if source.suffix in (".safetensors", ".pt"):
        if not source.is_file():
            raise UsageError(f"{source}: there is no such file")
        load = _safetensors("load_file") if source.suffix == ".safetensors" else _read_pt
        try:
            state = load(source)
        except Exception as error:  # both libraries raise errors of many kinds on a damaged file
            raise UsageError(f"{source}: cannot be read as {source.suffix}: {_one_line(error)}") from error
        return _checked(source, state), source
    parameters, found = read_parameters(source)
    return {name: to_tensor(array).contiguous() for name, array in parameters.items()}, found


def _checked(source: Path, state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise UsageError(f"{source}: must hold a state_dict; it holds a {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{source}: must hold tensors by name only; {name!r} is a {type(tensor).__name__}")
    return dict(state)


# The only place where PyTorch's own format, which pickles, is written or read: for other programs, plain tensors only,
# and nothing that the file names is ever called when it is read. hpcdml keeps nothing in this format.


def _write_pt(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


def _read_pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(function: str) -> Callable[..., Any]:
    try:
        from safetensors import torch as library
    except ImportError:
        raise UsageError(
            "a .safetensors file needs the package safetensors, which is not installed: pip install 'hpcdml[export]'"
        ) from None
    found: Callable[..., Any] = getattr(library, function)
    return found


def _write(target: Path, save: Callable[[Path], None]) -> None:
    """Have a library write a file that gets its name only when it is on the disk."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
            raise write_failure(target, error) from error
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0] or type(error).__name__
