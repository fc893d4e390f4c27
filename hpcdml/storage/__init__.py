"""HDF5 files: the record of a run, checkpoints of the global parameters, data sets. h5py is imported only here."""

from __future__ import annotations

from hpcdml.storage.hdf5 import versions
from hpcdml.storage.parameters_file import read_state, write_state
from hpcdml.storage.run_file import RunWriter
from hpcdml.storage.run_reader import RunReader
from hpcdml.storage.tables import TABLES, Column, Table, table

__all__ = ["TABLES", "Column", "RunReader", "RunWriter", "Table", "read_state", "table", "versions", "write_state"]
