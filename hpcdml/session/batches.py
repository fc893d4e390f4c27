"""Minibatches of a user's own loader: sharded over the workers, counted, none where nobody trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler

from hpcdml.errors import UsageError
from hpcdml.session.places import Places, Resumable


class Taker(Protocol):
    """Who takes the minibatches."""

    @property
    def running(self) -> bool:
        """Whether more minibatches are wanted."""

    def drawn(self, samples: int, seconds: float) -> None:
        """A minibatch of so many samples is about to be trained on; it was waited for so many seconds."""

    def passed(self) -> None:
        """The loop's body has been gone through for the last minibatch."""

    def opened(self, epoch_samples: int | None) -> None:
        """A pass begins; ``epoch_samples`` are those of all workers in one epoch, None: not known."""


class EveryNth(Sampler[Any]):
    """This worker's share of what another sampler gives: every ``workers``-th, as many for each worker.

    Args:
        sampler: gives indices, or lists of them.
    """

    def __init__(self, sampler: Sampler[Any] | Iterable[Any], worker: int, workers: int) -> None:
        self.sampler = sampler
        self.worker = worker
        self.workers = workers

    def __len__(self) -> int:
        return len(self.sampler) // self.workers  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        turn: list[Any] = []
        for entry in self.sampler:
            turn.append(entry)
            if len(turn) == self.workers:
                yield turn[self.worker]
                turn.clear()


class Batches:
    """What ``Session.batches`` returns: iterate it once for every epoch; its length is that of this process's pass.

    Args:
        loader: gives this process's minibatches.
        taker: who takes them.
        epoch_samples: training samples of all workers in one epoch; None: not known.
        places: where the loop is in its data.
    """

    def __init__(self, loader: Iterable[Any], taker: Taker, epoch_samples: int | None, places: Places) -> None:
        self.loader = loader
        self.taker = taker
        self.epoch_samples = epoch_samples
        self.places = places
        self.place = places.of_next_loader()

    def __len__(self) -> int:
        if not isinstance(self.loader, Sized):
            raise TypeError(f"a {type(self.loader).__name__} has no length")
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        taker, place = self.taker, self.place
        self.places.epoch_samples = self.epoch_samples
        taker.opened(self.epoch_samples)
        if not taker.running:
            return
        batches = place.begin(self.loader)
        self.places.ready()
        try:
            while taker.running:
                begin = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                samples = count(batch)
                place.batches += 1
                place.samples += samples
                taker.drawn(samples, time.perf_counter() - begin)
                yield batch
                taker.passed()
        finally:
            place.under_way = False


def shard(loader: Iterable[Any], worker: int, workers: int, seed: int, tell: bool = False) -> Iterable[Any]:
    """The loader of one worker's part of the data; with minibatches of the same size, and as many for every worker.

    A shuffled loader is shuffled anew, alike on all workers, in every pass. Samplers of the user's own stay, and every
    worker takes its share of what they give. An iterable data set, or what is no ``DataLoader``, is left as it is, and
    a note says so.

    Args:
        worker: this worker, counted from 0.
        tell: whether this rank is the one that writes the note.

    Raises:
        UsageError: there is less than one sample for each worker.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        if tell and workers > 1:
            what = "an iterable data set" if isinstance(loader, DataLoader) else f"a {type(loader).__name__}"
            text = f"hpcdml: note: {what} cannot be divided: every worker reads all of it (shard=False: as it should)"
            print(text, file=sys.stderr, flush=True)
        return loader
    length = len(cast(Sized, loader.dataset))
    if length < workers:
        raise UsageError(
            f"Session.batches: {length} samples cannot be shared by {workers} workers; each needs at least one"
        )
    options: dict[str, Any] = {
        name: getattr(loader, name)
        for name in ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    }
    options["prefetch_factor"] = loader.prefetch_factor
    options["persistent_workers"] = loader.persistent_workers
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return DataLoader(
            loader.dataset, batch_sampler=Resumable(EveryNth(loader.batch_sampler, worker, workers)), **options
        )
    shuffled = type(loader.sampler) is RandomSampler and not loader.sampler.replacement
    whole = getattr(loader.sampler, "num_samples", length) == length
    sampler: Sampler[Any]
    if whole and (shuffled or type(loader.sampler) is torch.utils.data.SequentialSampler):
        # Padded: every worker has as many samples, though some may then come twice in a pass.
        sampler = DistributedSampler(
            loader.dataset, num_replicas=workers, rank=worker, shuffle=shuffled, seed=seed, drop_last=False
        )
    else:
        sampler = EveryNth(loader.sampler, worker, workers)
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, sampler=Resumable(sampler), drop_last=loader.drop_last, **options
    )


def count(batch: Any) -> int:
    """Samples in a minibatch: the first dimension of the first tensor in it; 1 where there is none."""
    return _rows(batch) or 1


def _rows(batch: Any) -> int:
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else 0
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return next((rows for entry in batch if (rows := _rows(entry))), len(batch))
    return int(getattr(batch, "num_graphs", 0) or getattr(batch, "batch_size", 0) or 0)
