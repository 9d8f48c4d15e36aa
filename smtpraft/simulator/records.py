"""Reading encoded entries by their headers, as the log holds them; what a record is says `fastlog`."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from smtpraft.fastlog import ENTRY_HEADER_BYTES, ENTRY_NORMAL

_RECORD: Final = struct.Struct(">IIQQQB")  # crc | size | term | index | stamp | kind

Span = bytes | memoryview


class Mark(NamedTuple):
    """What tells one entry from another of the same index: its term, and the checksum of its bytes."""

    term: int
    crc: int


def marks(spans: Sequence[Span]) -> Iterator[tuple[int, Mark]]:
    """Yield (index, mark) of each record."""
    unpack = _RECORD.unpack_from
    for span in spans:
        at, end = 0, len(span)
        while at < end:
            crc, size, term, index, _, _ = unpack(span, at)
            yield index, Mark(term, crc)
            at += size


def changes(spans: Sequence[Span]) -> list[int]:
    """Return the indexes of the records that change the members."""
    found = []
    for span in spans:
        at, end = 0, len(span)
        while at < end:
            _, size, _, index, _, kind = _RECORD.unpack_from(span, at)
            if kind != ENTRY_NORMAL:
                found.append(index)
            at += size
    return found


class Committed(NamedTuple):
    """An entry that is to be applied."""

    at: int
    mark: Mark
    stamp: int
    kind: int
    payload: bytes


def committed(spans: Sequence[Span]) -> Iterator[Committed]:
    """Yield each record whole."""
    unpack = _RECORD.unpack_from
    for span in spans:
        at, end = 0, len(span)
        while at < end:
            crc, size, term, index, stamp, kind = unpack(span, at)
            yield Committed(index, Mark(term, crc), stamp, kind, bytes(span[at + ENTRY_HEADER_BYTES : at + size]))
            at += size
