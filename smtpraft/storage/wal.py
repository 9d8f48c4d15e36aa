"""The write-ahead log: what survives power loss.

A log is a directory of segments, `SEQUENCE-FIRSTINDEX.wal`, and of spares. One write is one batch: one pwritev, and one
fdatasync when the caller needs it durable. Entries, term, vote and commit index share the stream, and so the sync.

    wal/0000000000000007-0000000000001a2f.wal
        | header | batch 901 | batch 902 | batch 903 | zeros, or what the file held before it was recycled
                                         ^ end: the next batch goes here

It knows nothing of consensus: it keeps what it is given, in order, and gives back a prefix of it that contains all that
was synced, or refuses. It never asks a disk twice: after a failed write or sync it does no more. The formats are in
`batch` and `segment`; what recovery makes of a crash is in `recovery`.

Invariant: a batch is written behind all others, into space that was filled and synced before.
Invariant: a new segment begins only when all batches before it are synced.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from contextlib import suppress
from threading import Condition
from time import perf_counter
from typing import Final

from smtpraft.errors import Stopped
from smtpraft.fastlog import Compacted, Log, Unavailable
from smtpraft.storage.batch import (
    BATCH_ALIGN_BYTES,
    BATCH_HEADER_BYTES,
    HardState,
    batch_size_bytes,
    encode_header,
    header_of,
    survey,
)
from smtpraft.storage.disk import Buffer, Disk
from smtpraft.storage.errors import WalFailed, WalFull, WalReadOnly
from smtpraft.storage.healing import clear_away
from smtpraft.storage.index import EntryIndex, Extent, compactable, read_extent
from smtpraft.storage.opening import Found, find
from smtpraft.storage.promises import Promise
from smtpraft.storage.recovery import Recovery, Replayed, cut_tail
from smtpraft.storage.segment import CLUSTER_ID_BYTES, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, begin_segment
from smtpraft.storage.stats import WalStats
from smtpraft.storage.writelock import WriteLock

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 64 * 1024 * 1024
SEGMENT_BYTES_MIN: Final = 16 * 1024
CACHE_BYTES: Final = 64 * 1024 * 1024
MARK_BYTES: Final = batch_size_bytes(0)

_ZEROS: Final = memoryview(bytes(BATCH_ALIGN_BYTES))


class Wal:
    """One node's log. `write`, `compact` and `close` exclude one another; `read` runs beside them, on any thread."""

    def __init__(
        self, disk: Disk, directory: str, cluster_id: bytes, node_id: str, segment_bytes: int, found: Found
    ) -> None:
        """For `open`."""
        self._disk = disk
        self._directory = directory
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._segment_bytes = segment_bytes
        self._spares = found.spares
        self._promises = found.promises
        self.write_lock = WriteLock()
        self._failure: WalFailed | None = None
        self._closed = False

        # Under the write lock.
        self._hard_state = HardState()
        self._number = 0
        self._durable = 0
        self._crc = 0
        self._last_term = 0
        self._floor = 1
        self._marked = 0  # the last mark: a batch that holds nothing, and need not be vouched for

        # Under the index lock, which is never held during I/O.
        self._index_changed = Condition()
        self._index = EntryIndex(0)
        self._segments: list[Segment] = []
        self.stats = WalStats()

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        cluster_id: bytes,
        node_id: str,
        log: Log,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        background: bool = True,
        promises: str = "",
        heal: bool = False,
    ) -> tuple[Wal, Recovery]:
        """Open the log in `directory`, or begin one, and read it into `log`, which keeps at most `cache_bytes` of it.

        What was read is durable from then on. `background=False` leaves it to the caller to call `prepare_spares`.
        `promises` is the directory of the file of that name; without it a log that lost its end may pass for a whole
        one. With `heal` a log that lost something opens as far as it is sound, in a new term, and `abstain_term` of
        what is returned says what that means for the node (`Raft.abstains`).

        Raises:
            WalCorrupt: something that had been synced is gone. Nothing was changed.
            WalForeign, WalNewer: the log is not for this node or program.
            OSError: the disk does not work, or has no room for a first segment.
        """
        if len(cluster_id) != CLUSTER_ID_BYTES:
            raise ValueError(f"a cluster id has {CLUSTER_ID_BYTES} bytes, not {len(cluster_id)}")
        if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % SEGMENT_HEADER_BYTES:
            raise ValueError(f"a segment has at least {SEGMENT_BYTES_MIN} bytes, in blocks of {SEGMENT_HEADER_BYTES}")
        found = find(
            disk,
            directory,
            cluster_id=cluster_id,
            node_id=node_id,
            memory=log,
            segment_bytes=segment_bytes,
            cache_bytes=cache_bytes,
            promises=promises,
            heal=heal,
        )
        state = found.state
        wal = cls(disk, directory, cluster_id, node_id, segment_bytes, found)
        torn_copy = wal._resume(state) if state is not None else wal._begin(log)
        wal._settle(found.hard_state, damaged=found.damage is not None)
        if background:
            wal._spares.start()
        recovery = Recovery(
            wal._hard_state,
            wal.first_index,
            wal.last_index,
            len(wal._segments),
            wal._number,
            state.torn_bytes if state is not None else 0,
            torn_copy,
            wal.abstain_term,
            found.damage,
        )
        return wal, recovery

    # -------------------------------------------------------------------------------------------------------- facts

    @property
    def first_index(self) -> int:
        """The first index that can be read; `last_index + 1` when there is none."""
        with self._index_changed:
            return self._index.first_index

    @property
    def last_index(self) -> int:
        """The last index that was written, synced or not."""
        with self._index_changed:
            return self._index.last_index

    @property
    def spares(self) -> int:
        """Segments ready for use beyond the one being written."""
        return self._spares.count

    @property
    def full(self) -> bool:
        """Whether the disk had no room for a spare lately. What is ready still takes votes; take on nothing new."""
        return self._spares.full

    def usage(self) -> tuple[int, int]:
        """Return how many segments are in use, and their bytes as files; spares not counted."""
        with self._index_changed:
            return len(self._segments), sum(segment.header.size_bytes for segment in self._segments)

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of entries that a segment of the usual size has room for several times over; a larger batch works."""
        return self._segment_bytes // 4

    @property
    def abstain_term(self) -> int:
        """Not 0: what this log lost is not known to be back; see `Promise`."""
        promise = self._promises.current if self._promises is not None else None
        return promise.abstain_term if promise is not None else 0

    @property
    def failure(self) -> WalFailed | None:
        """Why the log does no more, if so."""
        return self._failure

    # ------------------------------------------------------------------------------------------------------- writing

    def write(
        self,
        spans: Sequence[Buffer],
        first_index: int,
        last_index: int,
        hard_state: HardState | None = None,
        sync: bool = True,
    ) -> None:
        """Write one batch: the encoded entries `first_index..last_index` in `spans` (pieces of whole records), and the
        hard state if it changed. Durable on return if `sync`; else with the next batch that is.

        Entries that are there from `first_index` on are replaced. Without entries both indexes are ignored.

        Raises:
            ValueError: the spans are not these entries, they leave a gap, or the commit index is beyond the last entry.
                Nothing was written.
            WalFull: there is no room for the next segment. Nothing was written; try again when there is.
            WalFailed: the disk failed, now or before. What of this batch is on disk is unknown.
            Stopped: the log is closed.
        """
        with self.write_lock:
            self._check_usable()
            self._write(spans, first_index, last_index, hard_state or self._hard_state)
            if sync:
                self._sync()

    def _write(
        self,
        spans: Sequence[Buffer],
        first_index: int,
        last_index: int,
        hard_state: HardState,
        reserve_bytes: int = MARK_BYTES,
    ) -> None:
        """Write one batch, and leave `reserve_bytes` in the segment: a mark must fit when nothing else does any more,
        for only compaction makes room on a full disk, and it needs one.
        """
        found = survey(spans) if spans else None
        end_index = self._index.last_index
        if spans:
            if found is None or (found.first_index, found.last_index) != (first_index, last_index):
                raise ValueError(f"the spans do not hold the entries {first_index}..{last_index}")
            if not self._index.first_index <= first_index <= end_index + 1:
                raise ValueError(f"entry {first_index} does not go on the log {self._index.first_index}..{end_index}")
            if first_index == end_index + 1 and found.first_term < self._last_term:
                raise ValueError(f"entry {first_index} has term {found.first_term} after {self._last_term}")
            end_index = last_index
        if hard_state.commit > end_index:
            raise ValueError(f"commit index {hard_state.commit} is beyond the last entry {end_index}")
        entries_bytes = found.entries_bytes if found is not None else 0
        size_bytes = batch_size_bytes(entries_bytes)

        segment = self._segments[-1]
        if segment.end_offset + size_bytes + reserve_bytes > segment.header.size_bytes:
            segment = self._roll(SEGMENT_HEADER_BYTES + size_bytes + reserve_bytes)
        self._promise(soon=True, term=hard_state.term, vote=hard_state.vote)
        number = self._number + 1
        encoded, crc = encode_header(
            header_of(found, segment.header.salt, number, self._durable, self._floor, self._crc, hard_state)
        )
        position = segment.end_offset
        padding = _ZEROS[: size_bytes - BATCH_HEADER_BYTES - entries_bytes]
        try:
            segment.file.pwritev([encoded, *spans, padding], position)
        except OSError as error:
            raise self._fail("write", segment.file.path, error) from error

        segment.end_offset += size_bytes
        self._number = number
        self._crc = crc
        self._hard_state = hard_state
        if found is not None:
            self._last_term = found.last_term
            segment.holds_from(first_index)
            extent = Extent(first_index, last_index, segment, position + BATCH_HEADER_BYTES, found.ends)
            with self._index_changed:
                self._index.append(extent)
            self.stats.wrote(len(found.ends))
        self.stats.batches += 1
        self.stats.bytes_written += size_bytes

    def vouch(self) -> bool:
        """Write, without a sync, that the last batch was synced, unless that is written already. For idle moments.

        Else a last batch that is damaged while nothing follows it would be taken for a torn one. False: a read-only
        file system refuses it, now.

        Raises:
            WalFailed: the disk failed now.
        """
        with self.write_lock, suppress(WalFull):
            if self._failure is None and not self._closed and self._durable == self._number:
                self._vouch()
            return True
        return False

    def _vouch(self) -> None:
        segment = self._segments[-1]
        if self._marked != self._number and segment.end_offset + 2 * MARK_BYTES <= segment.header.size_bytes:
            self._write((), 0, 0, self._hard_state)
            self._marked = self._number
            self._promise()  # For damage that takes the mark along, too.

    def _sync(self) -> None:
        """Make all batches so far durable. Those in older segments are: no segment begins before."""
        segment = self._segments[-1]
        began = perf_counter()
        try:
            segment.file.sync()
        except OSError as error:
            raise self._fail("sync", segment.file.path, error) from error
        self.stats.synced(perf_counter() - began)
        self._durable = self._number

    def _roll(self, needed_bytes: int) -> Segment:
        """Begin the next segment, with room for `needed_bytes`, header included."""
        if self._durable < self._number:
            self._sync()  # The next sync is of another file; nothing would make these durable any more.
        try:
            name, size_bytes, made = self._spares.take_or_make(needed_bytes)
        except OSError as error:
            raise self._fail("make a segment in", self._directory, error) from error
        try:
            segment = self._begin_segment(name, self._segments[-1].header.sequence + 1, size_bytes)
        except OSError as error:
            raise self._fail("begin a segment in", self._directory, error) from error
        self._promise(segment=segment.header.sequence)
        with self._index_changed:
            self._segments.append(segment)
        self.stats.rolls += 1
        self.stats.rolls_without_spare += made
        return segment

    def _begin_segment(self, name: str, sequence: int, size_bytes: int) -> Segment:
        """Turn the file `name` into the segment `sequence`, durably: a header first, then the name, then its sync."""
        header = SegmentHeader(
            cluster_id=self._cluster_id,
            node_id=self._node_id,
            sequence=sequence,
            salt=self._disk.random_u64(),
            floor=self._floor,
            first_batch=self._number + 1,
            previous_crc=self._crc,
            size_bytes=size_bytes,
            prev_index=self._index.last_index,
            prev_term=self._last_term,
            hard_state=self._hard_state,
        )
        return begin_segment(self._disk, self._directory, name, header)

    def _promise(self, *, soon: bool = False, **changes: int | str) -> None:
        """Promise what the log is going to say, unless that is promised already. `soon`: others wait for the batch."""
        if self._promises is not None:
            try:
                self._promises.update(self._durable, soon=soon, **changes)
            except (OSError, WalFull) as error:
                if isinstance(error, WalFull) and (soon or not changes):  # It can be repeated.
                    raise
                raise self._fail("promise beside", self._directory, error) from error

    def _fail(self, what: str, path: str, error: OSError | WalFull) -> WalFailed | WalFull:
        if what == "write" and isinstance(error, OSError) and error.errno == errno.EROFS:
            return WalReadOnly(f"{path}: {error.strerror}")  # It was refused as a whole, and may be taken later.
        self._failure = WalFailed(f"could not {what} {path}: {error}")
        log.error("write-ahead log failed action=%r path=%s error=%s", what, path, error)
        return self._failure

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Stopped("the write-ahead log is closed")

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, lo: int, hi: int, log: Log | None, *, fresh: bool = False) -> bytes:
        """Return the encoded entries `lo..hi` of `log`, read from the disk and verified. For any thread.

        Where they are, the index here knows; `log` is only asked whether they are still its own. A truncation may be on
        its way here, and what it replaces must not be sent as though it were in the log. Without `log`, which is for
        one thread only, that is the caller's to see to; what is committed is never replaced. `fresh`: not from a cache.

        Raises:
            Compacted, Unavailable: they are not here, not all of them, or not yet.
            WalCorrupt: what is on the disk is not what was written.
            Stopped: the log is closed.
        """
        if lo > hi:
            raise ValueError(f"no range: {lo}..{hi}")
        with self._index_changed:
            if self._closed:
                raise Stopped("the write-ahead log is closed")
            if lo < self._index.first_index:
                raise Compacted(f"index {lo}, the write-ahead log begins at {self._index.first_index}")
            if hi > self._index.last_index:
                raise Unavailable(f"index {hi}, the write-ahead log ends at {self._index.last_index}")
            extents = self._index.find(lo, hi)
            for extent in extents:
                extent.segment.readers += 1
        pieces = []
        last_term = 0
        try:
            for extent in extents:
                piece, last_term = read_extent(extent, max(lo, extent.first), min(hi, extent.last), fresh)
                pieces.append(piece)
        finally:
            with self._index_changed:
                for extent in extents:
                    extent.segment.readers -= 1
                self._index_changed.notify_all()
        block = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        # Terms never decrease, and an index and a term name one entry and all before it (Raft §5.3): one look will do.
        if log is not None and log.term(hi) != last_term:
            raise Unavailable(f"index {hi} was replaced, and its replacement is not written yet")
        return block

    # ---------------------------------------------------------------------------------------------------- compaction

    def compact(self, to_index: int) -> int:
        """Recycle the segments that hold nothing but entries up to `to_index`; return the first index still here.

        The caller vouches that it never needs these entries again, not after a power loss either.

        Raises:
            WalFailed, Stopped: as `write`.
        """
        with self.write_lock:
            self._check_usable()
            count = compactable(self._segments, self._index.last_index, to_index)
            if not count:
                return self._index.first_index
            floor = self._floor
            self._floor = self._segments[count].header.sequence
            try:
                # The floor first, durably: segments vanish one by one, and one that is missing must not look like loss.
                self._write((), 0, 0, self._hard_state, reserve_bytes=0)
            except WalFull as error:  # The mark of the last compaction took the reserve, and nothing was written since.
                self._floor = floor
                log.warning("compaction put off error=%s", error)
                return self._index.first_index
            self._sync()
            self._marked = self._number
            base = self._segments[count].header
            self._promise(floor=base.sequence, base_index=base.prev_index, base_term=base.prev_term)
            with self._index_changed:
                dropped = self._segments[:count]
                del self._segments[:count]
                self._index.drop_through(self._segments[0].header.prev_index)
                first_index = self._index.first_index
        self._release(dropped)
        try:
            self._spares.recycle([segment.name for segment in dropped])
        except OSError as error:
            raise self._fail("recycle segments in", self._directory, error) from error
        log.info("compacted to_index=%d first_index=%d segments=%d", to_index, first_index, count)
        return first_index

    def restart(self, index: int, term: int, hard_state: HardState, *, keep: bool = False) -> None:
        """Forget every entry and go on after entry `index` of `term`, which a snapshot holds; durably, or not at all.

        A new segment says that it is the oldest: by the rename that makes it one, all before it become obsolete.
        `keep` leaves them under other names until this node is whole again.

        Raises:
            ValueError: `hard_state` is committed beyond the new end, or goes back.
            WalFull, WalFailed, Stopped: as `write`.
        """
        with self.write_lock:
            self._check_usable()
            if hard_state.commit > index or hard_state.term < self._hard_state.term:
                raise ValueError(f"{hard_state} does not fit a log that ends at {index}, after {self._hard_state}")
            self._promise(term=hard_state.term, vote=hard_state.vote)
            before = (self._floor, self._index, self._last_term, self._hard_state)
            self._floor = self._segments[-1].header.sequence + 1
            self._last_term, self._hard_state = term, hard_state
            with self._index_changed:
                self._index = EntryIndex(index)
            try:
                segment = self._roll(SEGMENT_HEADER_BYTES + 2 * MARK_BYTES)
            except WalFull:
                self._floor, self._index, self._last_term, self._hard_state = before
                raise
            self._promise(floor=segment.header.sequence, base_index=index, base_term=term)
            with self._index_changed:
                dropped, self._segments = self._segments[:-1], [segment]
        self._release(dropped)
        try:
            (self._spares.put_aside if keep else self._spares.recycle)([old.name for old in dropped])
        except OSError as error:
            raise self._fail("recycle segments in", self._directory, error) from error
        log.info("restarted after index=%d term=%d", index, term)

    def prepare_spares(self) -> bool:
        """Make one spare if one is wanted; return whether to call again at once. For logs opened without a thread."""
        return self._spares.prepare()

    def _begin(self, memory: Log) -> str:
        """Begin a log, or begin one anew where it begins now, if nothing is left of it."""
        promise = (self._promises.current if self._promises is not None else None) or Promise(segment=0)
        memory.restore(promise.base_index, promise.base_term)
        self._index, self._last_term = EntryIndex(promise.base_index), promise.base_term
        self._hard_state = HardState(promise.term, promise.vote, promise.base_index)
        self._floor = promise.segment + 1
        name = self._spares.make(self._segment_bytes)
        self._segments.append(self._begin_segment(name, self._floor, self._segment_bytes))
        self._promise(segment=self._floor, floor=self._floor)
        return ""

    def _settle(self, hard_state: HardState, *, damaged: bool) -> None:
        """Go on from a hard state that may be newer than what the log says, and say so in the log too."""
        self._promise(
            term=hard_state.term,
            vote=hard_state.vote,
            segment=self._segments[-1].header.sequence,
            floor=self._segments[0].header.sequence,
            base_index=self._segments[0].header.prev_index,
            base_term=self._segments[0].header.prev_term,
        )
        behind, self._hard_state = hard_state[:2] != self._hard_state[:2], hard_state
        if damaged or behind:  # A vote that is not repeated here would go with the file of promises.
            with suppress(*(() if damaged else (WalFull,))):
                self._write((), 0, 0, hard_state)
                self._sync()

    def abstain(self) -> HardState:
        """Something that had been synced is gone without a trace: promise to abstain, and return the new hard state.

        Raises:
            WalFull, WalFailed, Stopped: as `write`.
        """
        with self.write_lock:
            self._check_usable()
            left = self._hard_state
            through = max(1, left.term)
            self._promise(term=through + 1, vote="", abstain_term=through)
            self._write((), 0, 0, HardState(through + 1, "", left.commit))
            self._sync()
            return self._hard_state

    def abstained(self) -> None:
        """What was lost is here again, durably: vote from now on, in this life and in later ones.

        Raises:
            WalFailed, Stopped: as `write`.
        """
        with self.write_lock:
            self._check_usable()
            self._promise(abstain_term=0)
            try:
                clear_away(self._disk, self._directory)
            except OSError as error:
                raise self._fail("clear away segments in", self._directory, error) from error

    def _resume(self, state: Replayed) -> str:
        self._segments = state.segments
        self._index = state.index
        self._hard_state = state.hard_state
        self._number = self._durable = state.number
        self._crc = state.crc
        self._last_term = state.last_term
        self._floor = state.floor
        copy = ""
        if state.torn_bytes:
            copy = cut_tail(self._disk, self._directory, self._segments[-1], state.torn_bytes)
        if state.obsolete:
            self._spares.recycle(state.obsolete)
        return copy

    def close(self) -> None:
        """Vouch for all that was written, as far as the disk does, and close the files. Harmless a second time.

        After it, a damaged batch is known for one even if it is the last.

        Raises:
            WalFailed: the disk failed now. What was synced before is safe.
        """
        with self.write_lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._failure is None:
                    if self._durable < self._number:
                        self._sync()
                    self._vouch()
                    if self._durable < self._number:
                        self._sync()
            finally:
                self._spares.close()
                if self._promises is not None:
                    self._promises.close()
                self._release(self._segments)

    def _release(self, segments: Sequence[Segment]) -> None:
        """Close the files of segments once nobody reads them any more."""
        with self._index_changed:
            while any(segment.readers for segment in segments):
                self._index_changed.wait()
        for segment in segments:
            segment.file.close()
