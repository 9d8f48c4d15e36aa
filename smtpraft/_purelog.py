"""The hot paths in plain Python: the specification of `_fastlog`, and what runs where that is not compiled.

Here the in-memory log; the codecs are in `_purecodec`. `_logformat` says what the bytes are. Integers out of the range
of their field raise OverflowError, values of a wrong type TypeError, in both halves alike.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import final

from smtpraft._logformat import (
    ENTRY_BYTES_MAX,
    ENTRY_CONF_CHANGE,
    ENTRY_CONF_CHANGE_V2,
    ENTRY_HEADER_BYTES,
    ENTRY_NORMAL,
    FRAME_HEADER_BYTES,
    FRAME_HEARTBEAT,
    FRAME_HEARTBEAT_RESPONSE,
    FRAME_VERSION,
    INDEX_MAX,
    Compacted,
    CorruptEntry,
    CorruptFrame,
    NotCached,
    Unavailable,
)
from smtpraft._purecodec import (
    ENTRY_HEADER,
    U8_MAX,
    Buffer,
    FrameDecoder,
    as_bytes,
    block_range,
    commands,
    crc32c,
    decode_entries,
    decode_heartbeat,
    decode_heartbeat_response,
    encode_entries,
    encode_frame,
    encode_heartbeat,
    encode_heartbeat_response,
    encode_sized,
    parse_records,
    proposed,
    quorum_index,
    survey,
    u64,
    unsigned,
)

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
    "commands",
    "crc32c",
    "decode_entries",
    "decode_heartbeat",
    "decode_heartbeat_response",
    "encode_entries",
    "encode_frame",
    "encode_heartbeat",
    "encode_heartbeat_response",
    "proposed",
    "quorum_index",
    "survey",
]


@final
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
        term, stamp, kind = u64(term), u64(stamp), unsigned(kind, U8_MAX)
        if term < self.last_term:
            raise ValueError(f"term {term} after {self.last_term}")
        first = self.last_index + 1
        block, sizes = encode_sized(term, first, stamp, kind, payloads)
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
        """Compare a block with what is here: (first index that is missing or of another term, last of the block).

        The first is 0 when all of it is here already. What lies at or below `prev_index` was committed and counts as
        here. Changes nothing.

        Raises:
            CorruptEntry: the block is.
        """
        differs = 0
        index = 0
        for index, term, *_ in parse_records(as_bytes(block)):
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
        block = as_bytes(block)
        from_index = u64(from_index)
        records = list(parse_records(block))
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
        index = u64(index)
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
        lo, hi = u64(lo), u64(hi)
        self._check_range(lo, hi)
        return self._end(hi) - self._end(lo - 1)

    def offset(self, index: int) -> int:
        """Return the bytes before the record at `index`, in `first_index..last_index + 1`, from a fixed origin.

        Raises:
            Compacted, Unavailable: it lies outside.
        """
        index = u64(index)
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
        lo, hi, max_bytes = u64(lo), u64(hi), u64(max_bytes)
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
        lo, hi = u64(lo), u64(hi)
        return [memoryview(block)[start:end] for block, start, end in self._cached(lo, hi)]

    def entries(self, lo: int, hi: int) -> list[tuple[int, int, int, int, bytes]]:
        """Return (index, term, stamp, kind, payload) of `lo..hi`.

        Raises:
            NotCached: some are no longer in memory.
            ValueError, Compacted, Unavailable: there is no such range here.
        """
        lo, hi = u64(lo), u64(hi)
        entries = []
        for block, start, end in self._cached(lo, hi):
            while start < end:  # Verified on the way in.
                _, size, term, index, stamp, kind, _ = ENTRY_HEADER.unpack_from(block, start)
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
        index, term = u64(index), u64(term)
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
        from_index = u64(from_index)
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
        to_index = u64(to_index)
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
        max_bytes, keep_from = u64(max_bytes), u64(keep_from)
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
        index, term = unsigned(index, INDEX_MAX), u64(term)
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
