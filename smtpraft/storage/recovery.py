"""Reading the log back after whatever happened: what is a torn tail, what is damage.

The batches are walked in order. The first bad one, number `n`, ends the walk. Then the question is whether anything
vouches for `n`, that is, says that it had been synced:

    a later segment           it was begun only when the last batch of this one was synced: all of this one was
    `durable` of a batch      that is valid and lies behind `n`; it may have survived where `n` did not, since unsynced
                              writes reach the disk in any order, but then it does not claim `n`

Vouched for: `n` was lost after it was synced, perhaps after it was acknowledged. `WalCorrupt`, and nothing is changed.
Not vouched for: the sync that would have covered it never returned, so nothing of it was acknowledged. It is cut.

Invariant: where a log goes on, nothing further on in the segment carries the segment's salt. So before the first
write all headers behind the cut are overwritten with zeros and synced. A crash in between finds the same bad batch, or
a place without one, and cuts at the same point.

What is read may be in memory only: after kill -9 the kernel holds pages that were never synced, and after a failed sync
it holds pages that it will never write. So the last segment is synced, dropped from memory and read from the device,
and the directory is synced, before anything is built on them.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft.fastlog import CorruptEntry, Log
from smtpraft.storage.batch import (
    BATCH_ALIGN_BYTES,
    BATCH_HEADER_BYTES,
    BatchHeader,
    HardState,
    Survey,
    decode_header,
    survey,
)
from smtpraft.storage.disk import Disk, File
from smtpraft.storage.errors import WalCorrupt, WalForeign, WalNewer
from smtpraft.storage.index import EntryIndex, Extent
from smtpraft.storage.segment import (
    SEGMENT_HEADER_BYTES,
    SEGMENT_VERSION,
    Segment,
    decode_segment_header,
    parse_segment_name,
)

log = logging.getLogger(__name__)

TORN_DIRECTORY: Final = "torn"
TORN_COPIES_MAX: Final = 16
_WINDOW_BYTES: Final = 1024 * 1024
_SALT: Final = struct.Struct(">Q")
_SALT_OFFSET: Final = 8


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
    abstain_term: int = 0
    """Not 0: something synced was lost, now or in an earlier life, and is not known to be back; see `Promise`."""
    damage: WalCorrupt | None = None
    """What was found now."""


@dataclass(slots=True)
class Replayed:
    """The log as far as it has been walked; at the end, the log."""

    segments: list[Segment]
    """From the floor on."""
    obsolete: list[str]
    """Segments before the floor: a crash came before they were recycled."""
    index: EntryIndex
    hard_state: HardState
    number: int
    """The last batch, and its checksum."""
    crc: int
    last_term: int
    floor: int = 0
    """The oldest segment that counts, as stated in what has been walked."""
    torn_bytes: int = 0
    """How far what has to be cut reaches behind the end."""
    damage: WalCorrupt | None = None
    """Why the walk ended before the log did, if it was to go as far as it can."""

    @property
    def last_index(self) -> int:
        return self.index.last_index

    def close(self) -> None:
        """Close the files."""
        _close(self.segments)


def replay(
    disk: Disk, directory: str, names: Sequence[str], *, cluster_id: bytes, node_id: str, memory: Log, cache_bytes: int
) -> Replayed:
    """Read the segments `names`, of which there is at least one, into `memory`. Changes nothing on disk.

    Raises:
        WalCorrupt, WalForeign, WalNewer: the log cannot be used as it is.
    """
    names = sorted(names)
    last = _open_segment(disk, directory, names[-1], cluster_id, node_id)
    try:
        last.file.sync()
        last.file.drop_cache()
        floor = _floor(last)
    finally:
        last.file.close()
    while True:
        obsolete = [name for name in names if _sequence(name) < floor]
        segments: list[Segment] = []
        try:
            for name in names[len(obsolete) :]:
                segments.append(_open_segment(disk, directory, name, cluster_id, node_id))  # noqa: PERF401
            state = _walk(segments, obsolete, floor, memory, cache_bytes)
        except BaseException:
            _close(segments)
            raise
        if state.floor == floor:
            return state
        # The batch that said so lies in the torn tail. So nothing was recycled on its word, and nothing may be.
        assert state.floor < floor
        _close(segments)
        floor = state.floor


def replay_sound_part(
    disk: Disk,
    directory: str,
    names: Sequence[str],
    floor: int,
    *,
    cluster_id: bytes,
    node_id: str,
    memory: Log,
    cache_bytes: int,
) -> Replayed | None:
    """Read a damaged log as far as it goes, from segment `floor` on; None if not even that one can be opened.

    What comes out is what the log was at some time: every sound prefix of the batches is. Changes nothing on disk.

    Raises:
        WalForeign, WalNewer: a segment is not for this node or program.
    """
    segments: list[Segment] = []
    try:
        for name in sorted(names):
            if _sequence(name) < floor:
                continue
            if _sequence(name) != floor + len(segments):
                break
            try:
                segments.append(_open_segment(disk, directory, name, cluster_id, node_id))
            except WalCorrupt:
                break
        if not segments:
            return None
        state = _walk(segments, [], floor, memory, cache_bytes, whole=False)
        state.floor = max(state.floor, floor)  # The batch that said so may be among what is lost.
        _close(segments[len(state.segments) :])
    except BaseException:
        _close(segments)
        raise
    return state


def cut_tail(disk: Disk, directory: str, segment: Segment, torn_bytes: int) -> str:
    """Keep a copy of what lies behind the end of the log, then erase it. Return the path of the copy, empty if none.

    Raises:
        OSError: the segment could not be written.
    """
    copy = _keep_copy(disk, f"{directory}/{TORN_DIRECTORY}", segment, torn_bytes)
    segment.file.pwritev([bytes(torn_bytes)], segment.end_offset)
    segment.file.sync()
    log.warning(
        "cut a torn tail file=%s offset=%d bytes=%d copy=%s", segment.file.path, segment.end_offset, torn_bytes, copy
    )
    return copy


# ---------------------------------------------------------------------------------------------------------- the walk


def _walk(
    segments: list[Segment], obsolete: list[str], floor: int, memory: Log, cache_bytes: int, *, whole: bool = True
) -> Replayed:
    """Walk along all batches. Unless the `whole` log is wanted, damage only ends the walk."""
    base = segments[0].header
    if base.sequence != floor:
        raise _corrupt(segments[0], 0, f"segment {floor}, which comes before it, is missing", 1, base.prev_index)
    memory.restore(base.prev_index, base.prev_term)
    state = Replayed(
        segments,
        obsolete,
        EntryIndex(base.prev_index),
        base.hard_state,
        base.first_batch - 1,
        base.previous_crc,
        base.prev_term,
    )
    joined = 0
    try:
        for position, segment in enumerate(segments):
            following = segments[position + 1] if position + 1 < len(segments) else None
            _check_joint(state, segment, segments[position - 1] if position else None)
            joined += 1
            state.floor = max(state.floor, segment.header.floor)
            _walk_segment(state, segment, following, memory, cache_bytes)
        last = segments[-1]
        commit = state.hard_state.commit
        if commit > state.last_index:
            # Entries are written no later than a commit index that covers them, so a cut loses both or neither.
            reason = f"commit index {commit} lies beyond the end of the log"
            raise _corrupt(last, last.end_offset, reason, state.last_index + 1, commit)
    except WalCorrupt as error:
        if whole:
            raise
        state.damage = error
        state.segments = segments[:joined]
    return state


def _check_joint(state: Replayed, segment: Segment, previous: Segment | None) -> None:
    """Refuse a segment that does not go on where the one before it ended."""
    if previous is None:
        return
    header = segment.header
    if header.sequence != previous.header.sequence + 1:
        reason = f"segment {previous.header.sequence + 1}, which comes before it, is missing"
        raise _corrupt(segment, 0, reason, state.last_index + 1, header.prev_index)
    here = (state.number + 1, state.crc, state.last_index, state.last_term)
    if here != (header.first_batch, header.previous_crc, header.prev_index, header.prev_term):
        reason = f"does not go on where {previous.name} ends"
        raise _corrupt(segment, 0, reason, state.last_index + 1, header.prev_index)


def _walk_segment(state: Replayed, segment: Segment, following: Segment | None, memory: Log, cache_bytes: int) -> None:
    window = _Window(segment.file)
    until = None
    if following is not None and following.header.sequence == segment.header.sequence + 1:
        until = following.header.first_batch - 1
    end_index = state.last_index
    while state.number != until:
        header = decode_header(window.read(segment.end_offset, BATCH_HEADER_BYTES))
        if header is not None and header.salt != segment.header.salt:
            header = None  # what the file held before it was recycled
        if header is None:
            _end(state, segment, None, following, until)
            return
        if header.number != state.number + 1 or header.previous_crc != state.crc or header.first_index > end_index + 1:
            _check_place(state, segment, header)
        found = None
        if header.entries_bytes:
            block = window.read(segment.end_offset + BATCH_HEADER_BYTES, header.entries_bytes)
            found = _read_entries(state, segment, header, block, memory)
            if found is None:
                _end(state, segment, header, following, until)
                return
            memory.evict(cache_bytes)
            end_index = header.last_index
        _accept(state, segment, header, found)


def _accept(state: Replayed, segment: Segment, header: BatchHeader, found: Survey | None) -> None:
    if found is not None:
        position = segment.end_offset + BATCH_HEADER_BYTES
        state.index.append(Extent(found.first_index, found.last_index, segment, position, found.ends))
        state.last_term = found.last_term
        segment.holds_from(found.first_index)
    segment.end_offset += header.size_bytes
    state.hard_state = header.hard_state
    state.floor = max(state.floor, header.floor)
    state.number = header.number
    state.crc = header.crc


def _check_place(state: Replayed, segment: Segment, header: BatchHeader) -> None:
    """Refuse a valid batch that is not the one that was written here; no crash can put it here."""
    offset = segment.end_offset
    lost = (state.last_index + 1, max(state.last_index, header.last_index))
    if header.number != state.number + 1:
        raise _corrupt(segment, offset, f"holds batch {header.number} in place of {state.number + 1}", *lost)
    if header.previous_crc != state.crc:
        raise _corrupt(segment, offset, f"batch {header.number} follows another batch than the one before it", *lost)
    if header.first_index > state.last_index + 1:
        reason = f"entry {header.first_index} after {state.last_index} leaves a gap"
        raise _corrupt(segment, offset, reason, state.last_index + 1, header.first_index - 1)


def _read_entries(state: Replayed, segment: Segment, header: BatchHeader, block: bytes, memory: Log) -> Survey | None:
    """Append a batch's entries to `memory`; None if they are not those that its header vouches for."""
    found = survey([block])
    if found is None or found.entries_bytes != header.entries_bytes or found.entries_crc != header.entries_crc:
        return None
    if (found.first_index, found.last_index) != (header.first_index, header.last_index):
        return None
    try:
        memory.append_block(block)
    except CorruptEntry:
        return None
    except ValueError as error:
        # Sound bytes of a batch that never made sense here.
        lost = (state.last_index + 1, header.last_index)
        raise _corrupt(segment, segment.end_offset, f"batch {header.number}: {error}", *lost) from None
    return found


