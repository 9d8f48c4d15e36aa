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

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Lock
from time import perf_counter
from typing import Final

from smtpraft.errors import Stopped
from smtpraft.fastlog import Compacted, CorruptEntry, Log, Unavailable, block_range
from smtpraft.storage.batch import (
    BATCH_ALIGN_BYTES,
    BATCH_HEADER_BYTES,
    BatchHeader,
    HardState,
    batch_size_bytes,
    encode_header,
    survey,
)
from smtpraft.storage.disk import Buffer, Disk
from smtpraft.storage.errors import WalCorrupt, WalFailed, WalFull
from smtpraft.storage.index import EntryIndex, Extent
from smtpraft.storage.recovery import Replayed, cut_tail, replay
from smtpraft.storage.segment import (
    CLUSTER_ID_BYTES,
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentHeader,
    encode_segment_header,
    parse_segment_name,
    segment_name,
)
from smtpraft.storage.spares import NO_SPACE, SparePool, has_size, is_spare_name, is_unfinished_name
from smtpraft.storage.stats import WalStats

log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 64 * 1024 * 1024
SEGMENT_BYTES_MIN: Final = 16 * 1024
CACHE_BYTES: Final = 64 * 1024 * 1024
MARK_BYTES: Final = batch_size_bytes(0)

_ZEROS: Final = memoryview(bytes(BATCH_ALIGN_BYTES))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a log held when it was opened."""

    hard_state: HardState
    first_index: int
    """The first index on disk; `last_index + 1` when there are no entries."""
    last_index: int
    segments: int
    batches: int
    """The number of the last batch: how many there have been in this log's life."""
    torn_bytes: int
    """Bytes of writes that a crash cut short, and which were cut off; none of them was ever acknowledged."""
    torn_copy: str
    """Where a copy of them is; empty if there is none."""


