"""Checksum, entries, frames, heartbeats and the quorum tally in plain Python; see `_purelog`.

CRC-32C comes from `google_crc32c` or `crc32c` when one is installed; else from a table, at some 10 MB/s: enough for
tests, too slow to serve mail with.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from operator import index as as_int
from typing import Final, final

from smtpraft._logformat import (
    COMMAND_HEADER_BYTES,
    COMMAND_TAG,
    COMMANDS_MAX,
    ENTRY_BYTES_MAX,
    ENTRY_HEADER_BYTES,
    ENTRY_NORMAL,
    FRAME_HEADER_BYTES,
    FRAME_HEARTBEAT,
    FRAME_HEARTBEAT_RESPONSE,
    FRAME_VERSION,
    INDEX_MAX,
    CorruptEntry,
    CorruptFrame,
)

Buffer = bytes | bytearray | memoryview

U8_MAX: Final = 2**8 - 1
U16_MAX: Final = 2**16 - 1
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1

ENTRY_HEADER: Final = struct.Struct(">IIQQQB3s")
_ENTRY_AFTER_CRC: Final = struct.Struct(">IQQQB3x")
_COMMAND: Final = struct.Struct(">BQQQ")
_U32: Final = struct.Struct(">I")
_FRAME_BEFORE_CRC: Final = struct.Struct(">IHBB")
_FRAME_HEADER: Final = struct.Struct(">IHBBI")
_HEARTBEAT: Final = struct.Struct(">9Q")
_HEARTBEAT_RESPONSE: Final = struct.Struct(">8Q")


def unsigned(value: int, limit: int) -> int:
    number = as_int(value)
    if not 0 <= number <= limit:
        raise OverflowError(f"{number} is not in 0..{limit}")
    return number


def u64(value: int) -> int:
    return unsigned(value, U64_MAX)


def as_bytes(data: Buffer) -> bytes:
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
        crc = value ^ U32_MAX
        for byte in data:
            crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        return crc ^ U32_MAX

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
    contents = as_bytes(data)
    return _extend(unsigned(value, U32_MAX), contents)


# ------------------------------------------------------------------------------------------------------------- entries


def encode_entries(term: int, first_index: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> bytes:
    """Return one block: an entry for each of `payloads`, from `first_index` on, all of one term, stamp and kind.

    Raises:
        ValueError: no payloads, `first_index` is 0, or an entry would be larger than ENTRY_BYTES_MAX.
        OverflowError: a number does not fit its field.
    """
    term, first_index, stamp, kind = u64(term), u64(first_index), u64(stamp), unsigned(kind, U8_MAX)
    block, _ = encode_sized(term, first_index, stamp, kind, payloads)
    return block


def encode_sized(
    term: int, first_index: int, stamp: int, kind: int, payloads: Sequence[bytes]
) -> tuple[bytes, list[int]]:
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


def parse_records(block: bytes) -> Iterator[tuple[int, int, int, int, int, int]]:
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
        crc, size, term, index, stamp, kind, zero = ENTRY_HEADER.unpack_from(block, start)
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
    block = as_bytes(block)
    return [
        (index, term, stamp, kind, block[start + ENTRY_HEADER_BYTES : end])
        for index, term, stamp, kind, start, end in parse_records(block)
    ]


def survey(spans: Sequence[Buffer]) -> tuple[int, int, int, int, int, int, bytes] | None:
    """Walk along encoded entries, given in pieces of whole records; None if they are not that.

    Returns first and last index, first and last term, bytes, the CRC-32C of the records' `crc` fields in their order,
    and where each record ends, from the first one on, as u32 in the machine's order. Looks at sizes and at the first
    and last numbers, not at the records' checksums.

    Raises:
        OverflowError: an end is beyond 4 GiB.
    """
    checksums: list[bytes] = []
    ends = array("I")
    base = 0
    first_index = first_term = last_index = last_term = 0
    for span in spans:
        block = as_bytes(span)
        start = 0
        while start < len(block):
            if len(block) - start < ENTRY_HEADER_BYTES:
                return None
            _, size, last_term, last_index, _, _, _ = ENTRY_HEADER.unpack_from(block, start)
            if size < ENTRY_HEADER_BYTES or size > len(block) - start:
                return None
            if not checksums:
                first_index, first_term = last_index, last_term
            checksums.append(block[start : start + 4])
            start += size
            ends.append(base + start)
        base += len(block)
    if not checksums or (last_index - first_index + 1) % (1 << 64) != len(checksums):
        return None
    return first_index, last_index, first_term, last_term, base, crc32c(b"".join(checksums)), ends.tobytes()


def block_range(block: Buffer) -> tuple[int, int, int, int]:
    """Verify all of `block` and return (first index, its term, last index, its term).

    Raises:
        CorruptEntry: any part of it is.
    """
    records = list(parse_records(as_bytes(block)))
    (first_index, first_term, *_), (last_index, last_term, *_) = records[0], records[-1]
    return first_index, first_term, last_index, last_term


def _walk(block: Buffer, start: int = 0) -> Iterator[tuple[int, int, int, int, int, memoryview, bool]]:
    """Yield (index, term, stamp, crc, kind, payload, is it a command) of each record, by its sizes alone."""
    view = memoryview(as_bytes(block))
    while start < len(view):
        left = len(view) - start
        if left < ENTRY_HEADER_BYTES:
            raise CorruptEntry("no whole entry")
        crc, size, term, index, stamp, kind, _ = ENTRY_HEADER.unpack_from(view, start)
        if not ENTRY_HEADER_BYTES <= size <= left:
            raise CorruptEntry("no whole entry")
        payload = view[start + ENTRY_HEADER_BYTES : start + size]
        is_command = kind == ENTRY_NORMAL and len(payload) >= COMMAND_HEADER_BYTES and payload[0] == COMMAND_TAG
        is_command = is_command and _COMMAND.unpack_from(payload)[1] != 0  # which no session is
        yield index, term, stamp, crc, kind, payload, is_command
        start += size


def commands(block: Buffer, start: int = 0) -> tuple[list[tuple[int, int, int, int, int, int, int, int, bytes]], int]:
    """Return (index, term, stamp, crc, kind, session, seq, done_below, data) of each of the entries from `start` on, at
    most `COMMANDS_MAX` of them, and where the next one begins: the length of `block` when that were all.

    `data` is a command's; of what is no command, or of session 0, which there is not, it is the whole payload, and the
    three numbers before it are 0. For bytes that were verified when they entered the log: neither checksums nor order
    are looked at again.

    Raises:
        CorruptEntry: these are no whole entries.
    """
    start = u64(start)
    found = []
    for index, term, stamp, crc, kind, payload, is_command in islice(_walk(block, start), COMMANDS_MAX):
        start += ENTRY_HEADER_BYTES + len(payload)
        session = seq = done_below = 0
        if is_command:
            _, session, seq, done_below = _COMMAND.unpack_from(payload)
            payload = payload[COMMAND_HEADER_BYTES:]
        found.append((index, term, stamp, crc, kind, session, seq, done_below, bytes(payload)))
    return found, start


def proposed(block: Buffer, session: int) -> list[tuple[int, int, bytes | None]]:
    """Return (index, seq, None) of each command of `session` in `block`, and (index, kind, payload) of what is none.

    In their order, for bytes as `commands` takes them. Commands of other sessions are passed over.

    Raises:
        CorruptEntry: it does not consist of whole entries.
    """
    session = u64(session)
    found: list[tuple[int, int, bytes | None]] = []
    for index, _, _, _, kind, payload, is_command in _walk(block):
        if not is_command:
            found.append((index, kind, bytes(payload)))
        elif (told := _COMMAND.unpack_from(payload))[1] == session:
            found.append((index, told[2], None))
    return found


# -------------------------------------------------------------------------------------------------------------- frames


def encode_frame(type: int, head: bytes, tail_bytes: int = 0) -> bytes:
    """Return the header and the head of a frame; the caller writes the `tail_bytes` bytes of the tail after it.

    Raises:
        ValueError: the head is longer than 65535 bytes.
        OverflowError: head and tail together are longer than a u32 counts.
    """
    type, tail_bytes = unsigned(type, U8_MAX), unsigned(tail_bytes, U32_MAX)
    if not isinstance(head, bytes):
        raise TypeError("a head is bytes")
    if len(head) > U16_MAX:
        raise ValueError(f"a head of {len(head)} bytes")
    length = unsigned(len(head) + tail_bytes, U32_MAX)
    before_crc = _FRAME_BEFORE_CRC.pack(length, len(head), type, FRAME_VERSION)
    return before_crc + _U32.pack(_extend(_extend(0, before_crc), head)) + head


@final
class FrameDecoder:
    """Cuts a byte stream into frames of at most `max_bytes` (head and tail) and one version.

    A bad header is refused before anything is allocated for the frame, a bad head before its tail is waited for. After
    a CorruptFrame the decoder is of no more use: the stream has lost its step.
    """

    def __init__(self, max_bytes: int, version: int = FRAME_VERSION) -> None:
        self._max_bytes = u64(max_bytes)
        self._version = unsigned(version, U8_MAX)
        self._buffer = bytearray()
        self._checked = False  # the frame at the start of the buffer: header and head are good
        self._broken = False

    def feed(self, data: Buffer) -> list[tuple[int, bytes, bytes]]:
        """Take what arrived, in pieces of any size, and return (type, head, tail) of each frame that is complete.

        Raises:
            CorruptFrame: the stream holds something else; frames that were complete before it are dropped with it.
        """
        arrived = as_bytes(data)
        if self._broken:
            raise CorruptFrame("the stream was corrupt before")
        self._buffer += arrived
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
    lease_session: int,
    digest_index: int,
    digest: int,
    sent_us: int,
) -> bytes:
    """Return a complete heartbeat frame: the nine numbers as u64, in this order."""
    fields = (term, commit, read_context, retain_index, lease_nonce, lease_session, digest_index, digest, sent_us)
    return encode_frame(FRAME_HEARTBEAT, _HEARTBEAT.pack(*map(u64, fields)))


def decode_heartbeat(head: Buffer) -> tuple[int, int, int, int, int, int, int, int, int]:
    """Return what `encode_heartbeat` was given, from the head of its frame.

    Raises:
        CorruptFrame: the head has another length.
    """
    head = as_bytes(head)
    if len(head) != _HEARTBEAT.size:
        raise CorruptFrame(f"a heartbeat of {len(head)} bytes")
    fields: tuple[int, int, int, int, int, int, int, int, int] = _HEARTBEAT.unpack(head)
    return fields


def encode_heartbeat_response(
    term: int,
    read_context: int,
    lease_nonce: int,
    applied_index: int,
    digest_index: int,
    digest: int,
    disk_lag_ms: int,
    echo_us: int,
) -> bytes:
    """Return a complete frame that answers a heartbeat: the eight numbers as u64, in this order."""
    fields = (term, read_context, lease_nonce, applied_index, digest_index, digest, disk_lag_ms, echo_us)
    return encode_frame(FRAME_HEARTBEAT_RESPONSE, _HEARTBEAT_RESPONSE.pack(*map(u64, fields)))


def decode_heartbeat_response(head: Buffer) -> tuple[int, int, int, int, int, int, int, int]:
    """Return what `encode_heartbeat_response` was given, from the head of its frame.

    Raises:
        CorruptFrame: the head has another length.
    """
    head = as_bytes(head)
    if len(head) != _HEARTBEAT_RESPONSE.size:
        raise CorruptFrame(f"a heartbeat response of {len(head)} bytes")
    fields: tuple[int, int, int, int, int, int, int, int] = _HEARTBEAT_RESPONSE.unpack(head)
    return fields


# -------------------------------------------------------------------------------------------------------------- quorum


def quorum_index(matched: Sequence[int]) -> int:
    """Return the highest log index that a majority of one set of voters has stored (Raft §5.3).

    `matched` has one index per voter, the leader's own included, in any order. The caller also checks the entry's term:
    an earlier term's entry is never committed by counting (Raft §5.4.2).

    Raises:
        ValueError: `matched` is empty; a quorum of nobody decides nothing.
    """
    indexes = sorted(map(u64, matched))
    if not indexes:
        raise ValueError("a quorum of nobody decides nothing")
    return indexes[(len(indexes) - 1) // 2]
