"""The order in which the server works through the chunks of its rounds, while they are still coming in.

A chunk of a round is aggregated as soon as every member has delivered it, and the new global values of that chunk leave
at once: the round's transfers in both directions overlap. The sum is formed in rank order, whatever the order of
arrival, so it is the same bit for bit. Rounds pass each chunk in the order in which they were opened, so no message
mixes versions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hpcdml.protocol.rounds import Round

# Named tuples, as they are made for every chunk and are the quickest to make.


class Add(NamedTuple):
    """Add chunk ``chunk`` of the pushes of ``workers``, in this order, to the round's sum.

    ``first``: the sum begins with them. ``alone``: the round can have no other term; the chunk stays where it is until
    the ``Close``.
    """

    round: Round
    workers: tuple[int, ...]
    chunk: int
    first: bool
    alone: bool


class Discard(NamedTuple):
    """Throw the next chunk of ``worker``'s push away: the push was refused."""

    worker: int


class Close(NamedTuple):
    """Apply the sum of chunk ``chunk`` over ``contributors``, if there are any, and send it to the recipients."""

    round: Round
    chunk: int
    contributors: tuple[int, ...]
    alone: bool


class Done(NamedTuple):
    """All chunks of the round are closed."""

    round: Round


Operation = Add | Discard | Close | Done


@dataclass(eq=False)
class _Track:
    """Progress of one round.

    ``got`` counts the chunks that have come per member, ``cursor`` those added, ``closed`` those closed.

    ``gone`` holds the members lost meanwhile, which give the chunks that were added before and no more.
    """

    round: Round
    alone: bool
    got: dict[int, int] = field(default_factory=dict)
    cursor: dict[int, int] = field(default_factory=dict)
    gone: dict[int, int] = field(default_factory=dict)
    closed: int = 0

    def contributors(self, chunk: int) -> tuple[int, ...]:
        everybody = self.round.contributors
        if not self.gone:
            return everybody
        return tuple(w for w in everybody if w not in self.gone or chunk < self.gone[w])


@dataclass(eq=False)
class _Refused:
    """A refused push, which no round waits for; ``got`` chunks have come, ``left`` are still to be thrown away."""

    worker: int
    got: dict[int, int]
    left: int