def _end(
    state: Replayed, segment: Segment, bad: BatchHeader | None, following: Segment | None, until: int | None
) -> None:
    """The walk stops at a place without a batch, or at one with bad entries. Decide whether this is the log's end."""
    behind = list(_headers(segment.file, segment.header.salt, segment.end_offset, segment.header.size_bytes))
    vouched = max([until or 0, *(header.durable for _, header in behind)])
    if vouched > state.number:
        reason = f"batch {state.number + 1} is damaged, batch {vouched} was synced"
        raise _corrupt(segment, segment.end_offset, reason, *_lost(state, bad, behind, following))
    if behind:
        reach = max(offset + header.size_bytes for offset, header in behind)
        state.torn_bytes = min(reach, segment.header.size_bytes) - segment.end_offset


def _lost(
    state: Replayed, bad: BatchHeader | None, behind: list[tuple[int, BatchHeader]], following: Segment | None
) -> tuple[int, int]:
    """Return the range of entries that nothing readable accounts for, larger rather than smaller than it is."""
    if bad is not None and bad.last_index:
        return bad.first_index, bad.last_index
    first = state.last_index + 1
    for _, header in behind:
        if header.last_index:
            if header.first_index < first:  # The log was truncated; how far, only what is lost could tell.
                first = state.hard_state.commit + 1
            return first, header.first_index - 1
    return first, following.header.prev_index if following is not None else state.last_index


