"""HDF5 files: the record of a run, checkpoints, parameters, data sets. h5py is imported only here."""

from __future__ import annotations

from hpcdml.storage.checkpoint import Checkpoint, read_checkpoint
from hpcdml.storage.checkpoint_folder import checkpoint_path, checkpoints, discard_newer, newest_valid, write_checkpoint
from hpcdml.storage.hdf5 import versions
from hpcdml.storage.parameters_file import read_state, write_state
from hpcdml.storage.run_file import RunWriter
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import TABLES, Column, Table, table
from hpcdml.storage.tree import TensorArray, read_tree, write_tree

__all__ = [
    "TABLES",
    "Checkpoint",
    "Column",
    "RunReader",
    "RunWriter",
    "Table",
    "TensorArray",
    "checkpoint_path",
    "checkpoints",
    "discard_newer",
    "newest_valid",
    "read_checkpoint",
    "read_state",
    "read_tree",
    "table",
    "versions",
    "write_checkpoint",
    "write_state",
    "write_tree",
]
