"""Distributed PyTorch training over MPI in which workers never wait for the network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcdml.session import Session, device

__version__ = "0.1.0"
__all__ = ["Session", "device"]


def __getattr__(name: str) -> object:
    """The Python interface, imported when it is first asked for: PyTorch takes seconds to load."""
    if name in __all__:
        return getattr(importlib.import_module("hpcdml.session"), name)
    if name in ("session", "lightning"):
        return importlib.import_module(f"hpcdml.{name}")
    raise AttributeError(f"module 'hpcdml' has no attribute {name!r}")
