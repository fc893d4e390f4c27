"""A model's parameters and buffers as flat vectors, by views, and the layout in which they travel."""

from hpcdml.parameters.flat import FlatModel
from hpcdml.parameters.layout import Chunk, Layout, Segment
from hpcdml.parameters.wire import WireVector

__all__ = ["Chunk", "FlatModel", "Layout", "Segment", "WireVector"]
