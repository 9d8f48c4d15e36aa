"""Messages as frames: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft import fastlog
from smtpraft.cluster import wire
from smtpraft.consensus.messages import FIELDS, EntryRange, Message, MessageType
from smtpraft.fastlog import CorruptFrame
from smtpraft.types import NO_NODE, NodeId

ME, PEER, THIRD = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
GOLDEN = Path(__file__).parents[1] / "data" / "wire_messages_v1.txt"
U64 = st.integers(0, (1 << 64) - 1)
ENTRIES = fastlog.encode_entries(7, 42, 1_700_000_000_000, fastlog.ENTRY_NORMAL, [b"first", b"", b"third"])

EXAMPLES: dict[str, Message] = {
    "APP": Message(MessageType.APP, term=7, log_term=6, index=41, commit=40, entries=EntryRange(42, 44)),
    "APP_EMPTY": Message(MessageType.APP, term=7, log_term=6, index=41, commit=40),
    "APP_RESP": Message(MessageType.APP_RESP, term=7, index=44),
    "APP_RESP_REJECT": Message(MessageType.APP_RESP, term=7, log_term=5, index=41, reject=True, reject_hint=30),
    "VOTE": Message(MessageType.VOTE, term=8, log_term=7, index=44),
    "VOTE_TRANSFER": Message(MessageType.VOTE, term=8, log_term=7, index=44, context=b"CampaignTransfer"),
    "VOTE_RESP": Message(MessageType.VOTE_RESP, term=8),
    "VOTE_RESP_REJECT": Message(MessageType.VOTE_RESP, term=8, reject=True),
    "VOTE_RESP_COMMITTED": Message(MessageType.VOTE_RESP, term=8, reject=True, context=bytes(range(16))),
    "PRE_VOTE": Message(MessageType.PRE_VOTE, term=9, log_term=7, index=44),
    "PRE_VOTE_RESP": Message(MessageType.PRE_VOTE_RESP, term=9, reject=True),
    "PROP": Message(MessageType.PROP, payloads=((0, b"one"), (2, b""), (0, bytes(range(20))))),
    "PROP_EMPTY": Message(MessageType.PROP),
    "READ_INDEX": Message(MessageType.READ_INDEX, context=b"\0\0\0\1"),
    "READ_INDEX_FORWARDED": Message(MessageType.READ_INDEX, sender=THIRD, context=b"\0\0\0\1"),
    "READ_INDEX_RESP": Message(MessageType.READ_INDEX_RESP, term=7, index=44, context=b"\0\0\0\1"),
    "TIMEOUT_NOW": Message(MessageType.TIMEOUT_NOW, term=7),
    "TRANSFER_LEADER": Message(MessageType.TRANSFER_LEADER, sender=THIRD),
}


def replace(message: Message, **changes: object) -> Message:
    return Message(**{name: getattr(message, name) for name in FIELDS} | changes)


def encode(message: Message) -> tuple[int, bytes, bytes]:
    """As it comes out of the peer's FrameDecoder."""
    kind, head, spans = wire.encode_message(message)
    tail = b"".join(spans) + (ENTRIES if message.entries else b"")
    [frame] = fastlog.FrameDecoder(1 << 20).feed(fastlog.encode_frame(kind, head, len(tail)) + tail)
    return frame


