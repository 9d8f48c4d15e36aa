"""What a snapshot is called, and its bytes on the wire and in a file of its own.

A snapshot is one opaque file that the state machine wrote: its state after `index`. On the wire, big endian:

    type                      head                                  tail
    48 SNAPSHOT_BEGIN         leader's term u64                     SnapshotInfo, JSON
    49 SNAPSHOT_CHUNK         id 16 | offset u64 | crc u32          the bytes; `crc` is their CRC32C
    50 SNAPSHOT_HAVE          id 16 | offset u64 | state u8         nothing

BEGIN and CHUNK go over a connection of their own, in order, the first chunk from where the first HAVE says; HAVE comes
back on the answering node's bulk connection. A chunk begins at a multiple of `chunk_bytes`; only the last is shorter.

A file for keeping, as `smtpraft snapshot save` writes it:

    magic 8 = "SMTPSNAP" | version u32 | size u32 | crc u32 | SnapshotInfo, JSON: `size` bytes with this CRC32C | state
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.consensus import ConfState, InvalidConfChange
from smtpraft.consensus.confchange import Membership
from smtpraft.fastlog import CorruptFrame, crc32c

FRAME_SNAPSHOT_BEGIN: Final = 48
FRAME_SNAPSHOT_CHUNK: Final = 49
FRAME_SNAPSHOT_HAVE: Final = 50
SNAPSHOT_FRAMES: Final = frozenset({FRAME_SNAPSHOT_BEGIN, FRAME_SNAPSHOT_CHUNK, FRAME_SNAPSHOT_HAVE})

CHUNK_BYTES: Final = 256 * 1024  # a fifth of a millisecond of the loop at each end
CHUNK_BYTES_MAX: Final = 4 * 1024 * 1024
INFO_BYTES_MAX: Final = 1024 * 1024
ID_BYTES: Final = 16
INFO_FORMAT: Final = 1

FILE_MAGIC: Final = b"SMTPSNAP"
FILE_VERSION: Final = 1
FILE_HEADER: Final = struct.Struct(">8sIII")

_BEGIN: Final = struct.Struct(">Q")
_CHUNK: Final = struct.Struct(">16sQI")
_HAVE: Final = struct.Struct(">16sQB")


class SnapshotInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names one copy of a state. `id` and `sha256` are hex; the members are those as of `index`."""

    id: str
    cluster_id: str
    node_id: str
    """Who made the copy."""
    index: int
    term: int
    conf_state: ConfState
    size_bytes: int
    sha256: str
    chunk_bytes: int = CHUNK_BYTES
    created_ms: int = 0
    format: int = INFO_FORMAT


class HaveState(enum.IntEnum):
    """What the receiving node says."""

    GO_ON = 0
    """It has all up to `offset`, in order."""
    DONE = 1
    """It has all of it, or needs none of it."""
    REFUSED = 2
    """Not now; its log says why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece on its way; `crc` was checked by nobody yet."""

    id: bytes
    offset: int
    crc: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Have:
    """How far the receiver of the copy `id` is."""

    id: bytes
    offset: int
    state: HaveState


def encode_info(info: SnapshotInfo) -> bytes:
    """Return the JSON of `info`."""
    return msgspec.json.encode(info)


def decode_info(data: bytes) -> SnapshotInfo:
    """Return what `encode_info` wrote.

    Raises:
        ValueError: it is damaged, impossible, or of a newer version.
    """
    try:
        head = msgspec.json.decode(data, type=_Format)
        if head.format != INFO_FORMAT:
            raise ValueError(f"a snapshot of format {head.format}; this release knows {INFO_FORMAT}")
        info = msgspec.json.decode(data, type=SnapshotInfo)
        membership = Membership.restore(info.conf_state)
        sizes = len(bytes.fromhex(info.id)), len(bytes.fromhex(info.cluster_id)), len(bytes.fromhex(info.sha256))
    except (msgspec.DecodeError, InvalidConfChange, UnicodeDecodeError) as error:
        raise ValueError(f"not the description of a snapshot: {error}") from error
    if sizes != (ID_BYTES, 16, 32) or not membership.incoming:
        raise ValueError("the description of a snapshot holds an id, a checksum or members that cannot be")
    if not (0 < info.index < 1 << 62 and 0 < info.term < 1 << 62 and 0 <= info.size_bytes < 1 << 62):
        raise ValueError(f"a snapshot of index {info.index}, term {info.term} and {info.size_bytes} bytes")
    if not 4096 <= info.chunk_bytes <= CHUNK_BYTES_MAX:
        raise ValueError(f"chunks of {info.chunk_bytes} bytes")
    return info