# ------------------------------------------------------------------------------------------------------------- files


class _Window:
    """Reads a file from front to back in large pieces and hands out small ones."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._start = 0
        self._data = b""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes at `offset`, fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            self._data = self._file.pread(max(length, _WINDOW_BYTES), offset)
            self._start = offset
            begin = 0
        return self._data[begin : begin + length]


def _open_segment(disk: Disk, directory: str, name: str, cluster_id: bytes, node_id: str) -> Segment:
    """Open a segment and check that it is what its name says, complete and ours."""
    file = disk.open(f"{directory}/{name}")
    try:
        header = decode_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0))
        named = parse_segment_name(name)
        assert named is not None
        if header is None:
            raise WalCorrupt("the segment's header is damaged", file.path, 0, named[1], named[1])
        if header.version != SEGMENT_VERSION:
            raise WalNewer(
                f"{file.path} has format {header.version}; this program knows {SEGMENT_VERSION}: upgrade this node"
            )
        if (header.cluster_id, header.node_id) != (cluster_id, node_id):
            raise WalForeign(
                f"{file.path} was written by node {header.node_id!r} of cluster {header.cluster_id.hex()}; "
                f"this is node {node_id!r} of cluster {cluster_id.hex()}"
            )
        if (header.sequence, header.prev_index + 1) != named:
            reason = f"holds segment {header.sequence}, which its name does not say"
            raise WalCorrupt(reason, file.path, 0, named[1], named[1])
        if file.size_bytes() != header.size_bytes:
            reason = f"has {file.size_bytes()} bytes, of {header.size_bytes}"
            raise WalCorrupt(reason, file.path, file.size_bytes(), named[1], named[1])
    except BaseException:
        file.close()
        raise
    return Segment(file, name, header)


def _close(segments: Sequence[Segment]) -> None:
    for segment in segments:
        segment.file.close()


def _sequence(name: str) -> int:
    named = parse_segment_name(name)
    assert named is not None
    return named[0]


def _floor(last: Segment) -> int:
    """Return the oldest segment that still counts, by the headers alone: the last word on it is in the last segment."""
    window = _Window(last.file)
    floor = last.header.floor
    number = last.header.first_batch - 1
    offset = SEGMENT_HEADER_BYTES
    while header := decode_header(window.read(offset, BATCH_HEADER_BYTES)):
        if header.salt != last.header.salt or header.number != number + 1:
            break
        floor = max(floor, header.floor)
        number = header.number
        offset += header.size_bytes
    return floor


def _headers(file: File, salt: int, offset: int, end: int) -> Iterator[tuple[int, BatchHeader]]:
    """Yield every valid batch header of this salt from `offset` on, wherever it is."""
    salt_bytes = _SALT.pack(salt)
    for start in range(offset, end, _WINDOW_BYTES):
        data = file.pread(_WINDOW_BYTES, start)
        for at in range(0, len(data), BATCH_ALIGN_BYTES):
            if data.startswith(salt_bytes, at + _SALT_OFFSET):
                header = decode_header(data[at : at + BATCH_HEADER_BYTES])
                if header is not None:
                    yield start + at, header


def _keep_copy(disk: Disk, directory: str, segment: Segment, torn_bytes: int) -> str:
    try:
        disk.make_directory(directory)
        names = disk.list_directory(directory)
        number = 1 + max((int(name.partition("-")[0]) for name in names), default=0)
        path = f"{directory}/{number:06d}-{segment.name}-{segment.end_offset}"
        file = disk.create(path)
        try:
            file.pwritev([segment.file.pread(torn_bytes, segment.end_offset)], 0)
            file.sync()
        finally:
            file.close()
        for name in names[: -TORN_COPIES_MAX + 1]:
            disk.unlink(f"{directory}/{name}")
        disk.sync_directory(directory)
    except (OSError, ValueError) as error:
        # For people to look at; that a full disk has no room for it is no reason not to start.
        log.warning("no copy of the torn tail file=%s error=%s", segment.file.path, error)
        return ""
    return path


def _corrupt(segment: Segment, offset: int, reason: str, lost_first: int, lost_last: int) -> WalCorrupt:
    return WalCorrupt(reason, segment.file.path, offset, lost_first, lost_last)
