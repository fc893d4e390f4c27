"""A model's parameters and buffers as flat vectors, by views, and the layout in which they travel."""

from hpcdml.parameters.flat import FlatModel
from hpcdml.parameters.layout import Chunk, Layout, Segment
from hpcdml.parameters.narrow import Narrowed
from hpcdml.parameters.wire import TORCH_DTYPE, WireVector

__all__ = ["TORCH_DTYPE", "Chunk", "FlatModel", "Layout", "Narrowed", "Segment", "WireVector"]