class ChunkSchedule:
    """Says which chunk can be added or closed next.

    Args:
        chunks: number of chunks of the vector.
    """

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self._tracks: deque[_Track] = deque()
        # A worker's pushes, oldest first. A final push, or one after a refused one, may follow while the one before it
        # is still coming in.
        self._pushes: dict[int, deque[_Track | _Refused]] = {}
        self._refused: list[_Refused] = []
        self._early: dict[int, int] = {}
        self._out: set[int] = set()

    @property
    def idle(self) -> bool:
        """Whether no round is under way, and no push, but for what may come from workers that were left out."""
        return not self._tracks and all(push.worker in self._out for push in self._refused)

    def join(self, round_: Round, worker: int) -> None:
        """The header of a push has arrived; its chunks, if it has any, belong to ``round_``."""
        track = self._track(round_)
        if not round_.pushes[worker].local_steps:
            return
        early = min(self._early.get(worker, 0), self.chunks)
        self._early[worker] = self._early.get(worker, 0) - early
        if worker in round_.refused:
            refused = _Refused(worker, {worker: early}, self.chunks)
            self._refused.append(refused)
            self._pushes.setdefault(worker, deque()).append(refused)
        else:
            track.cursor[worker] = 0
            track.got[worker] = early
            self._pushes.setdefault(worker, deque()).append(track)

    def seal(self, round_: Round) -> None:
        """All headers of the round are there."""
        self._track(round_)

    def received(self, worker: int) -> None:
        """The next chunk of the worker's push has arrived, perhaps before the push's header was looked at."""
        self._out.discard(worker)
        for track in self._pushes.get(worker, ()):
            if track.got[worker] < self.chunks:
                track.got[worker] += 1
                return
        self._early[worker] = self._early.get(worker, 0) + 1

    def lost(self, worker: int) -> None:
        """No more chunks come from the worker; those that were added stay in the sum."""
        self._pushes.pop(worker, None)
        self._early.pop(worker, None)
        self._refused = [push for push in self._refused if push.worker != worker]
        for track in self._tracks:
            if worker in track.round.members:
                track.gone[worker] = track.cursor.get(worker, 0)

    def leave_out(self, worker: int) -> None:
        """As ``lost``, but the rest of the worker's pushes may still come, and is to be thrown away then."""
        self._out.add(worker)
        pushes = self._pushes.get(worker, deque())
        left: deque[_Track | _Refused] = deque()
        for push in pushes:
            if isinstance(push, _Refused):
                left.append(push)
                continue
            taken, got = push.cursor[worker], push.got[worker]
            if push.alone and push.closed < taken:
                left.append(push)  # the last one that was added still lies in its slot
                push.got[worker] = self.chunks
            if taken < self.chunks:
                refused = _Refused(worker, {worker: got}, self.chunks - taken)
                self._refused.append(refused)
                left.append(refused)
        self._pushes[worker] = left
        for track in self._tracks:
            if worker in track.round.members:
                track.gone[worker] = track.cursor.get(worker, 0)

    def coming(self, worker: int) -> bool:
        """Whether chunks of a push of the worker have still to come."""
        return any(push.got[worker] < self.chunks for push in self._pushes.get(worker, ()))

    def answering(self, worker: int) -> bool:
        """Whether a message to the worker has not been handed over whole."""
        return any(worker in track.round.recipients for track in self._tracks)

    def operations(self, room: Callable[[Round, int], bool]) -> Iterator[Operation]:
        """Yield what can be done now, to be carried out one by one in this order.

        Args:
            room: whether the new values of a chunk of a round can be taken by its recipients' buffers now.
        """
        while True:
            yield from self._discard()
            limit = self.chunks
            for track in list(self._tracks):
                yield from self._advance(track, limit, room)
                if track.round.sealed and track.closed == self._wanted(track):
                    # Those that follow wait for it no longer, though it may have closed no chunk: a message to stop.
                    self._forget(track)
                    yield Done(track.round)
                else:
                    limit = track.closed
            if not any(self._wasted(push) for push in self._refused):
                return

    def _discard(self) -> Iterator[Operation]:
        for push in list(self._refused):
            while self._wasted(push):
                push.left -= 1
                if not push.left:
                    self._refused.remove(push)
                    self._pushes[push.worker].popleft()
                yield Discard(push.worker)

    def _wasted(self, push: _Refused) -> bool:
        """Whether a chunk of a refused push has come, and it is its worker's oldest one."""
        return (
            push.left > 0 and self._pushes[push.worker][0] is push and self.chunks - push.left < push.got[push.worker]
        )

    def _advance(self, track: _Track, limit: int, room: Callable[[Round, int], bool]) -> Iterator[Operation]:
        # A round may add a chunk only when the round before has closed it: there is one sum of a chunk at a time.
        bound, complete = limit, track.round.sealed
        ready: list[tuple[int, int, int]] = []
        for worker in track.round.members:
            if worker not in track.cursor:
                if worker in track.round.pushes or worker in track.gone:
                    continue
                complete = False
                break
            if worker in track.gone:
                continue
            begin = track.cursor[worker]
            # Chunks are taken in the order in which they came: those of a worker's earlier push first, to the last.
            end = min(bound, track.got[worker]) if self._pushes[worker][0] is track else 0
            if end > begin:
                ready.append((worker, begin, end))
            bound = max(begin, end)
        last = min(bound, self._wanted(track)) if complete else 0
        if ready:
            # Chunk by chunk, so that a sum is still in the processor's cache when the next term and the Close come.
            for chunk in range(min(r[1] for r in ready), max(r[2] for r in ready)):
                workers = tuple(worker for worker, begin, end in ready if begin <= chunk < end)
                if workers:
                    track.cursor.update(dict.fromkeys(workers, chunk + 1))
                    yield Add(track.round, workers, chunk, self._first(track, workers[0], chunk), track.alone)
                yield from self._close(track, min(last, chunk + 1), room)
        yield from self._close(track, last, room)

    def _close(self, track: _Track, last: int, room: Callable[[Round, int], bool]) -> Iterator[Operation]:
        """Close the chunks before ``last`` for which there is room."""
        while track.closed < last and room(track.round, track.closed):
            chunk = track.closed
            track.closed += 1
            yield Close(track.round, chunk, track.contributors(chunk), track.alone)

    def _wanted(self, track: _Track) -> int:
        """Chunks to close: none for a message without payload."""
        round_ = track.round
        return self.chunks if track.cursor or (round_.recipients and not round_.stop) else 0

    def _first(self, track: _Track, worker: int, chunk: int) -> bool:
        for other in track.round.members:
            if other == worker:
                return True
            if other in track.cursor and (other not in track.gone or chunk < track.gone[other]):
                return False
        return True

    def _track(self, round_: Round) -> _Track:
        for track in self._tracks:
            if track.round is round_:
                return track
        track = _Track(round_, alone=len(round_.members) == 1)
        self._tracks.append(track)
        return track

    def _forget(self, track: _Track) -> None:
        self._tracks.remove(track)
        for worker in track.cursor:
            if track in self._pushes.get(worker, ()):
                self._pushes[worker].remove(track)
