"""What the core wants stored, on its way to the disk and back: in which order, and what may be said afterwards.

    take(STORAGE_APPEND)  ──▶  a Write for the log's writer, or nothing to wait for
    finished(the same)    ◀──  it, and all before it, is durable: now its responses may leave (Raft Figure 2)

No thread, no clock, no file: the driver has a thread that writes, the simulator a disk in virtual time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from smtpraft.consensus import Message, RawNode
from smtpraft.fastlog import Log
from smtpraft.storage import HardState

PIECE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of entries in one write, if there is more than one entry: a turn may bring many megabytes, and a disk that was busy
with all of them at once would seem to hang."""


class Write(NamedTuple):
    """Arguments of `WalWriter.submit`; a write of nothing, without a sync, only keeps its place in the order."""

    spans: Sequence[memoryview]
    first_index: int
    last_index: int
    hard_state: HardState | None
    sync: bool


class Appends:
    """The writes of one node that are not finished, oldest first."""

    def __init__(self, core: RawNode, entries: Log, *, piece_bytes_max: int = PIECE_BYTES_MAX) -> None:
        """`piece_bytes_max`: of entries in one write, if there is more than one entry."""
        self._core = core
        self._piece_bytes_max = piece_bytes_max
        self._entries = entries
        self._under_way = 0
        self._writing: deque[int] = deque()  # the last index of each write of entries, as far as it stands
        self.durable_index = entries.last_index
        """Entries up to here are on this node's disk."""

    def take(self, message: Message, must_sync: bool) -> Write | None:
        """Return what has to be written for a STORAGE_APPEND; None if it is finished already.

        A commit index that moved alone is not worth a write: it is learnt again from the leader, and from the machine.
        """
        snapshot = message.snapshot
        if snapshot is not None:
            # The log on disk is restarted behind it first. Of what is still being written before that, nothing will
            # count, and this write says when the restart is done.
            must_sync = True
            self.durable_index = min(self.durable_index, snapshot.index)
            self._writing = deque(0 for _ in self._writing)
        if not must_sync and not self._under_way:
            return None
        self._under_way += 1
        if not must_sync:
            return Write((), 0, 0, None, sync=False)
        entries = message.entries
        spans: Sequence[memoryview] = ()
        if entries:
            spans = self._entries.spans(entries.first, entries.last)
            # A conflicting suffix is being replaced; of what is still being written of that, nothing will count.
            self.durable_index = min(self.durable_index, entries.first - 1)
            if self._writing and self._writing[-1] >= entries.first:
                self._writing = deque(min(last, entries.first - 1) for last in self._writing)
            self._writing.append(entries.last)
        core = self._core
        hard_state = HardState(core.term, core.vote, core.commit_index)
        return Write(spans, entries.first, entries.last, hard_state, sync=True)

    def submit(self, write: Write, submit: Callable[..., None], done: Callable[[], None]) -> None:
        """Give `write` to the writer's `submit`, in pieces if it is long; `done` is run when all of it is written.

        A crash between two of them leaves a shorter log, of which nothing was said to anybody yet.
        """
        before: Write | None = None
        for piece in self._pieces(write):
            if before is not None:
                submit(*before, _nothing)
            before = piece
        assert before is not None
        submit(*before, done)

    def _pieces(self, write: Write) -> Iterator[Write]:
        first, last, state = write.first_index, write.last_index, write.hard_state
        size_bytes, size_bytes_max = self._entries.size_bytes, self._piece_bytes_max
        while write.spans and first < last and size_bytes(first, last) > size_bytes_max:
            fitting = bisect_right(range(first, last), size_bytes_max, key=partial(size_bytes, first))
            to = first + max(1, fitting) - 1
            # The log on disk never says that more is committed than it has.
            piece_state = state._replace(commit=min(state.commit, to)) if state is not None else None
            yield Write(self._entries.spans(first, to), first, to, piece_state, write.sync)
            first = to + 1
        yield (
            write
            if first == write.first_index
            else Write(self._entries.spans(first, last), first, last, state, write.sync)
        )

    def written(self) -> None:
        """The writer has done one write, in the order of `take`."""
        self._under_way -= 1

    def finished(self, message: Message) -> Sequence[Message]:
        """Return what may be said now that `message`, and every one before it, is on the disk."""
        if message.snapshot is not None:
            self.durable_index = max(self.durable_index, message.snapshot.index)
        if message.entries:
            self.durable_index = max(self.durable_index, self._writing.popleft())
        return message.responses


def _nothing() -> None:
    """A piece is written, and there is more to come."""
