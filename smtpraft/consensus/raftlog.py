"""Where each entry of the log is on its way: stored, committed, applied.

      first       applied     applying      commit               last
    ----|------------|-----------|------------|-------------------|
                 stable              handed
    ---------------|-------------------|--------------------------|
        on disk    |   being written   |   not handed out yet

`fastlog.Log` holds the entries, here are only the marks. `commit_index` may be ahead of `stable_index`: others have
stored what this node has not yet.
"""

from __future__ import annotations

from collections import deque

from smtpraft.consensus.messages import NO_ENTRIES, EntryRange, SnapshotMeta, entry_range
from smtpraft.consensus.tally import EVERYTHING
from smtpraft.fastlog import ENTRY_HEADER_BYTES, Log


class RaftLog:
    """The marks of one log.

    Invariant: applied <= applying <= commit <= last, and stable <= handed <= last.

    `last_index` and `last_term` are those of `log`, kept here because every step asks for them: whoever changes where
    the log ends calls `moved`.
    """

    __slots__ = (
        "_apply_paused",
        "_applying",
        "_applying_bytes",
        "_max_apply_bytes",
        "applied_index",
        "applying_index",
        "commit_index",
        "handed_index",
        "last_index",
        "last_term",
        "log",
        "snapshot",
        "snapshot_handed",
        "stable_index",
    )

    def __init__(self, log: Log, commit_index: int, applied_index: int, max_apply_bytes: int) -> None:
        assert log.prev_index <= applied_index
        assert applied_index <= commit_index
        assert commit_index <= log.last_index
        self.log = log
        self.last_index = log.last_index
        self.last_term = log.last_term
        self.commit_index = commit_index
        self.applying_index = applied_index
        """Handed out for applying up to here."""
        self.applied_index = applied_index
        self.stable_index = log.last_index
        """Known to be on this node's disk up to here."""
        self.handed_index = log.last_index
        """Handed out for storing up to here."""
        self.snapshot: SnapshotMeta | None = None
        """Received and not yet stored. It is part of the log at once; nothing is applied until it is stored."""
        self.snapshot_handed = False
        self._max_apply_bytes = max_apply_bytes or EVERYTHING
        self._applying: deque[tuple[int, int, int]] = deque()  # last index, bytes, payload bytes of each range
        self._applying_bytes = 0
        self._apply_paused = False

    def moved(self) -> None:
        """The log ends elsewhere now."""
        self.last_index = self.log.last_index
        self.last_term = self.log.last_term

    # Storing.

    def cut(self, first: int) -> None:
        """Entries from `first` on are new or will be replaced: none of them is stored, or handed out."""
        assert first > self.commit_index, f"entry {first} is committed: {self.commit_index}"
        self.stable_index = min(self.stable_index, first - 1)
        self.handed_index = min(self.handed_index, first - 1)

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Replace everything by a received snapshot."""
        assert snapshot.index > self.commit_index
        self.log.restore(snapshot.index, snapshot.term)
        self.moved()
        self.commit_index = self.stable_index = self.handed_index = snapshot.index
        self.snapshot = snapshot
        self.snapshot_handed = False

    def next_entries(self) -> EntryRange:
        """Return what has to be stored and is not handed out yet."""
        last = self.last_index
        return entry_range(self.handed_index + 1, last) if self.handed_index < last else NO_ENTRIES

    @property
    def has_unstable(self) -> bool:
        """Are there entries not known to be on disk?"""
        return self.stable_index < self.last_index

    def handed_out(self) -> None:
        """Everything there is to store was handed out."""
        self.handed_index = self.last_index
        self.snapshot_handed = self.snapshot is not None

    def stable_to(self, index: int, term: int) -> None:
        """The disk has all up to the entry of this index and term: if it is still the one we have."""
        if not self.stable_index < index <= self.last_index:
            return
        if (self.last_term if index == self.last_index else self.log.term(index)) != term:
            return
        self.stable_index = index
        self.handed_index = max(self.handed_index, index)

    def snapshot_stored(self, index: int) -> None:
        """The snapshot of `index` is stored, and the state machine is where it says."""
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_handed = False
        self._applied(index)

    # Committing and applying.

    def commit_to(self, index: int) -> None:
        """Move the commit index; it never goes back."""
        if index > self.commit_index:
            assert index <= self.last_index, f"commit {index} beyond the log's end {self.last_index}"
            self.commit_index = index

    def _appliable_index(self, allow_unstable: bool) -> int:
        return self.commit_index if allow_unstable else min(self.commit_index, self.stable_index)

    def has_committed(self, allow_unstable: bool) -> bool:
        """Is there anything to hand out for applying?"""
        return (
            not self._apply_paused
            and self.snapshot is None
            and self.applying_index < self._appliable_index(allow_unstable)
        )

    def next_committed(self, allow_unstable: bool) -> EntryRange:
        """Return what to apply next, within the limit of bytes, and take it for handed out."""
        if self._apply_paused or self.snapshot is not None:
            return NO_ENTRIES
        first, end = self.applying_index + 1, self._appliable_index(allow_unstable)
        if first > end:
            return NO_ENTRIES
        log = self.log
        last = end
        if self._max_apply_bytes != EVERYTHING:
            assert self._applying_bytes < self._max_apply_bytes, "applying beyond the limit"
            last = log.upto_bytes(first, end, self._max_apply_bytes - self._applying_bytes)
        size = log.size_bytes(first, last)
        self.applying_index = last
        self._applying.append((last, size, size - ENTRY_HEADER_BYTES * (last + 1 - first)))
        self._applying_bytes += size
        self._apply_paused = self._applying_bytes >= self._max_apply_bytes or last < end
        return entry_range(first, last)

    def applied_to(self, index: int) -> int:
        """All up to `index` is applied; return the payload bytes of the ranges that this completes."""
        payload_bytes = 0
        applying = self._applying
        while applying:
            last, size, payload = applying[0]
            if last > index:
                break
            applying.popleft()
            self._applying_bytes -= size
            payload_bytes += payload
        self._applied(index)
        return payload_bytes

    def _applied(self, index: int) -> None:
        assert index <= self.commit_index, f"applied {index}, committed {self.commit_index}"
        self.applied_index = max(self.applied_index, index)
        self.applying_index = max(self.applying_index, index)
        self._apply_paused = self._applying_bytes >= self._max_apply_bytes
