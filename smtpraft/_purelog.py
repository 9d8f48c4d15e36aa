"""The hot paths in plain Python: the specification of `_fastlog`, and what runs where that is not compiled.

Entry record, big endian, 36 bytes before the payload; the same bytes on the wire, on disk and in memory:
    crc u32 | size u32 | term u64 | index u64 | stamp u64 | kind u8 | zero u8[3] | payload
`size` is the whole record, header included; `crc` is CRC-32C over bytes 4 to `size`.

A *block* is the bytes of one or more records: indexes one after the other, terms never decreasing.

Frame, big endian, 12 bytes before the head:
    length u32 | head_length u16 | type u8 | version u8 | crc u32 | head | tail
`length` is head and tail together; `crc` is CRC-32C over the first 8 bytes and the head. The tail (entries) checks itself.

Integers out of the range of their field raise OverflowError, values of a wrong type TypeError, in both twins alike.
CRC-32C comes from `google_crc32c` or `crc32c` when one is installed; else from a table, at some 10 MB/s: enough for tests,
too slow to serve mail with.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from operator import index as as_int
from typing import Final

from smtpraft.errors import SmtpRaftError

__all__ = [
    "ENTRY_BYTES_MAX",
    "ENTRY_CONF_CHANGE",
    "ENTRY_CONF_CHANGE_V2",
    "ENTRY_HEADER_BYTES",
    "ENTRY_NORMAL",
    "FRAME_HEADER_BYTES",
    "FRAME_HEARTBEAT",
    "FRAME_HEARTBEAT_RESPONSE",
    "FRAME_VERSION",
    "INDEX_MAX",
    "Compacted",
    "CorruptEntry",
    "CorruptFrame",
    "FrameDecoder",
    "Log",
    "NotCached",
    "Unavailable",
    "block_range",
    "crc32c",
    "decode_entries",
    "decode_heartbeat",
    "decode_heartbeat_response",
    "encode_entries",
    "encode_frame",
    "encode_heartbeat",
    "encode_heartbeat_response",
    "quorum_index",
]

ENTRY_NORMAL: Final = 0
ENTRY_CONF_CHANGE: Final = 1
ENTRY_CONF_CHANGE_V2: Final = 2
ENTRY_HEADER_BYTES: Final = 36
ENTRY_BYTES_MAX: Final = 4 * 1024 * 1024  # A larger size is refused before anything is allocated for it.
INDEX_MAX: Final = 2**64 - 2  # One less than a u64 holds, so that "the index after the last" is one too.

FRAME_HEADER_BYTES: Final = 12
FRAME_VERSION: Final = 1
FRAME_HEARTBEAT: Final = 1
FRAME_HEARTBEAT_RESPONSE: Final = 2

_U8_MAX: Final = 2**8 - 1
_U16_MAX: Final = 2**16 - 1
_U32_MAX: Final = 2**32 - 1
_U64_MAX: Final = 2**64 - 1

_ENTRY_AFTER_CRC: Final = struct.Struct(">IQQQB3x")
_ENTRY_HEADER: Final = struct.Struct(">IIQQQB3s")
_U32: Final = struct.Struct(">I")
_FRAME_BEFORE_CRC: Final = struct.Struct(">IHBB")
_FRAME_HEADER: Final = struct.Struct(">IHBBI")
_HEARTBEAT: Final = struct.Struct(">8Q")
_HEARTBEAT_RESPONSE: Final = struct.Struct(">7Q")

Buffer = bytes | bytearray | memoryview


class CorruptEntry(SmtpRaftError, ValueError):
    """These bytes are no block: a bad checksum or size, a gap in the indexes, a term that decreases, bytes left over."""


class CorruptFrame(SmtpRaftError, ValueError):
    """These bytes are no frame: a bad checksum, version or length. The connection they came from is of no more use."""


class Compacted(SmtpRaftError, LookupError):
    """The index lies before the log; only a snapshot holds it."""


class Unavailable(SmtpRaftError, LookupError):
    """The index lies after the log."""


class NotCached(SmtpRaftError, LookupError):
    """The bytes of that index are no longer in memory: read them from the write-ahead log."""


def _unsigned(value: int, limit: int) -> int:
    number = as_int(value)
    if not 0 <= number <= limit:
        raise OverflowError(f"{number} is not in 0..{limit}")
    return number


def _u64(value: int) -> int:
    return _unsigned(value, _U64_MAX)


def _as_bytes(data: Buffer) -> bytes:
    """Return `data` itself when it is `bytes`, else a copy; `bytes(5)` must not pass for five zeros."""
    return data if isinstance(data, bytes) else bytes(memoryview(data))


# ------------------------------------------------------------------------------------------------------------ checksum


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


def _table_extend() -> Callable[[int, bytes], int]:
    table = _crc32c_table()

    def extend(value: int, data: bytes) -> int:
        crc = value ^ _U32_MAX
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ _U32_MAX

    return extend


def _find_extend() -> Callable[[int, bytes], int]:
    """Return the fastest `extend(crc, data)` at hand."""
    try:
        import google_crc32c
    except ImportError:
        pass
    else:
        if google_crc32c.implementation == "c":
            google_extend: Callable[[int, bytes], int] = google_crc32c.extend
            return google_extend
    try:
        import crc32c as library
    except ImportError:
        return _table_extend()
    return lambda value, data: int(library.crc32c(data, value))


_extend: Final = _find_extend()


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32C (RFC 3720 §B.4) of `data`, or of what had the checksum `value` with `data` after it."""
    contents = _as_bytes(data)
    return _extend(_unsigned(value, _U32_MAX), contents)


