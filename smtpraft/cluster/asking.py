"""Ask whoever listens at an address who it is, and of which cluster; both sides prove that they know the secret.

A new node asks so before it has a cluster, and a leader asks so before it admits a node. The answer is one frame of
type 243 on the connection that asked, MessagePack: `Answer`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from smtpraft.cluster.addresses import format_address
from smtpraft.cluster.handshake import HANDSHAKE_TIMEOUT_S, Asker, Identity, Refused
from smtpraft.cluster.members import Row
from smtpraft.errors import SmtpRaftError
from smtpraft.fastlog import CorruptFrame, FrameDecoder, encode_frame

FRAME_ANSWER: Final = 243
ANSWER_BYTES_MAX: Final = 1024 * 1024
READ_BYTES: Final = 65_536


class NoAnswer(SmtpRaftError):
    """Nobody there, nobody that belongs to us, or nobody that can say; the text says which."""


class Answer(msgspec.Struct, frozen=True):
    """What a node says of itself and of its cluster. `members` is empty if it knows none."""

    node: str
    cluster_id: bytes
    cluster_name: str
    incarnation: int
    takes_part: bool
    release: str
    members: list[Row] = []
    voters: list[str] = []


def encode_answer(answer: Answer) -> bytes:
    """Return the frame that answers."""
    return encode_frame(FRAME_ANSWER, msgspec.msgpack.encode(answer))


async def ask(identity: Identity, host: str, port: int, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> Answer:
    """Return what the node at `host:port` says; `identity` is ours, its cluster id may be any.

    Raises:
        NoAnswer: it says why.
    """
    address = format_address(host, port)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return await _converse(Asker(identity), reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        raise NoAnswer(f"no answer from {address} within {timeout_s:g} s") from None
    except OSError as error:
        raise NoAnswer(f"no answer from {address}: {error.strerror or error}") from None
    except Refused as refused:
        raise NoAnswer(f"{address} refuses: {refused.text}") from None
    except (CorruptFrame, msgspec.DecodeError) as error:
        raise NoAnswer(f"{address} answers what no node answers: {error}") from None


async def _converse(asker: Asker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
    writer.write(asker.start())
    while asker.established is None:
        data = await reader.read(READ_BYTES)
        if not data:
            raise ConnectionResetError("it closed the connection; a node of an older release cannot answer")
        if answer := asker.receive(data):
            writer.write(answer)
    decoder = FrameDecoder(ANSWER_BYTES_MAX)
    data = asker.established.rest
    while True:
        for kind, head, _ in decoder.feed(data) if data else ():
            if kind == FRAME_ANSWER:
                return msgspec.msgpack.decode(head, type=Answer)
        data = await reader.read(READ_BYTES)
        if not data:
            raise ConnectionResetError("it closed the connection without an answer")
