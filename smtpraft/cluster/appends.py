"""What the core wants stored, on its way to the disk and back: in which order, and what may be said afterwards.

    take(STORAGE_APPEND)  ──▶  a Write for the log's writer, or nothing to wait for
    finished(the same)    ◀──  it, and all before it, is durable: now its responses may leave (Raft Figure 2)

No thread, no clock, no file: the driver has a thread that writes, the simulator a disk in virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from smtpraft.consensus import Message, RawNode
from smtpraft.fastlog import Log
from smtpraft.storage import HardState


class Write(NamedTuple):
    """Arguments of `WalWriter.submit`; a write of nothing, without a sync, only keeps its place in the order."""

    spans: Sequence[memoryview]
    first_index: int
    last_index: int
    hard_state: HardState | None
    sync: bool


class Appends:
    """The writes of one node that are not finished, oldest first."""

    def __init__(self, core: RawNode, entries: Log) -> None:
        self._core = core
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
