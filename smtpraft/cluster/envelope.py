"""What a node writes into the log around a command, and how it is told apart again.

Payload of a normal entry, big endian; the first byte says which. An empty payload is a new leader's empty entry (Raft
§8).

    OPEN    0 | nonce 16 bytes | node id, UTF-8                    a node starts a session; its id is the entry's index
    COMMAND 1 | session u64 | seq u64 | done_below u64 | command   applied at most once per (session, seq)
    CANCEL  2 | session u64 | seq u64                              (session, seq) must not be applied if it was not yet
    DOWN    3 | session u64 | node ids, UTF-8, joined by newlines  the session ends; these nodes can take over
    FOUND   4 | members, see `members.py`                          who the first members are, all of them voters

`done_below` says that its sender knows how every lower seq ended, so nobody need remember those (Raft thesis §6.3).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from smtpraft.types import NodeId, parse_node_id

OPEN: Final = 0
COMMAND: Final = 1
CANCEL: Final = 2
DOWN: Final = 3
FOUND: Final = 4

NONCE_BYTES: Final = 16

_COMMAND: Final = struct.Struct(">BQQQ")
_CANCEL: Final = struct.Struct(">BQQ")
_DOWN: Final = struct.Struct(">BQ")

COMMAND_HEADER_BYTES: Final = _COMMAND.size
CANCEL_BYTES: Final = _CANCEL.size

unpack_command = _COMMAND.unpack_from
"""`(kind, session, seq, done_below)` of a COMMAND; the command itself follows at `COMMAND_HEADER_BYTES`."""


def encode_open(nonce: bytes, node: NodeId) -> bytes:
    """Return the payload that opens a session of `node`; `nonce` makes a repeat recognisable."""
    assert len(nonce) == NONCE_BYTES
    return bytes((OPEN,)) + nonce + node.encode()


def decode_open(payload: bytes) -> tuple[bytes, NodeId]:
    """Return `(nonce, node)`.

    Raises:
        ValueError: it is no OPEN.
    """
    return payload[1 : 1 + NONCE_BYTES], parse_node_id(payload[1 + NONCE_BYTES :].decode())


def encode_command(session: int, seq: int, done_below: int, command: bytes) -> bytes:
    """Return the payload of one command."""
    return _COMMAND.pack(COMMAND, session, seq, done_below) + command


def encode_cancel(session: int, seq: int) -> bytes:
    """Return the payload that withdraws a command if the log has not applied it before."""
    return _CANCEL.pack(CANCEL, session, seq)


def decode_cancel(payload: bytes) -> tuple[int, int]:
    """Return `(session, seq)`.

    Raises:
        ValueError: it is no CANCEL.
    """
    if len(payload) != _CANCEL.size:
        raise ValueError(f"a CANCEL of {len(payload)} bytes")
    _, session, seq = _CANCEL.unpack(payload)
    return session, seq


def encode_down(session: int, live: Sequence[NodeId]) -> bytes:
    """Return the payload that ends a session; `live` are the nodes that hold a lease."""
    return _DOWN.pack(DOWN, session) + "\n".join(live).encode()


def decode_down(payload: bytes) -> tuple[int, tuple[NodeId, ...]]:
    """Return `(session, live)`.

    Raises:
        ValueError: it is no DOWN.
    """
    if len(payload) < _DOWN.size:
        raise ValueError(f"a DOWN of {len(payload)} bytes")
    _, session = _DOWN.unpack_from(payload)
    names = payload[_DOWN.size :].decode()
    return session, tuple(NodeId(name) for name in names.split("\n") if name)