def decode(frame: tuple[int, bytes, bytes]) -> Message:
    return wire.decode_message(*frame, sender=PEER, to=ME)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_arrives_as_it_was_sent(name: str) -> None:
    message = EXAMPLES[name]
    arrived = decode(encode(message))
    expected = replace(message, sender=message.sender or PEER, to=ME)
    if message.entries:
        expected = replace(expected, entries=EntryRange(), block=ENTRIES)
    assert arrived == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_bytes_of_version_1_stay_what_they_are(name: str) -> None:
    written = dict(line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#"))
    kind, head, tail = encode(EXAMPLES[name])
    assert written.pop(name) == (fastlog.encode_frame(kind, head, len(tail)) + tail).hex()
    assert written.keys() < EXAMPLES.keys()


@given(U64, U64, U64, U64, U64, st.booleans(), st.binary(max_size=64))
def test_every_number_that_fits_travels(
    term: int, log_term: int, index: int, commit: int, hint: int, reject: bool, context: bytes
) -> None:
    for message in (
        Message(MessageType.APP, term=term, log_term=log_term, index=index, commit=commit),
        Message(
            MessageType.APP_RESP,
            term=term,
            log_term=log_term,
            index=index,
            commit=commit,
            reject=reject,
            reject_hint=hint,
        ),
        Message(MessageType.VOTE, term=term, log_term=log_term, index=index, context=context),
        Message(MessageType.PRE_VOTE, term=term, log_term=log_term, index=index, context=context),
        Message(MessageType.VOTE_RESP, term=term, reject=reject, context=context),
        Message(MessageType.PRE_VOTE_RESP, term=term, reject=reject, context=context),
        Message(MessageType.READ_INDEX, term=term, context=context),
        Message(MessageType.READ_INDEX_RESP, term=term, index=index, context=context),
        Message(MessageType.TIMEOUT_NOW, term=term),
        Message(MessageType.TRANSFER_LEADER, term=term, sender=THIRD),
    ):
        assert decode(encode(message)) == replace(message, sender=message.sender or PEER, to=ME)


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=300)), max_size=40), U64)
def test_proposals_travel_whole(payloads: list[tuple[int, bytes]], term: int) -> None:
    message = Message(MessageType.PROP, term=term, payloads=tuple(payloads))
    assert decode(encode(message)) == replace(message, sender=PEER, to=ME)


def test_payloads_are_not_copied_on_the_way_out() -> None:
    payload = bytes(100_000)
    _, _, spans = wire.encode_message(Message(MessageType.PROP, payloads=((0, payload),)))
    assert spans[1] is payload


def test_entries_travel_as_they_are_in_the_log() -> None:
    """Encode once: the head is all that an APP adds."""
    kind, head, spans = wire.encode_message(EXAMPLES["APP"])
    assert (kind, len(head), spans) == (wire.FRAME_APP, 32, ())


@pytest.mark.parametrize(
    "type", [kind for kind in MessageType if kind.name not in {message.type.name for message in EXAMPLES.values()}]
)
def test_what_does_not_travel_is_not_encoded(type: MessageType) -> None:
    """Local messages, heartbeats (fastlog's) and snapshots (a connection of their own)."""
    with pytest.raises(ValueError, match=type.name):
        wire.encode_message(Message(type))


@pytest.mark.parametrize("type", [0, wire.FRAME_HEARTBEAT, wire.FRAME_HEARTBEAT_RESP, wire.FRAME_SNAP, 15, 32, 255])
def test_a_frame_of_another_type_is_no_message(type: int) -> None:
    with pytest.raises(CorruptFrame, match=str(type)):
        wire.decode_message(type, b"\0" * 32, b"", sender=PEER, to=ME)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_head_of_another_size_is_refused(name: str) -> None:
    kind, head, tail = encode(EXAMPLES[name])
    for size in range(len(head)):
        with pytest.raises(CorruptFrame):
            decode((kind, head[:size], tail))
    with pytest.raises(CorruptFrame):
        decode((kind, head + b"\0", tail))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith(("APP_EMPTY", "APP", "PROP"))])
def test_a_tail_where_none_belongs_is_refused(name: str) -> None:
    kind, head, _ = encode(EXAMPLES[name])
    with pytest.raises(CorruptFrame):
        decode((kind, head, b"x"))


@given(st.integers(0, 20), st.binary(max_size=80), st.binary(max_size=80))
def test_garbage_is_a_message_or_refused(type: int, head: bytes, tail: bytes) -> None:
    try:
        message = decode((type, head, tail))
    except CorruptFrame:
        return
    assert encode(replace(message, block=b"", entries=EntryRange()))[:2] == (type, head)  # one way to write a message


