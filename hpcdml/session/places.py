"""Where a user's loop is in its data, so that it can go on there in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, Sampler


class Resumable(Sampler[Any]):
    """What another sampler gives, the next pass from a place on.

    Attributes:
        inner: gives indices, or lists of them.
        skip: entries that the next pass leaves out.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.skip = 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        return islice(iter(self.inner), skip, None)


@dataclass
class Place:
    """Where one loader is.

    Attributes:
        passes: passes that were begun.
        under_way: whether the last of them has not ended.
        batches, samples: what the last of them has given.
        share: of a place that is estimated, instead of these two, how much of the pass is over, from 0 to 1.
        goes_on: the next pass is the last one, from the place on.
    """

    passes: int = 0
    under_way: bool = False
    batches: int = 0
    samples: int = 0
    share: float | None = None
    goes_on: bool = False

    def begin(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Begin a pass, or go on with one; returns the minibatches that are left of it.

        Samples that a loader leaves out by itself cost nothing; of others the first minibatches are thrown away.
        """
        if not self.goes_on:
            self.passes, self.batches, self.samples = self.passes + 1, 0, 0
        by_sample, by_batch = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
        for each in (by_sample, getattr(by_sample, "inner", None)):
            if isinstance(each, DistributedSampler):
                each.set_epoch(self.passes - 1)
        self.under_way = True
        if not self.goes_on:
            return iter(loader)
        self.goes_on = False
        if isinstance(by_batch, Resumable):
            self._estimate(by_batch, 1)
            by_batch.skip = self.batches
        elif isinstance(by_sample, Resumable) and isinstance(loader, DataLoader):
            self._estimate(by_sample, loader.batch_size or 1)
            by_sample.skip = self.samples
        else:
            self._estimate(loader, 1)
            return islice(iter(loader), self.batches, None)
        return iter(loader)

    def _estimate(self, source: object, batch: int) -> None:
        # Only here is a length needed, which not every sampler has.
        if self.share is not None:
            entries = round(self.share * len(source)) if isinstance(source, Sized) else 0
            self.batches, self.samples, self.share = entries // batch, entries, None


@dataclass
class Places:
    """Where the loop is.

    Attributes:
        epoch: the epoch of ``Session.epochs``, from 0.
        loaders: by the order in which the loop first asked for their minibatches.
        epoch_samples: training samples of all workers in one epoch; None: not known.
        on_ready: is called once, right before the first minibatch.
    """

    epoch: int = 0
    loaders: list[Place] = field(default_factory=list)
    epoch_samples: int | None = None
    on_ready: Callable[[], None] | None = None
    _given: int = 0

    def ready(self) -> None:
        """The loop is at its place, right before the first minibatch of a pass."""
        call, self.on_ready = self.on_ready, None
        if call is not None:
            call()

    def of_next_loader(self) -> Place:
        """The place of a loader that the loop asks for the first time."""
        if self._given == len(self.loaders):
            self.loaders.append(Place())
        self._given += 1
        return self.loaders[self._given - 1]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        loaders = [[p.passes, p.under_way, p.batches, p.samples] for p in self.loaders]
        return {"epoch": self.epoch, "epoch_samples": self.epoch_samples, "loaders": loaders}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` says."""
        self.epoch, self.epoch_samples = int(state["epoch"]), state["epoch_samples"]
        self.loaders = [
            Place(passes, under_way, batches, samples, goes_on=under_way)
            for passes, under_way, batches, samples in state["loaders"]
        ]

    def estimate(self, samples: int) -> None:
        """Go on where all workers together have trained on so many samples, if it is known how many an epoch has."""
        if self.epoch_samples:
            self.epoch, rest = divmod(samples, self.epoch_samples)
            self.loaders = [Place(self.epoch + 1, True, share=rest / self.epoch_samples, goes_on=True)]
