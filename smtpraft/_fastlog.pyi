# The types of the compiled half; `_purelog` is the specification.

from collections.abc import Sequence
from typing import TypeAlias, final

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

_Buffer: TypeAlias = bytes | bytearray | memoryview

_CRC_IN_HARDWARE: bool

def survey(spans: Sequence[_Buffer]) -> tuple[int, int, int, int, int, int, bytes] | None: ...
def commands(
    block: _Buffer, start: int = 0
) -> tuple[list[tuple[int, int, int, int, int, int, int, int, bytes]], int]: ...
def proposed(block: _Buffer, session: int) -> list[tuple[int, int, bytes | None]]: ...
def crc32c(data: _Buffer, value: int = 0) -> int: ...
def _crc32c_portable(data: _Buffer, value: int = 0) -> int: ...
def _encode_entry_portable(term: int, index: int, stamp: int, kind: int, payload: _Buffer) -> bytes: ...
def encode_entries(term: int, first_index: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> bytes: ...
def decode_entries(block: _Buffer) -> list[tuple[int, int, int, int, bytes]]: ...
def block_range(block: _Buffer) -> tuple[int, int, int, int]: ...

@final
class Log:
    def __init__(self, prev_index: int = 0, prev_term: int = 0) -> None: ...
    @property
    def prev_index(self) -> int: ...
    @property
    def prev_term(self) -> int: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def last_term(self) -> int: ...
    @property
    def cached_first(self) -> int: ...
    @property
    def cached_bytes(self) -> int: ...
    def append(self, term: int, stamp: int, kind: int, payloads: Sequence[bytes]) -> bytes: ...
    def match(self, block: _Buffer) -> tuple[int, int]: ...
    def append_block(self, block: _Buffer, from_index: int = 0) -> None: ...
    def term(self, index: int) -> int: ...
    def size_bytes(self, lo: int, hi: int) -> int: ...
    def offset(self, index: int) -> int: ...
    def upto_bytes(self, lo: int, hi: int, max_bytes: int) -> int: ...
    def spans(self, lo: int, hi: int) -> list[memoryview]: ...
    def entries(self, lo: int, hi: int) -> list[tuple[int, int, int, int, bytes]]: ...
    def find_conflict_by_term(self, index: int, term: int) -> tuple[int, int]: ...
    def truncate(self, from_index: int) -> None: ...
    def compact(self, to_index: int) -> None: ...
    def evict(self, max_bytes: int, keep_from: int = 0) -> None: ...
    def restore(self, index: int, term: int) -> None: ...

def encode_frame(type: int, head: bytes, tail_bytes: int = 0) -> bytes: ...

@final
class FrameDecoder:
    def __init__(self, max_bytes: int, version: int = 1) -> None: ...
    def feed(self, data: _Buffer) -> list[tuple[int, bytes, bytes]]: ...

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
) -> bytes: ...
def decode_heartbeat(head: _Buffer) -> tuple[int, int, int, int, int, int, int, int, int]: ...
def encode_heartbeat_response(
    term: int,
    read_context: int,
    lease_nonce: int,
    applied_index: int,
    digest_index: int,
    digest: int,
    disk_lag_ms: int,
    echo_us: int,
) -> bytes: ...
def decode_heartbeat_response(head: _Buffer) -> tuple[int, int, int, int, int, int, int, int]: ...
def quorum_index(matched: Sequence[int]) -> int: ...
