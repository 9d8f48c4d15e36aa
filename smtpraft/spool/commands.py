"""The commands of the mail queue, as they stand in the log.

Bytes, big endian: `op u8 | version u8 | header length u32 | header | body`.

The header is MessagePack (an array: fields in the order below). The body is raw message bytes, so that where a body is
in the log can be said as an offset into a command, and nothing of it is parsed when a command is applied.

    op              header                                         body
    ACCEPT          envelope, upload id and its chunks             the message, or what follows its chunks
    CHUNK           upload id, number from 0                       a part of a message
    FORGET_UPLOAD   upload id                                      -
    OUTCOMES        outcomes; each with its bounce's length        the bounces, one after the other
    HOLD, RELEASE,  ids; or none, and then up to `limit` of those  -
    DELETE, FLUSH   above `after` and not above `to`
    KEY_PUT         key, revision it must be at (nil: any)         the value
    KEY_DELETE      key, revision it must be at (nil: any)         -

What is proposed is bounded here, by the sender. What is applied is checked for what would break the machine and no
more: a command that cannot be understood is refused, alike on every node; one of a newer version stops the node, which
needs upgrading. A command has the version in which its op appeared: KEY_PUT and KEY_DELETE 2, all others 1.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from smtpraft.spool.types import CHUNK_BYTES, ORDINAL_MAX, Envelope, Outcome, RecipientState, number_of

VERSION: Final = 2

ACCEPT: Final = 1
CHUNK: Final = 2
FORGET_UPLOAD: Final = 3
OUTCOMES: Final = 4
HOLD: Final = 5
RELEASE: Final = 6
DELETE: Final = 7
FLUSH: Final = 8
KEY_PUT: Final = 9
KEY_DELETE: Final = 10
OPERATOR_OPS: Final = (HOLD, RELEASE, DELETE, FLUSH)

FLAG_SMTPUTF8: Final = 1
FLAG_8BITMIME: Final = 2
FLAG_BOUNCE: Final = 4
FLAG_CHUNKED: Final = 8
_FLAGS_FROM_CLIENT: Final = FLAG_SMTPUTF8 | FLAG_8BITMIME

STATES: Final = tuple(RecipientState)
"""Recipient states in the order of their numbers, in commands and in the database. Only ever append."""
STATE_NUMBERS: Final = {state: number for number, state in enumerate(STATES)}

REPLY_CHARS_MAX: Final = 1000  # RFC 5321 §4.5.3.1.5 has reply lines of 512; some have several
OUTCOMES_MAX: Final = 1000  # in one command; below the 4095 ordinals that its bounces could have
OPERATOR_BATCH_MAX: Final = 2000  # messages that one operator command touches: some 20 ms of applying

_PREFIX: Final = struct.Struct(">BBI")
PREFIX_BYTES: Final = _PREFIX.size

_I63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # what an SQLite integer holds
_I32 = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Delay = Annotated[int, msgspec.Meta(ge=0, le=2**40)]  # 34 years in milliseconds: sums stay in 63 bits


class Refusal(enum.IntEnum):
    """Why a command changed nothing: its result, the same on every node. Part of the digest: only ever append."""

    MALFORMED = 1
    NO_RECIPIENTS = 2
    UPLOAD_INCOMPLETE = 3
    CHUNK_REPEATED = 4
    MAP_FULL = 5


class NewerCommand(ValueError):
    """A command of a version above ours."""


class AcceptHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    sender: str
    recipients: list[str]
    flags: _I32
    client_host: str
    helo: str
    auth: str
    upload: _I63 = 0
    chunk_count: _I32 = 0
    chunk_bytes: _I63 = 0


class ChunkHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    upload: _I63
    number: _I32


class ForgetHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    upload: _I63


class ResultHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    ordinal: _I32
    attempt: _I32
    state: Annotated[int, msgspec.Meta(ge=STATE_NUMBERS[RecipientState.DEFERRED], lt=len(STATES))]
    delay_ms: _Delay
    status: str
    reply: str


class OutcomeHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    number: _I63
    epoch: _I63
    results: list[ResultHeader]
    bounce_bytes: _I32
    bounce_flags: _I32


class OutcomesHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    outcomes: Annotated[list[OutcomeHeader], msgspec.Meta(max_length=ORDINAL_MAX)]


class OperatorHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    numbers: list[_I63] | None
    after: _I63 = 0
    to: _I63 = 0
    limit: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0


class KeyHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    key: str
    expected: _I63 | None = None


Header = AcceptHeader | ChunkHeader | ForgetHeader | OutcomesHeader | OperatorHeader | KeyHeader

_encode_header: Final = msgspec.msgpack.Encoder().encode
_decoders: Final[dict[int, msgspec.msgpack.Decoder[Header]]] = {
    ACCEPT: msgspec.msgpack.Decoder(AcceptHeader),
    CHUNK: msgspec.msgpack.Decoder(ChunkHeader),
    FORGET_UPLOAD: msgspec.msgpack.Decoder(ForgetHeader),
    OUTCOMES: msgspec.msgpack.Decoder(OutcomesHeader),
    HOLD: msgspec.msgpack.Decoder(OperatorHeader),
    RELEASE: msgspec.msgpack.Decoder(OperatorHeader),
    DELETE: msgspec.msgpack.Decoder(OperatorHeader),
    FLUSH: msgspec.msgpack.Decoder(OperatorHeader),
    KEY_PUT: msgspec.msgpack.Decoder(KeyHeader),
    KEY_DELETE: msgspec.msgpack.Decoder(KeyHeader),
}
_VERSIONS: Final = {op: 2 if op in (KEY_PUT, KEY_DELETE) else 1 for op in _decoders}


def decode(data: bytes) -> tuple[int, Header, int] | Refusal:
    """Return (op, header, offset of the body) of a command, or why it is refused.

    Raises:
        NewerCommand: it is of a version that this one does not know.
    """
    if len(data) < PREFIX_BYTES:
        return Refusal.MALFORMED
    op, version, header_bytes = _PREFIX.unpack_from(data)
    if version > VERSION:
        raise NewerCommand(f"command {op} of version {version}, we know up to {VERSION}")
    body_offset = PREFIX_BYTES + header_bytes
    decoder = _decoders.get(op)
    if decoder is None or version != _VERSIONS[op] or body_offset > len(data):
        return Refusal.MALFORMED
    try:
        return op, decoder.decode(memoryview(data)[PREFIX_BYTES:body_offset]), body_offset
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Refusal.MALFORMED


def _encode(op: int, header: Header, body: Sequence[bytes | memoryview] = ()) -> bytes:
    head = _encode_header(header)
    return b"".join((_PREFIX.pack(op, _VERSIONS[op], len(head)), head, *body))


def accept_header(envelope: Envelope, *, upload: int = 0, chunk_count: int = 0, chunk_bytes: int = 0) -> AcceptHeader:
    """Return an envelope as it goes into a command.

    Raises:
        ValueError: there is no recipient.
    """
    if not envelope.recipients:
        raise ValueError("a message needs a recipient")
    flags = (FLAG_SMTPUTF8 if envelope.smtputf8 else 0) | (FLAG_8BITMIME if envelope.body_8bitmime else 0)
    return AcceptHeader(
        envelope.sender,
        list(envelope.recipients),
        flags,
        envelope.client_host,
        envelope.helo,
        envelope.auth,
        upload,
        chunk_count,
        chunk_bytes,
    )


def encode_acceptance(header: AcceptHeader, body: Sequence[bytes | memoryview]) -> bytes:
    """Return the command that queues a message: the chunks of its upload, then `body`.

    Raises:
        ValueError: an address or name cannot be written in UTF-8.
    """
    return _encode(ACCEPT, header, body)


def encode_accept(
    envelope: Envelope,
    body: Sequence[bytes | memoryview],
    *,
    upload: int = 0,
    chunk_count: int = 0,
    chunk_bytes: int = 0,
) -> bytes:
    """Both in one. Raises ValueError as they do."""
    header = accept_header(envelope, upload=upload, chunk_count=chunk_count, chunk_bytes=chunk_bytes)
    return encode_acceptance(header, body)


def encode_chunk(upload: int, number: int, body: Sequence[bytes | memoryview]) -> bytes:
    return _encode(CHUNK, ChunkHeader(upload, number), body)


def encode_forget_upload(upload: int) -> bytes:
    return _encode(FORGET_UPLOAD, ForgetHeader(upload))


def outcome_header(outcome: Outcome) -> OutcomeHeader:
    """Return an outcome as it goes into a command.

    Raises:
        ValueError: its id is none, its bounce is too long, a result is out of bounds or leads to no state.
    """
    if len(outcome.bounce) > CHUNK_BYTES:
        raise ValueError(f"a bounce of {len(outcome.bounce)} bytes: at most {CHUNK_BYTES}")
    if not outcome.results:
        raise ValueError(f"an outcome for {outcome.message} without results")
    results = []
    for result in outcome.results:
        if result.state is RecipientState.QUEUED:
            raise ValueError(f"an attempt at {outcome.message} cannot end in {result.state}")
        if not 0 <= result.delay_ms <= 2**40 or result.attempt < 1 or result.ordinal < 0:
            raise ValueError(f"out of bounds: {result}")
        results.append(
            ResultHeader(
                result.ordinal,
                result.attempt,
                STATE_NUMBERS[result.state],
                result.delay_ms,
                result.status,
                _utf8(result.reply[:REPLY_CHARS_MAX]),
            )
        )
    flags = FLAG_SMTPUTF8 if outcome.bounce_smtputf8 else 0
    if not outcome.bounce.isascii():
        flags |= FLAG_8BITMIME
    return OutcomeHeader(number_of(outcome.message), outcome.epoch, results, len(outcome.bounce), flags)


def outcome_bytes(header: OutcomeHeader) -> int:
    """Return how long an outcome is in a command, its bounce included."""
    return len(_encode_header(header)) + header.bounce_bytes


def encode_outcomes(headers: Sequence[OutcomeHeader], bounces: Sequence[bytes]) -> bytes:
    """Return the command that records outcomes; `bounces` are the ones that are not empty, in the outcomes' order."""
    return _encode(OUTCOMES, OutcomesHeader(list(headers)), bounces)


def encode_operator(op: int, numbers: Sequence[int] | None, after: int = 0, to: int = 0, limit: int = 0) -> bytes:
    """Return an operator's command: for the messages in `numbers`, or for up to `limit` of those in (after, to]."""
    assert op in OPERATOR_OPS, f"op {op}"
    return _encode(op, OperatorHeader(None if numbers is None else list(numbers), after, to, limit))


def encode_key(op: int, key: str, expected: int | None, value: bytes) -> bytes:
    """Return the command that puts or deletes a key, at the `expected` revision only unless that is None."""
    assert op in (KEY_PUT, KEY_DELETE), f"op {op}"
    return _encode(op, KeyHeader(key, expected), (value,))


def message_flags(flags: int) -> int:
    """Return what of a command's flags the proposer may set; the others are the machine's to say."""
    return flags & _FLAGS_FROM_CLIENT


def _utf8(text: str) -> str:
    """Return `text` without lone surrogates: a remote server's reply may hold any bytes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
