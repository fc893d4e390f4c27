"""A vector in the layout that travels, with typed views for arithmetic and byte views for MPI."""

from __future__ import annotations

import numpy as np
import torch

from hpcdml.parameters.layout import Layout

TORCH_DTYPE = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class WireVector:
    """Contiguous memory of ``layout.nbytes`` bytes.

    Args:
        layout: segments and chunks.
        pinned: page-locked host memory, for copies to and from a GPU.
        device: where the memory is, by default that of the host; only a CUDA-aware MPI can be given another.
    """

    def __init__(self, layout: Layout, pinned: bool = False, device: torch.device | None = None) -> None:
        self.layout = layout
        self.storage = torch.zeros(max(layout.nbytes, 1), dtype=torch.uint8, pin_memory=pinned, device=device)
        self.segments = [self._typed(s.start, s.stop, s.wire_dtype) for s in layout.segments]
        self._chunks: list[torch.Tensor] | None = None

    @property
    def chunks(self) -> list[torch.Tensor]:
        """Typed view of every chunk, made at the first use."""
        if self._chunks is None:
            types = [s.wire_dtype for s in self.layout.segments]
            self._chunks = [self._typed(c.start, c.stop, types[c.segment]) for c in self.layout.chunks]
        return self._chunks

    def chunk_bytes(self, index: int) -> np.ndarray:
        """The uint8 view of a chunk in host memory."""
        chunk = self.layout.chunks[index]
        return self.storage[chunk.start : chunk.stop].numpy()

    def buffer(self, index: int) -> np.ndarray | torch.Tensor:
        """The uint8 view of a chunk that MPI sends or receives; a tensor where the memory is not the host's."""
        chunk = self.layout.chunks[index]
        piece = self.storage[chunk.start : chunk.stop]
        return piece if piece.is_cuda else piece.numpy()

    def _typed(self, start: int, stop: int, wire_dtype: str) -> torch.Tensor:
        return self.storage[start:stop].view(TORCH_DTYPE[wire_dtype])
