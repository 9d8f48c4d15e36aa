"""One write of the log: a header that vouches for what is behind it, then the entries' own bytes.

Batch, big endian, at a multiple of 4096 in its segment, 152 bytes before the entries, zeros after them up to the next:
    magic u32 | crc u32 | salt u64 | number u64 | durable u64 | first_index u64 | last_index u64 | floor u64 |
    entries_bytes u32 | entries_crc u32 | previous_crc u32 | vote_length u8 | zero u8[3] |
    term u64 | commit u64 | vote u8[64] | entries

`crc` is CRC-32C over bytes 8 to 152. `entries_crc` is CRC-32C over the `crc` fields of the entries, in order: it binds
these entries to this header without reading their bytes a second time; each entry checks its own.

    number         1 for a log's first batch, then one more each; never used again, but for a batch lost in a torn tail
    durable        the last batch that was synced when this one was written: all up to it must be there for ever after
    first_index    0 and 0 when the batch has no entries; if not after the last so far, the rest is replaced
    floor          sequence of the oldest segment that still counts; those before it were compacted
    previous_crc   `crc` of batch `number - 1`
    salt           of the segment, so that what a recycled file held before never passes for a batch of today
    term, commit, vote   the hard state as of this batch (Raft Figure 2), in every batch

Whole pages, for three reasons. A torn write, whatever it does to the page it tears, harms no batch written before it. A
page that is replaced whole need not be read from the disk first, which the kernel does when a recycled segment has left
its cache. And a page that is lost or damaged never takes a batch and the one that vouches for it together.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

from smtpraft import fastlog
from smtpraft.fastlog import crc32c
from smtpraft.storage.disk import Buffer

BATCH_MAGIC: Final = b"SRWB"
BATCH_HEADER_BYTES: Final = 152
BATCH_ALIGN_BYTES: Final = 4096
VOTE_BYTES_MAX: Final = 64

_CHECKED: Final = struct.Struct(">QQQQQQIIIB3xQQ64s")
_PREFIX: Final = struct.Struct(">4sI")


class HardState(NamedTuple):
    """What must be on disk before an answer leaves (Raft Figure 2). `commit` may lag; term and vote may not."""

    term: int = 0
    vote: str = ""
    commit: int = 0


class BatchHeader(NamedTuple):
    """The header of one batch; the module's docstring says what the fields mean."""

    salt: int
    number: int
    durable: int
    first_index: int
    last_index: int
    floor: int
    entries_bytes: int
    entries_crc: int
    previous_crc: int
    hard_state: HardState
    crc: int = 0
    """Filled in by `decode_header`; `encode_header` computes its own."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole batch: header, entries and what aligns the next one."""
        return batch_size_bytes(self.entries_bytes)


def batch_size_bytes(entries_bytes: int) -> int:
    """Return the bytes that a batch with so many bytes of entries takes."""
    return -(-(BATCH_HEADER_BYTES + entries_bytes) // BATCH_ALIGN_BYTES) * BATCH_ALIGN_BYTES


def encode_header(header: BatchHeader) -> tuple[bytes, int]:
    """Return the header's bytes and its checksum."""
    state = header.hard_state
    vote = state.vote.encode()
    if len(vote) > VOTE_BYTES_MAX:
        raise ValueError(f"the vote {state.vote!r} is longer than {VOTE_BYTES_MAX} bytes")
    checked = _CHECKED.pack(
        header.salt,
        header.number,
        header.durable,
        header.first_index,
        header.last_index,
        header.floor,
        header.entries_bytes,
        header.entries_crc,
        header.previous_crc,
        len(vote),
        state.term,
        state.commit,
        vote,
    )
    crc = crc32c(checked)
    return _PREFIX.pack(BATCH_MAGIC, crc) + checked, crc


def decode_header(data: Buffer) -> BatchHeader | None:
    """Return the header at the start of `data`, or None if there is none or it is damaged."""
    if len(data) < BATCH_HEADER_BYTES:
        return None
    magic, crc = _PREFIX.unpack_from(data)
    if magic != BATCH_MAGIC or crc32c(data[_PREFIX.size : BATCH_HEADER_BYTES]) != crc:
        return None
    (
        salt,
        number,
        durable,
        first_index,
        last_index,
        floor,
        entries_bytes,
        entries_crc,
        previous_crc,
        vote_length,
        term,
        commit,
        vote,
    ) = _CHECKED.unpack_from(data, _PREFIX.size)
    hard_state = HardState(term, vote[:vote_length].decode(), commit)
    return BatchHeader(
        salt, number, durable, first_index, last_index, floor, entries_bytes, entries_crc, previous_crc, hard_state, crc
    )


class Survey(NamedTuple):
    """What a walk along the records of some entries found. Checks sizes and numbers, not the records' checksums."""

    first_index: int
    last_index: int
    first_term: int
    last_term: int
    entries_bytes: int
    entries_crc: int
    ends: array[int]
    """Where each record ends, in bytes from the first one."""


def survey(spans: Sequence[Buffer]) -> Survey | None:
    """Walk along encoded entries, given in pieces of whole records; None if they are not that."""
    found = fastlog.survey(spans)
    if found is None:
        return None
    ends = array("I")
    ends.frombytes(found[6])
    return Survey(*found[:6], ends)


def header_of(
    found: Survey | None, salt: int, number: int, durable: int, floor: int, previous_crc: int, hard_state: HardState
) -> BatchHeader:
    """Return the header of a batch with these entries, or with none."""
    if found is None:
        return BatchHeader(salt, number, durable, 0, 0, floor, 0, 0, previous_crc, hard_state)
    return BatchHeader(
        salt,
        number,
        durable,
        found.first_index,
        found.last_index,
        floor,
        found.entries_bytes,
        found.entries_crc,
        previous_crc,
        hard_state,
    )