class Wal:
    """One node's log. `write`, `compact` and `close` exclude one another; `read` runs beside them, on any thread."""

    def __init__(
        self, disk: Disk, directory: str, cluster_id: bytes, node_id: str, segment_bytes: int, spares: SparePool
    ) -> None:
        """For `open`."""
        self._disk = disk
        self._directory = directory
        self._cluster_id = cluster_id
        self._node_id = node_id
        self._segment_bytes = segment_bytes
        self._spares = spares
        self._write_lock = Lock()
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
    ) -> tuple[Wal, Recovery]:
        """Open the log in `directory`, or begin one, and read it into `log`, which keeps at most `cache_bytes` of it.

        What was read is durable from then on. `background=False` leaves it to the caller to call `prepare_spares`.

        Raises:
            WalCorrupt: something that had been synced is gone. Nothing was changed.
            WalForeign, WalNewer: the log is not for this node or program.
            OSError: the disk does not work, or has no room for a first segment.
        """
        if len(cluster_id) != CLUSTER_ID_BYTES:
            raise ValueError(f"a cluster id has {CLUSTER_ID_BYTES} bytes, not {len(cluster_id)}")
        if segment_bytes < SEGMENT_BYTES_MIN or segment_bytes % SEGMENT_HEADER_BYTES:
            raise ValueError(f"a segment has at least {SEGMENT_BYTES_MIN} bytes, in blocks of {SEGMENT_HEADER_BYTES}")
        disk.make_directory(directory)
        disk.sync_directory(directory)  # The names seen next may be those of renames that were never synced.
        names = disk.list_directory(directory)
        segments = [name for name in names if parse_segment_name(name)]
        ready = [name for name in names if is_spare_name(name)]
        if ready and not segments:
            # The first segment comes before the first spare.
            raise WalCorrupt("all segments are missing, but their spares are here", directory, 0, 1, 1)

        state = None
        if segments:
            state = replay(
                disk,
                directory,
                segments,
                cluster_id=cluster_id,
                node_id=node_id,
                memory=log,
                cache_bytes=cache_bytes,
            )
        for name in filter(is_unfinished_name, names):
            disk.unlink(f"{directory}/{name}")
        usable = [name for name in ready if has_size(disk, f"{directory}/{name}", segment_bytes)]
        for name in set(ready).difference(usable):
            disk.unlink(f"{directory}/{name}")
        spares = SparePool(disk, directory, segment_bytes, usable)
        wal = cls(disk, directory, cluster_id, node_id, segment_bytes, spares)
        torn_copy = wal._resume(state) if state is not None else wal._begin(log)
        if background:
            spares.start()
        recovery = Recovery(
            wal._hard_state,
            wal.first_index,
            wal.last_index,
            len(wal._segments),
            wal._number,
            state.torn_bytes if state is not None else 0,
            torn_copy,
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

    @property
    def size_bytes(self) -> int:
        """Bytes of the segments in use, as files; spares not counted."""
        with self._index_changed:
            return sum(segment.header.size_bytes for segment in self._segments)

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of entries that a segment of the usual size has room for several times over; a larger batch works."""
        return self._segment_bytes // 4

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
        with self._write_lock:
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
        number = self._number + 1
        encoded, crc = encode_header(
            BatchHeader(
                salt=segment.header.salt,
                number=number,
                durable=self._durable,
                first_index=first_index if found is not None else 0,
                last_index=last_index if found is not None else 0,
                floor=self._floor,
                entries_bytes=entries_bytes,
                entries_crc=found.entries_crc if found is not None else 0,
                previous_crc=self._crc,
                hard_state=hard_state,
            )
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
            self.stats.entries += len(found.ends)
        self.stats.batches += 1
        self.stats.bytes_written += size_bytes

    def vouch(self) -> None:
        """Write, without a sync, that the last batch was synced, unless that is written already. For idle moments.

        Else a last batch that is damaged while nothing follows it would be taken for a torn one.

        Raises:
            WalFailed: the disk failed now.
        """
        with self._write_lock:
            if self._failure is None and not self._closed and self._durable == self._number:
                self._vouch()

    def _vouch(self) -> None:
        segment = self._segments[-1]
        fits = segment.end_offset + 2 * MARK_BYTES <= segment.header.size_bytes
        if self._marked != self._number and fits:
            self._write((), 0, 0, self._hard_state)
            self._marked = self._number

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
        size_bytes = self._segment_bytes
        name = self._spares.take() if needed_bytes <= size_bytes else None
        made = name is None
        if name is None:
            size_bytes = max(size_bytes, -(-needed_bytes // SEGMENT_HEADER_BYTES) * SEGMENT_HEADER_BYTES)
            try:
                name = self._spares.make(size_bytes)
            except OSError as error:
                if error.errno in NO_SPACE:
                    raise WalFull(f"no room for a segment of {size_bytes} bytes in {self._directory}") from error
                raise self._fail("make a segment in", self._directory, error) from error
        try:
            segment = self._begin_segment(name, self._segments[-1].header.sequence + 1, size_bytes)
        except OSError as error:
            raise self._fail("begin a segment in", self._directory, error) from error
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
        target = segment_name(sequence, header.prev_index + 1)
        file = self._disk.open(f"{self._directory}/{name}")
        try:
            file.pwritev([encode_segment_header(header)], 0)
            file.sync()
        finally:
            file.close()
        self._disk.rename(f"{self._directory}/{name}", f"{self._directory}/{target}")
        self._disk.sync_directory(self._directory)  # A new segment's name lives there, not in the file.
        return Segment(self._disk.open(f"{self._directory}/{target}"), target, header)

    def _fail(self, what: str, path: str, error: OSError) -> WalFailed:
        self._failure = WalFailed(f"could not {what} {path}: {error}")
        log.error("write-ahead log failed action=%r path=%s error=%s", what, path, error)
        return self._failure

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Stopped("the write-ahead log is closed")

    # ------------------------------------------------------------------------------------------------------- reading

    def read(self, lo: int, hi: int, log: Log | None) -> bytes:
        """Return the encoded entries `lo..hi` of `log`, read from the disk and verified. For any thread.

        Where they are, the index here knows; `log` is only asked whether they are still its own. A truncation may be on
        its way here, and what it replaces must not be sent as though it were in the log. Without `log`, which is for
        one thread only, that is the caller's to see to; what is committed is never replaced.

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
                piece, last_term = _read_extent(extent, max(lo, extent.first), min(hi, extent.last))
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
        with self._write_lock:
            self._check_usable()
            count = self._compactable(to_index)
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

    def _compactable(self, to_index: int) -> int:
        """Return how many of the oldest segments are not needed for what comes after `to_index`.

        The log can begin with a segment only if no truncation in it, or later, reaches back before it.
        """
        lowest = self._index.last_index + 1
        for position in range(len(self._segments) - 1, 0, -1):
            segment = self._segments[position]
            lowest = min(lowest, segment.lowest_first or lowest)
            if segment.header.prev_index <= to_index and segment.header.prev_index < lowest:
                return position
        return 0

    def restart(self, index: int, term: int, hard_state: HardState) -> None:
        """Forget every entry and go on after entry `index` of `term`, which a snapshot holds; durably, or not at all.

        A new segment says that it is the oldest: by the rename that makes it one, all before it become obsolete.

        Raises:
            ValueError: `hard_state` is committed beyond the new end, or goes back.
            WalFull, WalFailed, Stopped: as `write`.
        """
        with self._write_lock:
            self._check_usable()
            if hard_state.commit > index or hard_state.term < self._hard_state.term:
                raise ValueError(f"{hard_state} does not fit a log that ends at {index}, after {self._hard_state}")
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
            with self._index_changed:
                dropped, self._segments = self._segments[:-1], [segment]
        self._release(dropped)
        try:
            self._spares.recycle([old.name for old in dropped])
        except OSError as error:
            raise self._fail("recycle segments in", self._directory, error) from error
        log.info("restarted after index=%d term=%d", index, term)

    def prepare_spares(self) -> bool:
        """Make one spare if one is wanted; return whether to call again at once. For logs opened without a thread."""
        return self._spares.prepare()

    # ------------------------------------------------------------------------------------------------ begin and end

    def _begin(self, memory: Log) -> str:
        memory.restore(0, 0)
        self._segments.append(self._begin_segment(self._spares.make(self._segment_bytes), 1, self._segment_bytes))
        return ""

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
        with self._write_lock:
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
                self._release(self._segments)

    def _release(self, segments: Sequence[Segment]) -> None:
        """Close the files of segments once nobody reads them any more."""
        with self._index_changed:
            while any(segment.readers for segment in segments):
                self._index_changed.wait()
        for segment in segments:
            segment.file.close()


def _read_extent(extent: Extent, lo: int, hi: int) -> tuple[bytes, int]:
    """Return the entries `lo..hi` of one extent, verified, and the term of the last."""
    offset, length = extent.range(lo, hi)
    piece = extent.segment.file.pread(length, offset)
    try:
        first, _, last, last_term = block_range(piece)
    except CorruptEntry as error:
        raise WalCorrupt(f"an entry is damaged: {error}", extent.segment.file.path, offset, lo, hi) from None
    if (first, last) != (lo, hi):
        raise WalCorrupt(f"holds entries {first}..{last} instead", extent.segment.file.path, offset, lo, hi)
    return piece, last_term
