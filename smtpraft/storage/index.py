"""Where the entries are on disk: for every batch with entries one extent, in the order of their indexes."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from smtpraft.fastlog import CorruptEntry, block_range
from smtpraft.storage.errors import WalCorrupt
from smtpraft.storage.segment import Segment


class Extent(NamedTuple):
    """The entries `first..last` of one batch, in a piece from `position` on; `ends` says where each one ends in it."""

    first: int
    last: int
    segment: Segment
    position: int
    ends: array[int]

    def range(self, lo: int, hi: int) -> tuple[int, int]:
        """Return (offset in the segment, length) of those entries of `lo..hi` that are here."""
        start = self.ends[lo - self.first - 1] if lo > self.first else 0
        return self.position + start, self.ends[min(hi, self.last) - self.first] - start


class EntryIndex:
    """The extents of a log. Not safe for threads: the log holds a lock around every call.

    Invariant: extents are contiguous, the first one begins at `first_index`, the last one ends at `last_index`.
    """

    def __init__(self, prev_index: int) -> None:
        self._first_index = prev_index + 1
        self._firsts: list[int] = []
        self._extents: list[Extent] = []

    @property
    def first_index(self) -> int:
        """The lowest index here, if there is any."""
        return self._first_index

    @property
    def last_index(self) -> int:
        """The highest index here; one less than `first_index` when there is none."""
        return self._extents[-1].last if self._extents else self._first_index - 1

    def append(self, extent: Extent) -> None:
        """Add an extent, in place of whatever is there from its first entry on (a truncation)."""
        assert self._first_index <= extent.first <= self.last_index + 1
        while self._extents and self._extents[-1].first >= extent.first:
            self._firsts.pop()
            self._extents.pop()
        if self._extents and self._extents[-1].last >= extent.first:
            self._extents[-1] = self._extents[-1]._replace(last=extent.first - 1)
        self._firsts.append(extent.first)
        self._extents.append(extent)

    def find(self, lo: int, hi: int) -> list[Extent]:
        """Return the extents that hold `lo..hi`, which are all here."""
        assert self._first_index <= lo <= hi <= self.last_index
        begin = bisect_right(self._firsts, lo) - 1
        return self._extents[begin : bisect_right(self._firsts, hi)]

    def drop_through(self, prev_index: int) -> None:
        """Forget the entries up to `prev_index`, with which an extent ends."""
        count = bisect_right(self._firsts, prev_index)
        assert not count or self._extents[count - 1].last <= prev_index
        del self._firsts[:count], self._extents[:count]
        self._first_index = prev_index + 1


def read_extent(extent: Extent, lo: int, hi: int, fresh: bool = False) -> tuple[bytes, int]:
    """Return the entries `lo..hi` of one extent, verified, and the term of the last.

    Raises:
        WalCorrupt: what is there is not what was written.
    """
    offset, length = extent.range(lo, hi)
    if fresh:
        extent.segment.file.drop_cache()
    piece = extent.segment.file.pread(length, offset)
    try:
        first, _, last, last_term = block_range(piece)
    except CorruptEntry as error:
        raise WalCorrupt(f"an entry is damaged: {error}", extent.segment.file.path, offset, lo, hi) from None
    if (first, last) != (lo, hi):
        raise WalCorrupt(f"holds entries {first}..{last} instead", extent.segment.file.path, offset, lo, hi)
    return piece, last_term


def compactable(segments: Sequence[Segment], last_index: int, to_index: int) -> int:
    """Return how many of the oldest segments are not needed for what comes after `to_index`.

    The log can begin with a segment only if no truncation in it, or later, reaches back before it.
    """
    lowest = last_index + 1
    for position in range(len(segments) - 1, 0, -1):
        segment = segments[position]
        lowest = min(lowest, segment.lowest_first or lowest)
        if segment.header.prev_index <= to_index and segment.header.prev_index < lowest:
            return position
    return 0