# ------------------------------------------------------------------------------------------------------------- entries


def encode_entries(term: int, first_index: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> bytes:
    """Return one block: an entry for each of `payloads`, from `first_index` on, all of one term, stamp and kind.

    Raises:
        ValueError: no payloads, `first_index` is 0, or an entry would be larger than ENTRY_BYTES_MAX.
        OverflowError: a number does not fit its field.
    """
    term, first_index, stamp, kind = _u64(term), _u64(first_index), _u64(stamp), _unsigned(kind, _U8_MAX)
    block, _ = _encode(term, first_index, stamp, kind, payloads)
    return block


def _encode(term: int, first_index: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Return the block and the size of each record."""
    payloads = list(payloads)
    if first_index == 0:
        raise ValueError("entries are counted from 1")
    if not payloads:
        raise ValueError("a block has at least one entry")
    if len(payloads) - 1 > INDEX_MAX - first_index:
        raise OverflowError(f"{len(payloads)} entries from {first_index} on go past the last index")
    parts: list[bytes] = []
    sizes: list[int] = []
    for index, payload in enumerate(payloads, first_index):
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        size = ENTRY_HEADER_BYTES + len(payload)
        if size > ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of {size} bytes is larger than {ENTRY_BYTES_MAX}")
        after_crc = _ENTRY_AFTER_CRC.pack(size, term, index, stamp, kind)
        parts += (_U32.pack(_extend(_extend(0, after_crc), payload)), after_crc, payload)
        sizes.append(size)
    return b"".join(parts), sizes


def _records(block: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (index, term, stamp, kind, start, end) of each record, verified."""
    if not block:
        raise CorruptEntry("a block has at least one entry")
    start = 0
    expected = 0
    last_term = 0
    view = memoryview(block)
    while start < len(block):
        if len(block) - start < ENTRY_HEADER_BYTES:
            raise CorruptEntry(f"{len(block) - start} bytes left over at {start}")
        crc, size, term, index, stamp, kind, zero = _ENTRY_HEADER.unpack_from(block, start)
        end = start + size
        if not ENTRY_HEADER_BYTES <= size <= ENTRY_BYTES_MAX or end > len(block):
            raise CorruptEntry(f"a size of {size} at {start}, where {len(block) - start} bytes are left")
        if _extend(0, bytes(view[start + 4 : end])) != crc:
            raise CorruptEntry(f"bad checksum at {start}, entry {index}")
        if not 1 <= index <= INDEX_MAX or (expected and index != expected):
            raise CorruptEntry(f"entry {index} at {start}, expected {expected or 'an index'}")
        if term < last_term:
            raise CorruptEntry(f"entry {index} has term {term} after {last_term}")
        if zero != b"\0\0\0":
            raise CorruptEntry(f"entry {index} uses reserved bytes")
        yield index, term, stamp, kind, start, end
        start, expected, last_term = end, index + 1, term


def decode_entries(block: Buffer) -> list[tuple[int, int, int, int, bytes]]:
    """Return (index, term, stamp, kind, payload) of each entry of `block`.

    Raises:
        CorruptEntry: any part of it is.
    """
    block = _as_bytes(block)
    return [
        (index, term, stamp, kind, block[start + ENTRY_HEADER_BYTES : end])
        for index, term, stamp, kind, start, end in _records(block)
    ]


def block_range(block: Buffer) -> tuple[int, int, int, int]:
    """Verify all of `block` and return (first index, its term, last index, its term).

    Raises:
        CorruptEntry: any part of it is.
    """
    records = list(_records(_as_bytes(block)))
    (first_index, first_term, *_), (last_index, last_term, *_) = records[0], records[-1]
    return first_index, first_term, last_index, last_term


# ----------------------------------------------------------------------------------------------------------------- log


class Log:
    """The in-memory log: terms and sizes of all entries, and the bytes of the recent ones, in the blocks they came in.

          prev     first                cached_first            last
           |---------|----------------------|---------------------|
           snapshot   terms and sizes only   blocks: bytes as well

    `prev_index` and `prev_term` name the entry before the first: 0 and 0, or where the log was compacted to.
    Ranges `lo..hi` are inclusive; `hi == lo - 1` is the empty one. For one thread.

    Invariant: terms never decrease from `prev_term` to `last_term`.
    Invariant: the blocks hold exactly the entries `cached_first..last_index`, in order.
    """

    def __init__(self, prev_index: int = 0, prev_term: int = 0) -> None:
        self._prev_index = 0
        self._prev_term = 0
        self._origin = 0  # cumulative bytes before the first entry
        self._terms = array("Q")
        self._ends = array("Q")  # cumulative bytes up to the end of each entry
        self._firsts: list[int] = []  # first index of each block
        self._blocks: list[bytes] = []
        self.restore(prev_index, prev_term)

    # Facts.

    @property
    def prev_index(self) -> int:
        """The index before the first; 0 when the log goes back to the beginning."""
        return self._prev_index

    @property
    def prev_term(self) -> int:
        """The term of the entry at `prev_index`."""
        return self._prev_term

    @property
    def first_index(self) -> int:
        """`prev_index + 1`: the first entry here, if there is any."""
        return self._prev_index + 1

    @property
    def last_index(self) -> int:
        """The last entry here; `prev_index` when there is none."""
        return self._prev_index + len(self._terms)

    @property
    def last_term(self) -> int:
        """The term of the entry at `last_index`."""
        return self._terms[-1] if self._terms else self._prev_term

    @property
    def cached_first(self) -> int:
        """The lowest index whose bytes are in memory; `last_index + 1` if there is none."""
        return self._firsts[0] if self._firsts else self.last_index + 1

    @property
    def cached_bytes(self) -> int:
        """Bytes of the entries in memory."""
        return self._end(self.last_index) - self._end(self.cached_first - 1)

    def _end(self, index: int) -> int:
        """Return the cumulative bytes up to the end of the entry at `index`, which is in prev..last."""
        position = index - self._prev_index
        return self._ends[position - 1] if position else self._origin

    def _term(self, index: int) -> int:
        position = index - self._prev_index
        return self._terms[position - 1] if position else self._prev_term

    def _check_range(self, lo: int, hi: int) -> None:
        if lo > hi + 1:
            raise ValueError(f"no range: {lo}..{hi}")
        if lo <= self._prev_index:
            raise Compacted(f"index {lo}, the log begins at {self.first_index}")
        if hi > self.last_index:
            raise Unavailable(f"index {hi}, the log ends at {self.last_index}")

    # Growing.

    def append(self, term: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> bytes:
        """Encode `payloads` as entries after `last_index`, keep them, and return the block: the final bytes.

        Raises:
            ValueError: no payloads, one of them is too large, or `term` is lower than `last_term`.
        """
        term, stamp, kind = _u64(term), _u64(stamp), _unsigned(kind, _U8_MAX)
        if term < self.last_term:
            raise ValueError(f"term {term} after {self.last_term}")
        first = self.last_index + 1
        block, sizes = _encode(term, first, stamp, kind, payloads)
        end = self._end(self.last_index)
        for size in sizes:
            end += size
            self._terms.append(term)
            self._ends.append(end)
        self._firsts.append(first)
        self._blocks.append(block)
        self._check()
        return block

    def match(self, block: Buffer) -> tuple[int, int]:
        """Compare a block with what is here; return (first index that is missing or of another term, last of the block).

        The first is 0 when all of it is here already. What lies at or below `prev_index` was committed and counts as
        here. Changes nothing.

        Raises:
            CorruptEntry: the block is.
        """
        differs = 0
        index = 0
        for index, term, *_ in _records(_as_bytes(block)):
            if not differs and index > self._prev_index and (index > self.last_index or self._term(index) != term):
                differs = index
        return differs, index

    def append_block(self, block: Buffer, from_index: int = 0) -> None:
        """Replace all from the block's first entry, or from `from_index` if that is higher, by the block's entries.

        Raises:
            CorruptEntry: the block is. Nothing has changed.
            ValueError: a gap before the entries, they are at or below `prev_index`, the term before them is higher, or
                `from_index` lies after the block. Nothing has changed.
        """
        block = _as_bytes(block)
        from_index = _u64(from_index)
        records = list(_records(block))
        first = max(records[0][0], from_index)
        if first > records[-1][0]:
            raise ValueError(f"{first} lies after the block, which ends at {records[-1][0]}")
        if first <= self._prev_index:
            raise ValueError(f"entry {first} is not after {self._prev_index}, where the log was compacted to")
        if first > self.last_index + 1:
            raise ValueError(f"entry {first} after {self.last_index} leaves a gap")
        records = records[first - records[0][0] :]
        if records[0][1] < self._term(first - 1):
            raise ValueError(f"entry {first} has term {records[0][1]} after {self._term(first - 1)}")

        self.truncate(first)
        start = records[0][4]
        origin = self._end(first - 1) - start
        for _, term, _, _, _, end in records:
            self._terms.append(term)
            self._ends.append(origin + end)
        self._firsts.append(first)
        self._blocks.append(block[start:])
        self._check()

    # Asking.

    def term(self, index: int) -> int:
        """Return the term of an entry in `prev_index..last_index`.

        Raises:
            Compacted: it lies before them.
            Unavailable: it lies after them.
        """
        index = _u64(index)
        if index < self._prev_index:
            raise Compacted(f"index {index}, the log begins at {self.first_index}")
        if index > self.last_index:
            raise Unavailable(f"index {index}, the log ends at {self.last_index}")
        return self._term(index)

    def size_bytes(self, lo: int, hi: int) -> int:
        """Return the bytes of the records `lo..hi`, in memory or not.

        Raises:
            ValueError, Compacted, Unavailable: there is no such range here.
        """
        lo, hi = _u64(lo), _u64(hi)
        self._check_range(lo, hi)
        return self._end(hi) - self._end(lo - 1)

    def offset(self, index: int) -> int:
        """Return the bytes before the record at `index`, in `first_index..last_index + 1`, from a fixed origin.

        Raises:
            Compacted, Unavailable: it lies outside.
        """
        index = _u64(index)
        if index <= self._prev_index:
            raise Compacted(f"index {index}, the log begins at {self.first_index}")
        if index > self.last_index + 1:
            raise Unavailable(f"index {index}, the log ends at {self.last_index}")
        return self._end(index - 1)

    def upto_bytes(self, lo: int, hi: int, max_bytes: int) -> int:
        """Return the highest index of `lo..hi` such that the records up to it fit in `max_bytes`; `lo` at least.

        Raises:
            ValueError, Compacted, Unavailable: there is no such range here, or it is empty.
        """
        lo, hi, max_bytes = _u64(lo), _u64(hi), _u64(max_bytes)
        self._check_range(lo, hi)
        if lo > hi:
            raise ValueError(f"the range {lo}..{hi} is empty")
        limit = self._end(lo - 1) + max_bytes
        fits = bisect_right(self._ends, limit, lo - self.first_index, hi - self._prev_index)
        return max(lo, self._prev_index + fits)

    def spans(self, lo: int, hi: int) -> list[memoryview]:
        """Return the encoded bytes of `lo..hi`, in order, without a copy. They outlive any change of the log.

        Raises:
            NotCached: some are no longer in memory.
            ValueError, Compacted, Unavailable: there is no such range here.
        """
        lo, hi = _u64(lo), _u64(hi)
        return [memoryview(block)[start:end] for block, start, end in self._cached(lo, hi)]

    def entries(self, lo: int, hi: int) -> list[tuple[int, int, int, int, bytes]]:
        """Return (index, term, stamp, kind, payload) of `lo..hi`.

        Raises:
            NotCached: some are no longer in memory.
            ValueError, Compacted, Unavailable: there is no such range here.
        """
        lo, hi = _u64(lo), _u64(hi)
        entries = []
        for block, start, end in self._cached(lo, hi):
            while start < end:  # Verified on the way in.
                _, size, term, index, stamp, kind, _ = _ENTRY_HEADER.unpack_from(block, start)
                entries.append((index, term, stamp, kind, block[start + ENTRY_HEADER_BYTES : start + size]))
                start += size
        return entries

    def _cached(self, lo: int, hi: int) -> list[tuple[bytes, int, int]]:
        """Return (block, start, end) of each piece of a block that `lo..hi` covers."""
        self._check_range(lo, hi)
        pieces: list[tuple[bytes, int, int]] = []
        if lo > hi:
            return pieces
        if lo < self.cached_first:
            raise NotCached(f"index {lo}, in memory from {self.cached_first} on")
        number = bisect_right(self._firsts, lo) - 1
        while number < len(self._blocks) and self._firsts[number] <= hi:
            block = self._blocks[number]
            origin = self._end(self._firsts[number] - 1)
            start = max(0, self._end(lo - 1) - origin)
            pieces.append((block, start, min(len(block), self._end(hi) - origin)))
            number += 1
        return pieces

    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """Return (index', its term): the highest index' <= `index` whose term is <= `term` (Raft §5.3, fast back-off).

        A pair that no entry of a leader of `term` can contradict: what lies between index' and `index` cannot match.
        The term is 0 when index' lies outside the log, where nothing is known: then index' is `index` if that is
        outside, else the one before `prev_index`.
        """
        index, term = _u64(index), _u64(term)
        if not self._prev_index <= index <= self.last_index:
            return index, 0
        position = bisect_right(self._terms, term, 0, index - self._prev_index)
        if position:
            return self._prev_index + position, self._terms[position - 1]
        if self._prev_term <= term:
            return self._prev_index, self._prev_term
        return self._prev_index - 1, 0

    # Shrinking.

    def truncate(self, from_index: int) -> None:
        """Drop the entries from `from_index` on, if there are any.

        Raises:
            Compacted: `from_index` is at or below `prev_index`.
        """
        from_index = _u64(from_index)
        if from_index <= self._prev_index:
            raise Compacted(f"index {from_index}, the log begins at {self.first_index}")
        if from_index > self.last_index:
            return
        while self._firsts and self._firsts[-1] >= from_index:
            self._firsts.pop()
            self._blocks.pop()
        if self._firsts:
            # A copy, so that the entries dropped do not stay in memory.
            self._blocks[-1] = self._blocks[-1][: self._end(from_index - 1) - self._end(self._firsts[-1] - 1)]
        del self._terms[from_index - self.first_index :]
        del self._ends[from_index - self.first_index :]
        self._check()

    def compact(self, to_index: int) -> None:
        """Drop the entries up to and with `to_index`, which becomes `prev_index`.

        Raises:
            Compacted: `to_index` lies before `prev_index`.
            Unavailable: it lies after `last_index`.
        """
        to_index = _u64(to_index)
        term = self.term(to_index)
        while len(self._firsts) > 1 and self._firsts[1] <= to_index + 1:
            self._drop_oldest_block()
        if self._firsts and to_index == self.last_index:
            self._drop_oldest_block()
        elif self._firsts and self._firsts[0] <= to_index:
            # A copy, so that the entries dropped do not stay in memory.
            self._blocks[0] = self._blocks[0][self._end(to_index) - self._end(self._firsts[0] - 1) :]
            self._firsts[0] = to_index + 1
        count = to_index - self._prev_index
        self._origin = self._end(to_index)
        del self._terms[:count]
        del self._ends[:count]
        self._prev_index, self._prev_term = to_index, term
        self._check()

    def evict(self, max_bytes: int, keep_from: int = 0) -> None:
        """Forget the bytes of the oldest entries, a block at a time, until `cached_bytes` is at most `max_bytes`.

        Terms and sizes stay. A block that reaches to `keep_from` or beyond stays, unless `keep_from` is 0.
        """
        max_bytes, keep_from = _u64(max_bytes), _u64(keep_from)
        while self.cached_bytes > max_bytes:
            last_of_block = self._firsts[1] - 1 if len(self._firsts) > 1 else self.last_index
            if 0 < keep_from <= last_of_block:
                break
            self._drop_oldest_block()
        self._check()

    def _drop_oldest_block(self) -> None:
        del self._firsts[0]
        del self._blocks[0]

    def restore(self, index: int, term: int) -> None:
        """Empty the log; it goes on after the entry `index` of `term`, which a snapshot holds.

        Raises:
            ValueError: there is a term but no index.
        """
        index, term = _unsigned(index, INDEX_MAX), _u64(term)
        if index == 0 and term != 0:
            raise ValueError(f"nothing before the first entry has a term, least of all {term}")
        self._origin = self._end(self.last_index)  # Offsets never repeat, not even for entries that replace others.
        self._prev_index, self._prev_term = index, term
        del self._terms[:], self._ends[:], self._firsts[:], self._blocks[:]

    def _check(self) -> None:
        assert len(self._terms) == len(self._ends)
        assert len(self._firsts) == len(self._blocks)
        assert self.cached_first > self._prev_index
        assert self.last_term >= self._prev_term


# -------------------------------------------------------------------------------------------------------------- frames


def encode_frame(type: int, head: bytes, tail_bytes: int = 0) -> bytes:
    """Return the header and the head of a frame; the caller writes the `tail_bytes` bytes of the tail after it.

    Raises:
        ValueError: the head is longer than 65535 bytes.
        OverflowError: head and tail together are longer than a u32 counts.
    """
    type, tail_bytes = _unsigned(type, _U8_MAX), _unsigned(tail_bytes, _U32_MAX)
    if not isinstance(head, bytes):
        raise TypeError("a head is bytes")
    if len(head) > _U16_MAX:
        raise ValueError(f"a head of {len(head)} bytes")
    length = _unsigned(len(head) + tail_bytes, _U32_MAX)
    before_crc = _FRAME_BEFORE_CRC.pack(length, len(head), type, FRAME_VERSION)
    return before_crc + _U32.pack(_extend(_extend(0, before_crc), head)) + head


class FrameDecoder:
    """Cuts a byte stream into frames of at most `max_bytes` (head and tail) and one version.

    A bad header is refused before anything is allocated for the frame, a bad head before its tail is waited for. After
    a CorruptFrame the decoder is of no more use: the stream has lost its step.
    """

    def __init__(self, max_bytes: int, version: int = FRAME_VERSION) -> None:
        self._max_bytes = _u64(max_bytes)
        self._version = _unsigned(version, _U8_MAX)
        self._buffer = bytearray()
        self._checked = False  # the frame at the start of the buffer: header and head are good
        self._broken = False

    def feed(self, data: Buffer) -> list[tuple[int, bytes, bytes]]:
        """Take what arrived, in pieces of any size, and return (type, head, tail) of each frame that is complete.

        Raises:
            CorruptFrame: the stream holds something else; frames that were complete before it are dropped with it.
        """
        self._buffer += memoryview(data)
        if self._broken:
            raise CorruptFrame("the stream was corrupt before")
        try:
            return self._frames()
        except CorruptFrame:
            self._broken = True
            self._buffer.clear()
            raise

    def _frames(self) -> list[tuple[int, bytes, bytes]]:
        buffer = self._buffer
        frames: list[tuple[int, bytes, bytes]] = []
        start = 0
        while len(buffer) - start >= FRAME_HEADER_BYTES:
            length, head_length, type, version, crc = _FRAME_HEADER.unpack_from(buffer, start)
            head_start = start + FRAME_HEADER_BYTES
            tail_start = head_start + head_length
            end = head_start + length
            if not self._checked:
                if version != self._version:
                    raise CorruptFrame(f"version {version}, expected {self._version}")
                if length > self._max_bytes:
                    raise CorruptFrame(f"a frame of {length} bytes, at most {self._max_bytes} are taken")
                if head_length > length:
                    raise CorruptFrame(f"a head of {head_length} bytes in a frame of {length}")
                if len(buffer) < tail_start:
                    break
                covered = bytes(buffer[start : start + 8] + buffer[head_start:tail_start])
                if _extend(0, covered) != crc:
                    raise CorruptFrame("bad checksum")
                self._checked = True
            if len(buffer) < end:
                break
            frames.append((type, bytes(buffer[head_start:tail_start]), bytes(buffer[tail_start:end])))
            self._checked = False
            start = end
        del buffer[:start]
        return frames


# ---------------------------------------------------------------------------------------------------------- heartbeats


def encode_heartbeat(
    term: int,
    commit: int,
    read_context: int,
    retain_index: int,
    lease_nonce: int,
    lease_index: int,
    digest_index: int,
    digest: int,
) -> bytes:
    """Return a complete heartbeat frame: the eight numbers as u64, in this order."""
    fields = (term, commit, read_context, retain_index, lease_nonce, lease_index, digest_index, digest)
    return encode_frame(FRAME_HEARTBEAT, _HEARTBEAT.pack(*map(_u64, fields)))


def decode_heartbeat(head: Buffer) -> tuple[int, int, int, int, int, int, int, int]:
    """Return what `encode_heartbeat` was given, from the head of its frame.

    Raises:
        CorruptFrame: the head has another length.
    """
    head = _as_bytes(head)
    if len(head) != _HEARTBEAT.size:
        raise CorruptFrame(f"a heartbeat of {len(head)} bytes")
    fields: tuple[int, int, int, int, int, int, int, int] = _HEARTBEAT.unpack(head)
    return fields


def encode_heartbeat_response(
    term: int,
    read_context: int,
    lease_nonce: int,
    applied_index: int,
    digest_index: int,
    digest: int,
    disk_lag_ms: int,
) -> bytes:
    """Return a complete frame that answers a heartbeat: the seven numbers as u64, in this order."""
    fields = (term, read_context, lease_nonce, applied_index, digest_index, digest, disk_lag_ms)
    return encode_frame(FRAME_HEARTBEAT_RESPONSE, _HEARTBEAT_RESPONSE.pack(*map(_u64, fields)))


def decode_heartbeat_response(head: Buffer) -> tuple[int, int, int, int, int, int, int]:
    """Return what `encode_heartbeat_response` was given, from the head of its frame.

    Raises:
        CorruptFrame: the head has another length.
    """
    head = _as_bytes(head)
    if len(head) != _HEARTBEAT_RESPONSE.size:
        raise CorruptFrame(f"a heartbeat response of {len(head)} bytes")
    fields: tuple[int, int, int, int, int, int, int] = _HEARTBEAT_RESPONSE.unpack(head)
    return fields


# -------------------------------------------------------------------------------------------------------------- quorum


def quorum_index(matched: Sequence[int]) -> int:
    """Return the highest log index that a majority of one set of voters has stored (Raft §5.3).

    `matched` has one index per voter, the leader's own included, in any order. The caller also checks the entry's term:
    an earlier term's entry is never committed by counting (Raft §5.4.2).

    Raises:
        ValueError: `matched` is empty; a quorum of nobody decides nothing.
    """
    indexes = sorted(map(_u64, matched))
    if not indexes:
        raise ValueError("a quorum of nobody decides nothing")
    return indexes[(len(indexes) - 1) // 2]