@pytest.mark.parametrize(("name", "at"), [("APP_RESP", 40), ("VOTE_RESP", 8), ("PRE_VOTE_RESP", 8)])
def test_a_flag_is_0_or_1(name: str, at: int) -> None:
    kind, head, _ = encode(EXAMPLES[name])
    with pytest.raises(CorruptFrame, match="flag"):
        decode((kind, head[:at] + b"\2" + head[at + 1 :], b""))


def test_entries_that_do_not_follow_the_index_are_refused() -> None:
    """Raft Figure 2: an append carries the entries right after prevLogIndex."""
    for index in (0, 40, 42, 44):
        kind, head, tail = encode(replace(EXAMPLES["APP"], index=index))
        with pytest.raises(CorruptFrame, match=f"after index {index}"):
            decode((kind, head, tail))
    kind, head, tail = encode(EXAMPLES["APP"])
    with pytest.raises(CorruptFrame):
        decode((kind, head, tail[:35]))


@pytest.mark.parametrize(
    "damage",
    [
        lambda head, tail: (head, tail + b"x"),
        lambda head, tail: (head, tail[:-1]),
        lambda head, tail: (head, tail[:20] + b"\xff" + tail[21:]),
        lambda head, tail: (head[:8] + b"\xff\xff\xff\xff" + head[12:], tail),
        lambda head, tail: (head[:8] + b"\0\0\0\0" + fastlog.crc32c(tail).to_bytes(4, "big"), tail),
        lambda head, tail: (head[:8] + b"\0\0\0\1" + fastlog.crc32c(b"\3\0\0\0\0").to_bytes(4, "big"), b"\3\0\0\0\0"),
        lambda head, tail: (
            head[:8] + b"\0\0\0\1" + fastlog.crc32c(b"\0\0\0\0\2x").to_bytes(4, "big"),
            b"\0\0\0\0\2x",
        ),
        lambda head, tail: (
            head[:8] + b"\0\0\0\1" + fastlog.crc32c(b"\0\xff\xff\xff\xffx").to_bytes(4, "big"),
            b"\0\xff\xff\xff\xffx",
        ),
    ],
)
def test_damaged_proposals_are_refused(damage: Callable[[bytes, bytes], tuple[bytes, bytes]]) -> None:
    """A payload has no checksum of its own before the leader gives it one."""
    kind, head, tail = encode(EXAMPLES["PROP"])
    with pytest.raises(CorruptFrame, match="PROP"):
        decode((kind, *damage(head, tail)))


@pytest.mark.parametrize("name", ["READ_INDEX_FORWARDED", "TRANSFER_LEADER"])
@pytest.mark.parametrize("id", [b"<appn>", b"node 3", b"node-\xb3", b"no\nde3"])
def test_an_origin_that_is_no_node_id_is_refused(name: str, id: bytes) -> None:
    kind, head, _ = encode(EXAMPLES[name])
    assert len(id) == len(THIRD)
    with pytest.raises(CorruptFrame, match="node id"):
        decode((kind, head.replace(THIRD.encode(), id), b""))


def test_without_an_origin_the_sender_is_meant() -> None:
    assert EXAMPLES["READ_INDEX"].sender == NO_NODE
    assert decode(encode(EXAMPLES["READ_INDEX"])).sender == PEER


def test_a_context_is_bounded_both_ways() -> None:
    message = Message(MessageType.READ_INDEX, context=b"x" * wire.CONTEXT_BYTES_MAX)
    assert decode(encode(message)).context == message.context
    with pytest.raises(ValueError, match="context"):
        wire.encode_message(replace(message, context=message.context + b"x"))


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_number_that_does_not_fit_is_not_sent(value: int) -> None:
    """The compiled core declines to write it down, else the frame does."""
    with pytest.raises((struct.error, OverflowError)):
        wire.encode_message(Message(MessageType.APP_RESP, term=value))


def test_frame_types_do_not_overlap() -> None:
    assert wire.FRAME_HEARTBEAT == fastlog.FRAME_HEARTBEAT
    assert wire.FRAME_HEARTBEAT_RESP == fastlog.FRAME_HEARTBEAT_RESPONSE
    types = [value for name, value in vars(wire).items() if name.startswith("FRAME_")]
    assert len(types) == len(set(types))
