"""Consensus messages as frames. The frame around them (length, type, version, checksum) is `fastlog`'s.

Big endian. A node id is `length u8 | ASCII`, a context is `length u16 | bytes`. `sender` and `to` are who is at the two
ends of the connection and do not travel, but where a message speaks for another node: `origin`.

    type                     head
     1 HEARTBEAT             fastlog.encode_heartbeat
     2 HEARTBEAT_RESP        fastlog.encode_heartbeat_response
     3 APP                   term u64 | log_term u64 | index u64 | commit u64; tail: entry records, as in log and WAL
     4 APP_RESP              term u64 | log_term u64 | index u64 | commit u64 | reject_hint u64 | reject u8
     5 VOTE, 7 PRE_VOTE      term u64 | log_term u64 | index u64 | context
     6 VOTE_RESP, 8 PRE_...  term u64 | reject u8 | context
     9 PROP                  term u64 | count u32 | crc u32; tail: (kind u8 | size u32) of each, then the payloads
    10 READ_INDEX            term u64 | origin | context
    11 READ_INDEX_RESP       term u64 | index u64 | context
    12 TIMEOUT_NOW           term u64
    13 TRANSFER_LEADER       term u64 | origin (the node that shall lead)
    14 SNAP                  reserved
    32 to 127              the driver's own
    240 to 255             the transport's own

The records of APP have checksums of their own; PROP's payloads have not yet, so `crc` is the CRC32C of its tail.
Decoding refuses everything that encoding does not produce. Whether entries are sound is for the log to say when it
takes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from smtpraft import fastlog
from smtpraft.consensus.messages import Message, MessageType
from smtpraft.fastlog import ENTRY_CONF_CHANGE_V2, ENTRY_HEADER_BYTES, CorruptFrame
from smtpraft.types import NodeId, parse_node_id

FRAME_HEARTBEAT: Final = 1
FRAME_HEARTBEAT_RESP: Final = 2
FRAME_APP: Final = 3
FRAME_APP_RESP: Final = 4
FRAME_VOTE: Final = 5
FRAME_VOTE_RESP: Final = 6
FRAME_PRE_VOTE: Final = 7
FRAME_PRE_VOTE_RESP: Final = 8
FRAME_PROP: Final = 9
FRAME_READ_INDEX: Final = 10
FRAME_READ_INDEX_RESP: Final = 11
FRAME_TIMEOUT_NOW: Final = 12
FRAME_TRANSFER_LEADER: Final = 13
FRAME_SNAP: Final = 14

FRAME_DRIVER_FIRST: Final = 32
FRAME_DRIVER_LAST: Final = 127
FRAME_TRANSPORT_FIRST: Final = 240

CONTEXT_BYTES_MAX: Final = 1024
_RECORD_INDEX_OFFSET: Final = 16

_U64: Final = struct.Struct(">Q")
_APP: Final = struct.Struct(">QQQQ")
_APP_RESP: Final = struct.Struct(">QQQQQB")
_VOTE: Final = struct.Struct(">QQQH")
_VOTE_RESP: Final = struct.Struct(">QBH")
_PROP: Final = struct.Struct(">QII")
_PROP_ITEM: Final = struct.Struct(">BI")
_READ_INDEX_RESP: Final = struct.Struct(">QQH")
_U16: Final = struct.Struct(">H")


def encode_message(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    """Return (frame type, head, tail) of a message; the tail in pieces, for `Transport.send`.

    The tail of an APP is empty here: the caller adds `log.spans(*message.entries)`.

    Raises:
        ValueError: this type does not travel, or not through here (heartbeats, snapshots).
    """
    encode = _ENCODERS.get(message.type)
    if encode is None:
        raise ValueError(f"{message.type.name} is not sent as a message frame")
    return encode(message)


def decode_message(frame_type: int, head: bytes, tail: bytes, *, sender: NodeId, to: NodeId) -> Message:
    """Return the message of a frame that `sender` sent to us, `to`.

    Raises:
        CorruptFrame: no message has this type, or its bytes are not those of that type.
    """
    decode = _DECODERS.get(frame_type)
    if decode is None:
        raise CorruptFrame(f"frame type {frame_type} is no message")
    message = decode(head, tail)
    message.to = to
    if not message.sender:
        message.sender = sender
    return message


# --- appending --------------------------------------------------------------------------------------------------


def _encode_app(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    return FRAME_APP, _APP.pack(message.term, message.log_term, message.index, message.commit), ()


def _decode_app(head: bytes, tail: bytes) -> Message:
    if len(head) != 32:
        raise _wrong_size("APP", head)
    term, log_term, index, commit = _APP.unpack(head)
    # The log verifies the records, but cannot know where the leader meant them to start.
    if tail and (len(tail) < ENTRY_HEADER_BYTES or _U64.unpack_from(tail, _RECORD_INDEX_OFFSET)[0] != index + 1):
        raise CorruptFrame(f"APP: the entries do not start after index {index}")
    return Message(MessageType.APP, term=term, log_term=log_term, index=index, commit=commit, block=tail)


def _encode_app_resp(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    head = _APP_RESP.pack(
        message.term, message.log_term, message.index, message.commit, message.reject_hint, message.reject
    )
    return FRAME_APP_RESP, head, ()


def _decode_app_resp(head: bytes, tail: bytes) -> Message:
    if len(head) != 41 or tail:
        raise _wrong_size("APP_RESP", head, tail)
    term, log_term, index, commit, reject_hint, reject = _APP_RESP.unpack(head)
    return Message(
        MessageType.APP_RESP,
        term=term,
        log_term=log_term,
        index=index,
        commit=commit,
        reject=_flag("APP_RESP", reject),
        reject_hint=reject_hint,
    )


# --- electing ---------------------------------------------------------------------------------------------------


def _encode_vote(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    frame_type = FRAME_VOTE if message.type is MessageType.VOTE else FRAME_PRE_VOTE
    context = _checked_context(message)
    return frame_type, _VOTE.pack(message.term, message.log_term, message.index, len(context)) + context, ()


def _vote_decoder(message_type: MessageType) -> Callable[[bytes, bytes], Message]:
    def decode(head: bytes, tail: bytes) -> Message:
        if len(head) < _VOTE.size or tail:
            raise _wrong_size(message_type.name, head, tail)
        term, log_term, index, size = _VOTE.unpack_from(head)
        context = _take_context(message_type.name, head, _VOTE.size, size)
        return Message(message_type, term=term, log_term=log_term, index=index, context=context)

    return decode


def _encode_vote_resp(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    frame_type = FRAME_VOTE_RESP if message.type is MessageType.VOTE_RESP else FRAME_PRE_VOTE_RESP
    return (
        frame_type,
        _VOTE_RESP.pack(message.term, message.reject, len(message.context)) + _checked_context(message),
        (),
    )


def _vote_resp_decoder(message_type: MessageType) -> Callable[[bytes, bytes], Message]:
    def decode(head: bytes, tail: bytes) -> Message:
        if len(head) < _VOTE_RESP.size or tail:
            raise _wrong_size(message_type.name, head, tail)
        term, reject, size = _VOTE_RESP.unpack_from(head)
        context = _take_context(message_type.name, head, _VOTE_RESP.size, size)
        return Message(message_type, term=term, reject=_flag(message_type.name, reject), context=context)

    return decode


def _encode_timeout_now(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    return FRAME_TIMEOUT_NOW, _U64.pack(message.term), ()


def _decode_timeout_now(head: bytes, tail: bytes) -> Message:
    if len(head) != _U64.size or tail:
        raise _wrong_size("TIMEOUT_NOW", head, tail)
    return Message(MessageType.TIMEOUT_NOW, term=_U64.unpack(head)[0])


def _encode_transfer_leader(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    # The reference implementation names the future leader as the sender, also when another node forwards the wish.
    return FRAME_TRANSFER_LEADER, _U64.pack(message.term) + _pack_id(message.sender), ()


def _decode_transfer_leader(head: bytes, tail: bytes) -> Message:
    if len(head) < _U64.size or tail:
        raise _wrong_size("TRANSFER_LEADER", head, tail)
    origin, end = _take_id("TRANSFER_LEADER", head, _U64.size)
    if end != len(head):
        raise _wrong_size("TRANSFER_LEADER", head, tail)
    return Message(MessageType.TRANSFER_LEADER, sender=origin, term=_U64.unpack_from(head)[0])


# --- proposing and reading --------------------------------------------------------------------------------------


def _encode_prop(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    table = b"".join([_PROP_ITEM.pack(kind, len(payload)) for kind, payload in message.payloads])
    tail = [table, *(payload for _, payload in message.payloads)]
    crc = 0
    for piece in tail:
        crc = fastlog.crc32c(piece, crc)
    return FRAME_PROP, _PROP.pack(message.term, len(message.payloads), crc), tail


def _decode_prop(head: bytes, tail: bytes) -> Message:
    if len(head) != _PROP.size:
        raise _wrong_size("PROP", head)
    term, count, crc = _PROP.unpack(head)
    offset = count * _PROP_ITEM.size
    if offset > len(tail):
        raise CorruptFrame(f"PROP: {count} proposals in {len(tail)} bytes")
    if fastlog.crc32c(tail) != crc:
        raise CorruptFrame("PROP: the checksum of the proposals does not match")
    payloads = []
    for kind, size in _PROP_ITEM.iter_unpack(memoryview(tail)[:offset]):
        if kind > ENTRY_CONF_CHANGE_V2:
            raise CorruptFrame(f"PROP: a proposal of kind {kind}")
        payloads.append((kind, tail[offset : offset + size]))
        offset += size
    if offset != len(tail):
        raise CorruptFrame(f"PROP: the proposals have {offset} bytes, the frame {len(tail)}")
    return Message(MessageType.PROP, term=term, payloads=tuple(payloads))


def _encode_read_index(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    # A node that no longer leads passes the question on; the answer goes to the node that asked first, the origin.
    context = _checked_context(message)
    head = _U64.pack(message.term) + _pack_id(message.sender) + _U16.pack(len(context)) + context
    return FRAME_READ_INDEX, head, ()


def _decode_read_index(head: bytes, tail: bytes) -> Message:
    if len(head) < _U64.size or tail:
        raise _wrong_size("READ_INDEX", head, tail)
    origin, end = _take_id("READ_INDEX", head, _U64.size)
    if len(head) < end + 2:
        raise _wrong_size("READ_INDEX", head, tail)
    context = _take_context("READ_INDEX", head, end + 2, _U16.unpack_from(head, end)[0])
    return Message(MessageType.READ_INDEX, sender=origin, term=_U64.unpack_from(head)[0], context=context)


def _encode_read_index_resp(message: Message) -> tuple[int, bytes, Sequence[bytes]]:
    context = _checked_context(message)
    return FRAME_READ_INDEX_RESP, _READ_INDEX_RESP.pack(message.term, message.index, len(context)) + context, ()


def _decode_read_index_resp(head: bytes, tail: bytes) -> Message:
    if len(head) < _READ_INDEX_RESP.size or tail:
        raise _wrong_size("READ_INDEX_RESP", head, tail)
    term, index, size = _READ_INDEX_RESP.unpack_from(head)
    context = _take_context("READ_INDEX_RESP", head, _READ_INDEX_RESP.size, size)
    return Message(MessageType.READ_INDEX_RESP, term=term, index=index, context=context)


# --- pieces -----------------------------------------------------------------------------------------------------


def _pack_id(node: NodeId) -> bytes:
    text = node.encode("ascii")
    return bytes([len(text)]) + text


def _take_id(what: str, head: bytes, offset: int) -> tuple[NodeId, int]:
    """Return the id at `offset` and where it ends; an empty one is NO_NODE: whoever is at the other end."""
    end = offset + 1 + head[offset] if offset < len(head) else 0
    if not offset < end <= len(head):
        raise CorruptFrame(f"{what}: a node id that ends outside the frame")
    if end == offset + 1:
        return NodeId(""), end
    try:
        return parse_node_id(head[offset + 1 : end].decode("ascii")), end
    except ValueError:
        raise CorruptFrame(f"{what}: a bad node id: {head[offset + 1 : end]!r}") from None


def _checked_context(message: Message) -> bytes:
    if len(message.context) > CONTEXT_BYTES_MAX:
        raise ValueError(f"{message.type.name}: a context of {len(message.context)} bytes")
    return message.context


def _take_context(what: str, head: bytes, offset: int, size: int) -> bytes:
    if size > CONTEXT_BYTES_MAX or offset + size != len(head):
        raise CorruptFrame(f"{what}: a context of {size} bytes in a head of {len(head)}")
    return head[offset:]


def _flag(what: str, value: int) -> bool:
    if value > 1:
        raise CorruptFrame(f"{what}: {value} is no flag")
    return value == 1


def _wrong_size(what: str, head: bytes, tail: bytes = b"") -> CorruptFrame:
    return CorruptFrame(f"{what}: a head of {len(head)} and a tail of {len(tail)} bytes")


_ENCODERS: Final[dict[MessageType, Callable[[Message], tuple[int, bytes, Sequence[bytes]]]]] = {
    MessageType.APP: _encode_app,
    MessageType.APP_RESP: _encode_app_resp,
    MessageType.VOTE: _encode_vote,
    MessageType.VOTE_RESP: _encode_vote_resp,
    MessageType.PRE_VOTE: _encode_vote,
    MessageType.PRE_VOTE_RESP: _encode_vote_resp,
    MessageType.PROP: _encode_prop,
    MessageType.READ_INDEX: _encode_read_index,
    MessageType.READ_INDEX_RESP: _encode_read_index_resp,
    MessageType.TIMEOUT_NOW: _encode_timeout_now,
    MessageType.TRANSFER_LEADER: _encode_transfer_leader,
}

_DECODERS: Final[dict[int, Callable[[bytes, bytes], Message]]] = {
    FRAME_APP: _decode_app,
    FRAME_APP_RESP: _decode_app_resp,
    FRAME_VOTE: _vote_decoder(MessageType.VOTE),
    FRAME_VOTE_RESP: _vote_resp_decoder(MessageType.VOTE_RESP),
    FRAME_PRE_VOTE: _vote_decoder(MessageType.PRE_VOTE),
    FRAME_PRE_VOTE_RESP: _vote_resp_decoder(MessageType.PRE_VOTE_RESP),
    FRAME_PROP: _decode_prop,
    FRAME_READ_INDEX: _decode_read_index,
    FRAME_READ_INDEX_RESP: _decode_read_index_resp,
    FRAME_TIMEOUT_NOW: _decode_timeout_now,
    FRAME_TRANSFER_LEADER: _decode_transfer_leader,
}
