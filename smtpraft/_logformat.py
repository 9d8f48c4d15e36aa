"""What both halves of `fastlog` share: the bytes, the limits and the errors.

Entry record, big endian, 36 bytes before the payload; the same bytes on the wire, on disk and in memory:
    crc u32 | size u32 | term u64 | index u64 | stamp u64 | kind u8 | zero u8[3] | payload
`size` is the whole record, header included; `crc` is CRC-32C over bytes 4 to `size`.

A *block* is the bytes of one or more records: indexes one after the other, terms never decreasing.

Frame, big endian, 12 bytes before the head:
    length u32 | head_length u16 | type u8 | version u8 | crc u32 | head | tail
`length` is head and tail together; `crc` is CRC-32C over the first 8 bytes and the head. The tail, which is entries,
checks itself.

A *command*, as `cluster.envelope` writes it, is the payload of a normal entry:
    tag u8 = 1 | session u64 | seq u64 | done_below u64 | data

Heartbeat: a frame of type 1 whose head is 9 u64; its response: a frame of type 2 whose head is 8 u64; no tail.
"""

from __future__ import annotations

from typing import Final

from smtpraft.errors import SmtpRaftError

ENTRY_NORMAL: Final = 0
ENTRY_CONF_CHANGE: Final = 1
ENTRY_CONF_CHANGE_V2: Final = 2
ENTRY_HEADER_BYTES: Final = 36
COMMAND_TAG: Final = 1
COMMAND_HEADER_BYTES: Final = 25
COMMANDS_MAX: Final = 128  # are read in one call: other threads wait for the interpreter that long
ENTRY_BYTES_MAX: Final = 4 * 1024 * 1024  # A larger size is refused before anything is allocated for it.
INDEX_MAX: Final = 2**64 - 2  # One less than a u64 holds, so that "the index after the last" is one too.

FRAME_HEADER_BYTES: Final = 12
FRAME_VERSION: Final = 1
FRAME_HEARTBEAT: Final = 1
FRAME_HEARTBEAT_RESPONSE: Final = 2


class CorruptEntry(SmtpRaftError, ValueError):
    """These bytes are no block: a bad checksum or size, a gap in the indexes, a decreasing term, bytes left over."""


class CorruptFrame(SmtpRaftError, ValueError):
    """These bytes are no frame: a bad checksum, version or length. The connection they came from is of no more use."""


class Compacted(SmtpRaftError, LookupError):
    """The index lies before the log; only a snapshot holds it."""


class Unavailable(SmtpRaftError, LookupError):
    """The index lies after the log."""


class NotCached(SmtpRaftError, LookupError):
    """The bytes of that index are no longer in memory: read them from the write-ahead log."""
