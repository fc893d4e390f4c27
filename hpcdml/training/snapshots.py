"""Consistent copies of versions of the global parameters, evaluated beside the serving loop.

A version is copied chunk by chunk as its chunks are made, so that no long copy stands between two rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hpcdml.parameters import FlatModel, WireVector
from hpcdml.protocol.rounds import Round
from hpcdml.training.background import Background, Every


@dataclass(frozen=True)
class Version:
    """A version of the global parameters, when it was made (seconds since the start) and its training samples."""

    number: int
    seconds: float
    samples: int


class Snapshots:
    """Copies a version whenever an evaluation is due and the last copy is no longer in use.

    Args:
        flat: a model of the server's own, into which the copies are put.
        evaluate: evaluates the model for a version and returns its accuracy.
        eval_seconds: least time between evaluations.
    """

    def __init__(
        self,
        flat: FlatModel,
        evaluate: Callable[[Version], float],
        eval_seconds: float,
    ) -> None:
        self.flat = flat
        self.accuracy = math.nan
        self.best = -math.inf
        self._copy = WireVector(flat.layout.full())
        flat.rehost(self._copy)
        self._evaluate = evaluate
        self._eval = Every(eval_seconds)
        self._thread = Background("evaluation")
        self._round: Round | None = None

    def consider(self, round_: Round) -> None:
        """A round with a payload is about to be aggregated: decide whether its version is copied."""
        if self._round is None and self._thread.idle and self._eval.due:
            self._round = round_

    def copy(self, round_: Round, chunk: int, x: WireVector) -> None:
        """Chunk ``chunk`` of the version that the round makes is final in ``x``."""
        if round_ is self._round:
            self._copy.chunks[chunk].copy_(x.chunks[chunk])

    def complete(self, round_: Round, version: Version, integers: np.ndarray) -> None:
        """All chunks of the round are final; ``integers`` are the integer buffers (int64)."""
        if round_ is not self._round:
            return
        self._round = None
        self._eval.reset()
        values = integers.copy()
        self._thread.give(lambda: self._use(version, values))

    def check(self) -> None:
        """Raise what an evaluation raised.

        Raises:
            HpcdmlError: it failed.
        """
        self._thread.check()

    def final(self, version: Version, x: WireVector, integers: np.ndarray) -> None:
        """Wait for what is under way and evaluate the last version in this thread.

        Raises:
            HpcdmlError: an evaluation failed.
        """
        self._thread.finish()
        for chunk, piece in enumerate(x.chunks):
            self._copy.chunks[chunk].copy_(piece)
        self._use(version, integers)

    def _use(self, version: Version, integers: np.ndarray) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            self.flat.load(self._copy)
            self.flat.set_integers(integers)
        self.accuracy = self._evaluate(version)
        self.best = max(self.best, self.accuracy)
