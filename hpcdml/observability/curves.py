"""Curves of a run over its time, in a number of points that does not grow with the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdml.observability.lines import PARTS, WorkerLine, extent

POINTS = 240


@dataclass(frozen=True)
class Curves:
    """What all workers together did in equal pieces of time.

    Attributes:
        seconds: end of each piece, since the start of training.
        samples: samples of all workers up to there.
        loss: mean training loss of the local steps that ended in the piece; nan: none did, or it was not finite.
        rate: samples a second in the piece.
        limit: the same if the workers had been blocked by nothing: samples over the time that they computed or waited
            for data. Where ranks share cores, computing itself is slower beside communication, and the limit too low.
    """

    seconds: np.ndarray
    samples: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    limit: np.ndarray


def curves(lines: list[WorkerLine], points: int = POINTS) -> Curves:
    """The curves of a run; empty ones if there was no step."""
    begin, end = extent(lines)
    steps = max((len(line.rows) for line in lines), default=0)
    # A few steps in each piece, so that the curves show the run and not where its steps happen to end.
    count = min(points, max(steps // 4, min(steps, 20))) if end > begin else 0
    edges = np.linspace(begin, end, count + 1)
    sums = [line.cumulated(edges) for line in lines]
    samples = np.sum([s["samples"] for s in sums], axis=0) if sums else np.zeros(count + 1)
    width = (end - begin) / max(count, 1)
    limit = np.zeros(count)
    for s in sums:
        busy = np.diff(s["compute"]) + np.diff(s["data"])
        limit += np.divide(np.diff(s["samples"]), busy, out=np.zeros(count), where=busy > 0.02 * width)
    limit[limit == 0] = np.nan
    rate = np.diff(samples) / width if count else np.zeros(0)
    return Curves(edges[1:], samples[1:], _losses(lines, edges), rate, limit)


def free_rate(lines: list[WorkerLine]) -> float | None:
    """Samples a second of all workers if nothing had blocked them, over the whole run; None without steps."""
    total = 0.0
    for line in lines:
        busy = float(line.parts["compute"].sum() + line.parts["data"].sum())
        total += float(line.rows["samples"][-1]) / busy if busy > 0 else 0.0
    return total or None


def shares(line: WorkerLine, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Of each piece of time between two of ``edges`` the share that the worker spent on each of ``PARTS``."""
    sums, width = line.cumulated(edges), np.diff(edges)
    return {part: np.clip(np.diff(sums[part]) / width, 0.0, 1.0) for part in PARTS}


def busy_share(begin: np.ndarray, end: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Of each piece of time between two of ``edges`` the share that any of the intervals covers."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order]) if len(end) else end
    # Cut each interval to what the ones before it have left, so that they do not overlap.
    start = np.maximum(begin, np.concatenate([[-np.inf], end[:-1]])) if len(end) else begin
    length = np.maximum(end - start, 0.0)
    times = np.stack([np.minimum(start, end), end], axis=1).ravel()
    sums = np.stack([np.cumsum(length) - length, np.cumsum(length)], axis=1).ravel()
    if not len(times):
        return np.zeros(len(edges) - 1)
    return np.clip(np.diff(np.interp(edges, times, sums)) / np.diff(edges), 0.0, 1.0)


def _losses(lines: list[WorkerLine], edges: np.ndarray) -> np.ndarray:
    pieces = len(edges) - 1
    total, count = np.zeros(pieces), np.zeros(pieces)
    for line in lines if pieces else []:
        piece = np.clip(np.searchsorted(edges, line.end) - 1, 0, pieces - 1)
        # Not np.histogram, whose running sums would carry one nan into all later pieces.
        total += np.bincount(piece, line.rows["loss"], pieces)
        count += np.bincount(piece, minlength=pieces)
    return np.divide(total, count, out=np.full(pieces, np.nan), where=count > 0)
