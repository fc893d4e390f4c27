"""Consistent states of a whole run, gathered while it goes on and written by a thread: no worker waits for one.

The server marks a version right after it was made, copies its own state chunk by chunk as the version's chunks are
closed, and tells the workers by a message to save theirs (Chandy and Lamport, ACM TOCS 3(1), 1985). What is under way
between them at the mark, the workers save.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hpcdml.config import RunOptions
from hpcdml.errors import HpcdmlError, MachineError
from hpcdml.mpi.events import StateArrived
from hpcdml.mpi.server_channel import ServerChannel
from hpcdml.mpi.tags import FINAL_STATE
from hpcdml.parameters import FlatModel, Layout, WireVector
from hpcdml.protocol.messages import Push
from hpcdml.protocol.rounds import Round
from hpcdml.protocol.server import Server
from hpcdml.storage.checkpoint import Checkpoint
from hpcdml.storage.checkpoint_folder import need_room, write_checkpoint
from hpcdml.storage.image import unpack
from hpcdml.storage.run_file import CHECKPOINT_FOLDER, RunWriter
from hpcdml.storage.seal import write_fully
from hpcdml.training.aggregator import Aggregator
from hpcdml.training.background import Background, Every
from hpcdml.training.state import to_array, typed_state


@dataclass
class _Spool:
    """A worker's state as it comes in: in a file without a name, so that rank 0's memory holds none of them.

    Attributes:
        file: None where it could not be made, or the disk is full; ``error`` says why.
        total: its size, when that is known.
        records: blocks of step records that its worker had sent before.
    """

    folder: Path
    file: BinaryIO | None = None
    error: str = ""
    received: int = 0
    total: int | None = None
    records: int = 0

    @classmethod
    def open(cls, folder: Path) -> _Spool:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder, tempfile.TemporaryFile(dir=folder))
        except OSError as error:
            return cls(folder, error=f"{folder}: {error.strerror}")

    def take(self, event: StateArrived) -> None:
        if self.file is not None:
            try:
                if not self.received:
                    need_room(self.folder, event.total)
                write_fully(self.file.fileno(), event.data.data, event.offset)
            except (OSError, MachineError) as error:
                self.file.close()
                self.file, self.error = None, str(error)
        self.received += len(event.data)
        self.total, self.records = event.total, event.records

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def tree(self) -> Any:
        if self.file is None:
            raise MachineError(self.error)
        return unpack(np.memmap(self.file, np.uint8, "r", shape=(self.received,)).view(np.ndarray))


@dataclass
class _Cut:
    """One consistent state while it is gathered.

    Attributes:
        round: the round that makes its version; None: the run has ended.
        whole: all chunks of the server's own state are copied.
    """

    version: int
    round: Round | None
    machine: dict[str, Any]
    seconds: float
    integers: np.ndarray
    spools: dict[int, _Spool] = field(default_factory=dict)
    whole: bool = False


class _Copies:
    """Copies of the global parameters and of what belongs to them."""

    def __init__(self, aggregator: Aggregator) -> None:
        self._pairs: list[tuple[WireVector, WireVector]] = []
        self.x = self._of(aggregator.x)
        self.outer = {name: self._of(vector) for name, vector in aggregator.outer.state.items()}
        narrowed = aggregator.narrowed
        self.narrowed = {} if narrowed is None else {n: self._of(getattr(narrowed, n)) for n in ("out", "residual")}

    @property
    def nbytes(self) -> int:
        return sum(target.layout.nbytes for target, _ in self._pairs)

    def copy(self, chunk: int) -> None:
        for target, source in self._pairs:
            target.chunks[chunk].copy_(source.chunks[chunk])

    def _of(self, source: WireVector) -> WireVector:
        self._pairs.append((WireVector(source.layout), source))
        return self._pairs[-1][0]


class Checkpoints:
    """Decides when a checkpoint is due, gathers it and has it written.

    Args:
        machine, channel, aggregator, writer: the server's parts.
        flat: a model of the server's own, for the names of its parameters.
        folder: the run's folder.
        options: how often, and how many are kept.
        about: configuration and environment, for the file.
        records: by worker, the blocks of step records that have come.
        bounds: what ends the run, for the file.

    Attributes:
        wanted: whether one is due whatever the options say.
        saved: the newest that this job has written.
    """

    def __init__(
        self,
        machine: Server,
        channel: ServerChannel,
        aggregator: Aggregator,
        writer: RunWriter,
        flat: FlatModel,
        folder: Path,
        options: RunOptions,
        about: tuple[Mapping[str, object], Mapping[str, str]],
        records: Mapping[int, int],
        bounds: Sequence[float | None],
    ) -> None:
        self.machine = machine
        self.channel = channel
        self.aggregator = aggregator
        self.writer = writer
        self.flat = flat
        self.folder = folder / CHECKPOINT_FOLDER
        self.options = options
        self.about = about
        self.records = records
        self.bounds = list(bounds)
        self.wanted = False
        self.saved: Path | None = None
        self._every = Every(options.checkpoint_seconds)
        self._last = (machine.version, machine.samples)
        self._copies: _Copies | None = None
        self._cut: _Cut | None = None
        self._final: dict[int, _Spool] = {}
        self._failing = False
        self._stopped = False
        # It mostly waits for the disk, and what is lost at a kill grows with the time that it takes.
        self._thread = Background("checkpoint", niceness=0)

    @property
    def idle(self) -> bool:
        """Whether none is being gathered or written."""
        return self._cut is None and self._thread.idle

    @property
    def due(self) -> bool:
        """Whether the next version is to be one."""
        options, (version, samples) = self.options, self._last
        return (
            self.wanted
            or self._every.due
            or (options.checkpoint_rounds is not None and self.machine.version - version >= options.checkpoint_rounds)
            or (options.checkpoint_samples is not None and self.machine.samples - samples >= options.checkpoint_samples)
        )

    def consider(self, round_: Round, seconds: float, integers: np.ndarray) -> bool:
        """A version was just made, its headers have been sent, and none of its chunks is closed yet.

        Returns:
            Whether it is to be a checkpoint.
        """
        if not (self.idle and self.due and self.machine.may_mark):
            return False
        self.wanted = False
        self._every.reset()
        self._last = (self.machine.version, self.machine.samples)
        spools = {worker: _Spool.open(self.folder) for worker in self.machine.live}
        self._cut = _Cut(self.machine.version, round_, self.machine.state(), seconds, integers.copy(), spools)
        if self._copies is None:
            self._copies = _Copies(self.aggregator)
        for worker in self.machine.live:
            self.channel.send_word(worker, self.machine.mark(worker))
        return True

    def copy(self, round_: Round, chunk: int) -> None:
        """Chunk ``chunk`` of the version that the round makes is final."""
        if self._cut is not None and self._cut.round is round_ and self._copies is not None:
            self._copies.copy(chunk)

    def complete(self, round_: Round) -> None:
        """All chunks of the round are final."""
        if self._cut is not None and self._cut.round is round_:
            self._cut.whole = True

    def arrived(self, event: StateArrived) -> None:
        """A block of a worker's state has come."""
        if event.version == FINAL_STATE:
            if event.worker not in self._final:
                self._final[event.worker] = _Spool.open(self.folder)
            spool = self._final[event.worker]
        elif self._cut is not None and event.version == self._cut.version:
            spool = self._cut.spools[event.worker]
        else:
            return
        spool.take(event)

    def left(self, push: Push) -> None:
        """A worker has sent its last push: if it had not come to a mark by then, it will not."""
        cut = self._cut
        if cut is not None and push.worker in cut.spools and push.marked != cut.version:
            self._give_up(cut)

    def lost(self, worker: int) -> None:
        """A worker is lost or silent: a state that lacks its part is given up, and the next version is to be one."""
        if self._cut is not None and self.awaits(worker):
            self._give_up(self._cut)

    def joined(self, worker: int) -> None:
        """A new process is in the place of a worker, and its blocks are counted anew."""
        if self._cut is not None and worker in self._cut.spools:
            # All blocks that it speaks of had come when the worker was lost.
            self._cut.spools[worker].records = 0
        gone = self._final.pop(worker, None)
        if gone is not None:
            gone.close()

    def _give_up(self, cut: _Cut) -> None:
        self._cut = None
        self.wanted = True
        for spool in cut.spools.values():
            spool.close()

    def work(self, seconds: float) -> None:
        """Hand a checkpoint over to the thread when all of it is there."""
        cut = self._cut
        if (
            cut is not None
            and cut.whole
            and self._thread.idle
            and all(self._whole(*item) for item in cut.spools.items())
        ):
            self._cut = None
            # Where the time of a run that goes on begins again: later than any step that is in it.
            cut.seconds = seconds
            self._thread.give(lambda: self._write(cut, ended=False))

    def ended(self, workers: set[int]) -> bool:
        """Whether the workers, which have ended, have left all of their states behind."""
        return self._cut is None and all(map(self.has_left, workers))

    def awaits(self, worker: int) -> bool:
        """Whether the worker's part of a state that is being gathered has still to come."""
        spool = self._cut.spools.get(worker) if self._cut is not None else None
        return spool is not None and not self._whole(worker, spool)

    def has_left(self, worker: int) -> bool:
        """Whether a worker that has ended has left all of its state behind."""
        spool = self._final.get(worker)
        return spool is not None and self._whole(worker, spool)

    def final(self, seconds: float, integers: np.ndarray, stopped: bool) -> None:
        """Write the state at the end of the run, in this thread; ``stopped``: what ends the run has come about."""
        self._stopped = stopped
        if self._copies is None:
            self._copies = _Copies(self.aggregator)
        for chunk in range(len(self.aggregator.layout.chunks)):
            self._copies.copy(chunk)
        spools = {worker: spool for worker, spool in self._final.items() if self.has_left(worker)}
        self._write(_Cut(self.machine.version, None, self.machine.state(), seconds, integers, spools), ended=True)

    def check(self) -> None:
        """Raise what the thread raised.

        Raises:
            HpcdmlError: the run's file could not be written. (That of a checkpoint may fail.)
        """
        self._thread.check()

    def finish(self) -> None:
        """Wait for what is being written; raises as ``check`` does."""
        self._thread.finish()

    def _whole(self, worker: int, spool: _Spool) -> bool:
        return spool.received == spool.total and self.records[worker] >= spool.records

    def _write(self, cut: _Cut, ended: bool) -> None:
        # The record first: a checkpoint must not know of steps that it lacks.
        self.writer.flush(force=True)
        try:
            trees = {worker: spool.tree() for worker, spool in cut.spools.items()}
            for worker, tree in trees.items():
                if isinstance(tree, str):
                    raise MachineError(f"rank {worker}: {tree}")
            config, environment = self.about
            found = Checkpoint(
                version=cut.version,
                parameters=self._parameters(cut),
                server=self._server(cut, trees, ended),
                workers=trees,
                config=config,
                environment=environment,
            )
            need_room(self.folder, sum(spool.received for spool in cut.spools.values()) + self._copies_bytes())
            path = write_checkpoint(
                self.folder, found, keep_last=self.options.keep_checkpoints, keep_every=self.options.keep_every
            )
            self.writer.event(cut.seconds, 0, "checkpoint", path.name)
            self.saved = path
            self._failing = False
        except (HpcdmlError, OSError) as error:
            self._warn(cut.seconds, cut.version, str(error))
        finally:
            for spool in cut.spools.values():
                spool.close()

    def _copies_bytes(self) -> int:
        return 0 if self._copies is None else self._copies.nbytes

    def _parameters(self, cut: _Cut) -> dict[str, Any]:
        """The version by the names of the ``state_dict``, in the model's types."""
        assert self._copies is not None
        found = typed_state(self.flat.model)
        start = 0
        for name, tensor in self.flat.integer_buffers:
            values = torch.from_numpy(cut.integers[start : start + tensor.numel()]).to(tensor.dtype)
            found[name] = to_array(values.reshape(tensor.shape))
            start += tensor.numel()
        types = {name: getattr(torch, array.torch_dtype) for name, array in found.items()}
        views = self.flat.views(self._copies.x)
        return found | {name: to_array(view.to(types[name])) for name, view in views.items()}

    def _server(self, cut: _Cut, trees: Mapping[int, Any], ended: bool) -> dict[str, Any]:
        assert self._copies is not None
        copies = self._copies
        return {
            "machine": cut.machine,
            "ended": ended,
            "stopped": self._stopped,
            "bounds": self.bounds,
            "seconds": cut.seconds,
            "integers": cut.integers,
            "clocks": {worker: tree["machine"]["clock"] for worker, tree in trees.items()},
            # The parameters above hold these where the model's types do.
            "x": None if _same_types(copies.x.layout) else _segments(copies.x),
            "outer": {name: _segments(vector) for name, vector in copies.outer.items()},
            "narrowed": {name: _segments(vector) for name, vector in copies.narrowed.items()},
        }

    def _warn(self, seconds: float, version: int, reason: str) -> None:
        """Tell of a failure, once until one succeeds again."""
        if self._failing:
            return
        self._failing = True
        text = f"checkpoint {version}: {reason}"
        print(f"hpcdml: warning: {text}; training goes on", file=sys.stderr, flush=True)
        self.writer.event(seconds, 0, "warning", text)


def _segments(vector: WireVector) -> list[Any]:
    return [to_array(segment) for segment in vector.segments]


def _same_types(layout: Layout) -> bool:
    """Whether the server holds all values in the model's own types."""
    real = {"complex64": "float32", "complex128": "float64"}
    names = [s.model_dtype.removeprefix("torch.") for s in layout.segments]
    return all(real.get(n, n) == s.wire_dtype for n, s in zip(names, layout.segments, strict=True))
