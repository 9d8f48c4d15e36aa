"""A segment of the log: one file, zero-filled ahead and recycled, and where the entries are in it.

Header, one block of 4096 bytes, big endian, zeros after the fields:
    magic u8[8] | version u32 | crc u32 | cluster_id u8[16] | sequence u64 | salt u64 | floor u64 |
    first_batch u64 | previous_crc u32 | node_length u8 | vote_length u8 | zero u16 |
    size_bytes u64 | prev_index u64 | prev_term u64 | term u64 | commit u64 | node u8[64] | vote u8[64]

`crc` is CRC-32C over the block without the four bytes of the checksum itself. Every version keeps the first 16 bytes
and the checksum, so that an old program can tell a newer format from a damaged one.

    first_batch, previous_crc   the batch that this segment begins with, and the checksum of the one before it. All
                                before it was synced before this header was written
    size_bytes                  of the file, so that a file cut short is noticed
    prev_index, prev_term       the last entry before this segment
    floor                       as in a batch
    term, commit, vote          the hard state, restated

Batches follow from offset 4096 on. A batch never straddles segments.

The header is written and synced under a spare's name; only then does the file become a segment, by rename. So a segment
whose header cannot be read is never the trace of a crash: it is damage.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from smtpraft.fastlog import crc32c
from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Disk, File

SEGMENT_MAGIC: Final = b"SMTPRWAL"
SEGMENT_VERSION: Final = 1
SEGMENT_HEADER_BYTES: Final = 4096
CLUSTER_ID_BYTES: Final = 16

_PREFIX: Final = struct.Struct(">8sI")
_CRC: Final = struct.Struct(">I")
_FIELDS: Final = struct.Struct(">16sQQQQIBB2xQQQQQ64s64s")
_FIELDS_OFFSET: Final = 16

_SEGMENT_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first block of a segment; the module's docstring says what the fields mean."""

    cluster_id: bytes
    node_id: str
    sequence: int
    salt: int
    floor: int
    first_batch: int
    previous_crc: int
    size_bytes: int
    prev_index: int
    prev_term: int
    hard_state: HardState
    version: int = SEGMENT_VERSION


@dataclass(slots=True)
class Segment:
    """A segment in use: its file, and what a compaction must know of it."""

    file: File
    name: str
    header: SegmentHeader
    end_offset: int = SEGMENT_HEADER_BYTES
    """Where the next batch goes."""
    lowest_first: int = 0
    """Lowest first index of its batches with entries; 0 when it has none."""
    readers: int = 0
    """Reads under way; its file is not given away before they are done."""

    def holds_from(self, first_index: int) -> None:
        """Note that a batch with entries from `first_index` on was written here."""
        self.lowest_first = min(self.lowest_first or first_index, first_index)


def segment_name(sequence: int, first_index: int) -> str:
    """Return the file name of a segment; names sort by sequence."""
    return f"{sequence:016x}-{first_index:016x}.wal"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """Return (sequence, first index), or None if this is no segment's name."""
    found = _SEGMENT_NAME.fullmatch(name)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def encode_segment_header(header: SegmentHeader) -> bytes:
    """Return the 4096 bytes of a segment's first block."""
    node = header.node_id.encode()
    vote = header.hard_state.vote.encode()
    if len(header.cluster_id) != CLUSTER_ID_BYTES:
        raise ValueError(f"a cluster id has {CLUSTER_ID_BYTES} bytes, not {len(header.cluster_id)}")
    if len(node) > 64 or len(vote) > 64:
        raise ValueError("node ids are at most 64 bytes long")
    fields = _FIELDS.pack(
        header.cluster_id,
        header.sequence,
        header.salt,
        header.floor,
        header.first_batch,
        header.previous_crc,
        len(node),
        len(vote),
        header.size_bytes,
        header.prev_index,
        header.prev_term,
        header.hard_state.term,
        header.hard_state.commit,
        node,
        vote,
    ).ljust(SEGMENT_HEADER_BYTES - _FIELDS_OFFSET, b"\0")
    prefix = _PREFIX.pack(SEGMENT_MAGIC, header.version)
    return prefix + _CRC.pack(crc32c(fields, crc32c(prefix))) + fields


def decode_segment_header(block: bytes) -> SegmentHeader | None:
    """Return the header in a segment's first block, or None if it is damaged.

    Of a version that is not ours only `version` means anything.
    """
    if len(block) != SEGMENT_HEADER_BYTES:
        return None
    magic, version = _PREFIX.unpack_from(block)
    (crc,) = _CRC.unpack_from(block, _PREFIX.size)
    if magic != SEGMENT_MAGIC or crc32c(block[_FIELDS_OFFSET:], crc32c(block[: _PREFIX.size])) != crc:
        return None
    if version != SEGMENT_VERSION:
        return SegmentHeader(b"", "", 0, 0, 0, 0, 0, 0, 0, 0, HardState(), version)
    (
        cluster_id,
        sequence,
        salt,
        floor,
        first_batch,
        previous_crc,
        node_length,
        vote_length,
        size_bytes,
        prev_index,
        prev_term,
        term,
        commit,
        node,
        vote,
    ) = _FIELDS.unpack_from(block, _FIELDS_OFFSET)
    return SegmentHeader(
        cluster_id,
        node[:node_length].decode(),
        sequence,
        salt,
        floor,
        first_batch,
        previous_crc,
        size_bytes,
        prev_index,
        prev_term,
        HardState(term, vote[:vote_length].decode(), commit),
    )


def begin_segment(disk: Disk, directory: str, name: str, header: SegmentHeader) -> Segment:
    """Turn the file `name` into a segment, durably: a header first, then the name, then its sync.

    Raises:
        OSError: the disk failed; the file may have either name.
    """
    target = segment_name(header.sequence, header.prev_index + 1)
    file = disk.open(f"{directory}/{name}")
    try:
        file.pwritev([encode_segment_header(header)], 0)
        file.sync()
    finally:
        file.close()
    disk.rename(f"{directory}/{name}", f"{directory}/{target}")
    disk.sync_directory(directory)  # A new segment's name lives there, not in the file.
    return Segment(disk.open(f"{directory}/{target}"), target, header)