class _Format(msgspec.Struct):
    format: int


def encode_begin(term: int, info: SnapshotInfo) -> tuple[int, bytes, bytes]:
    """Return (frame type, head, tail)."""
    return FRAME_SNAPSHOT_BEGIN, _BEGIN.pack(term), encode_info(info)


def decode_begin(head: bytes, tail: bytes) -> tuple[int, SnapshotInfo]:
    """Return (leader's term, what comes).

    Raises:
        CorruptFrame: it is none.
    """
    if len(head) != _BEGIN.size or len(tail) > INFO_BYTES_MAX:
        raise CorruptFrame(f"SNAPSHOT_BEGIN of {len(head)} and {len(tail)} bytes")
    try:
        return _BEGIN.unpack(head)[0], decode_info(tail)
    except ValueError as error:
        raise CorruptFrame(f"SNAPSHOT_BEGIN: {error}") from error


def encode_chunk(id: bytes, offset: int, crc: int) -> tuple[int, bytes]:
    """Return (frame type, head); the bytes are the tail."""
    return FRAME_SNAPSHOT_CHUNK, _CHUNK.pack(id, offset, crc)


def decode_chunk(head: bytes, tail: bytes) -> Chunk:
    """Return the chunk.

    Raises:
        CorruptFrame: it is none.
    """
    if len(head) != _CHUNK.size or not 0 < len(tail) <= CHUNK_BYTES_MAX:
        raise CorruptFrame(f"SNAPSHOT_CHUNK of {len(head)} and {len(tail)} bytes")
    id, offset, crc = _CHUNK.unpack(head)
    return Chunk(id, offset, crc, tail)


def encode_have(have: Have) -> tuple[int, bytes]:
    """Return (frame type, head); there is no tail."""
    return FRAME_SNAPSHOT_HAVE, _HAVE.pack(have.id, have.offset, have.state)


def decode_have(head: bytes, tail: bytes) -> Have:
    """Return the answer.

    Raises:
        CorruptFrame: it is none.
    """
    if len(head) != _HAVE.size or tail:
        raise CorruptFrame(f"SNAPSHOT_HAVE of {len(head)} and {len(tail)} bytes")
    id, offset, state = _HAVE.unpack(head)
    try:
        return Have(id, offset, HaveState(state))
    except ValueError as error:
        raise CorruptFrame(f"SNAPSHOT_HAVE: {error}") from error


def encode_file_header(info: SnapshotInfo) -> bytes:
    """Return what stands before the state in a file for keeping."""
    text = encode_info(info)
    return FILE_HEADER.pack(FILE_MAGIC, FILE_VERSION, len(text), crc32c(text)) + text


def decode_file_header(data: bytes) -> tuple[SnapshotInfo, int]:
    """Return what a file holds, by its first bytes (`FILE_HEADER.size + INFO_BYTES_MAX` are enough), and where the
    state begins in it.

    Raises:
        ValueError: it is no snapshot, a damaged one, or one of a newer version.
    """
    if len(data) < FILE_HEADER.size or not data.startswith(FILE_MAGIC):
        raise ValueError("not a snapshot of smtpraft")
    _, version, size, crc = FILE_HEADER.unpack_from(data)
    if version != FILE_VERSION:
        raise ValueError(f"a snapshot file of version {version}; this release knows {FILE_VERSION}")
    text = data[FILE_HEADER.size : FILE_HEADER.size + size]
    if size > INFO_BYTES_MAX or len(text) != size or crc32c(text) != crc:
        raise ValueError("the header is damaged")
    return decode_info(text), FILE_HEADER.size + size
