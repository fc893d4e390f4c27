"""Data sets in the formats in which they were published, to be turned into HDF5 files. Nothing is downloaded."""

from __future__ import annotations

from hpcdml.training.data.published.convert import KNOWN, convert

__all__ = ["KNOWN", "convert"]
