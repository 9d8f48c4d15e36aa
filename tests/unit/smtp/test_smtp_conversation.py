"""Any chunking of the same bytes is the same conversation: a session compared with a plain reading of the whole."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.smtp.rules import ERRORS_MAX

from .peer import MAIL, RCPT, Peer, codes

pytestmark = pytest.mark.usefixtures("engine")

Message = tuple[tuple[str, ...], bytes]

STEPS = [
    b"EHLO x\r\n",
    MAIL,
    MAIL,
    RCPT,
    RCPT,
    b"RCPT TO:<e@f>\r\n",
    b"MAIL FROM:<a@b> SIZE=9999999\r\n",
    b"RCPT TO:<>\r\n",
    b"DATA\r\n",
    b"DATA\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\n",
    b".\r\n",
    b".\r\n",
    b"..stuffed\r\n",
    b"text\r\n.\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"QUIT\r\n",
    b"FOO\r\n",
    b"\r\n",
    b"x",
]
RARE_STEPS = [b"\n", b"\r", b"\0", b"\n.\n", b"y" * 300]


def plain_reading(data: bytes, size_max_bytes: int) -> tuple[list[int], list[Message]]:
    """What a server must answer to `data`, line by line, and the messages it accepts."""
    replies = [220]
    accepted: list[Message] = []
    errors = 0
    greeted = mail = refused = False
    recipients: list[str] = []
    lines = data.split(b"\r\n")
    rest = lines.pop()
    while lines:
        line = lines.pop(0)
        reply = 0
        if any(octet in line for octet in b"\r\n\0"):
            reply = 500
        elif line == b"EHLO x":
            reply, greeted, mail, refused, recipients = 250, True, False, False, []
        elif line == b"RSET":
            reply, mail, refused, recipients = 250, False, False, []
        elif line == b"NOOP":
            reply = 250
        elif line == b"QUIT":
            return [*replies, 221], accepted
        elif line.startswith(b"MAIL FROM:<a@b>"):
            reply = 503 if not greeted or mail else 552 if b"SIZE" in line else 250
            mail = mail or reply == 250
        elif line.startswith(b"RCPT TO:<"):
            address = line[9:-1].decode()
            reply = 503 if not mail else 250 if address else 501
            refused = refused or mail
            if reply == 250 and address not in recipients:
                recipients.append(address)
        elif line == b"DATA":
            reply = 354 if recipients else 554 if refused else 503
        else:
            reply = 500
        replies.append(reply)
        if reply in (500, 501, 503, 554):
            errors += 1
            if errors > ERRORS_MAX:
                return [*replies, 421], accepted
        if reply != 354:
            continue
        content = b""
        while True:
            if not lines:
                if any(octet in rest.removesuffix(b"\r") for octet in b"\r\n\0"):
                    replies.append(521)
                return replies, accepted
            line = lines.pop(0)
            if any(octet in line for octet in b"\r\n\0"):
                return [*replies, 521], accepted
            if line == b".":
                break
            content += line.removeprefix(b".") + b"\r\n"
        if len(content) > size_max_bytes:
            replies.append(552)
        else:
            replies.append(250)
            accepted.append((tuple(recipients), content))
            errors = 0
        mail, refused, recipients = False, False, []
    if any(octet in rest.removesuffix(b"\r") for octet in b"\r\n\0"):
        errors += 1
        replies += [500, 421] if errors > ERRORS_MAX else [500]
    return replies, accepted


async def converse(chunks: Iterable[bytes], size_max_bytes: int) -> tuple[list[int], list[Message]]:
    peer = Peer(max_message_bytes=size_max_bytes)
    for chunk in chunks:
        await peer.settle()
        if peer.session._closing:
            break
        peer.hear(chunk)
    await peer.settle()
    if not peer.session._closing:
        peer.session.eof_received()
        await peer.settle()
    await peer.finish()
    messages = [(envelope.recipients, content.partition(b"+0000\r\n")[2]) for envelope, content in peer.accepted]
    return codes(peer.output), messages


@given(
    st.lists(st.sampled_from(STEPS) | st.sampled_from(STEPS) | st.sampled_from(RARE_STEPS), max_size=30),
    st.booleans(),
    st.lists(st.integers(0, 1 << 16), max_size=10),
)
def test_any_chunking_is_the_same_conversation(steps: list[bytes], opened: bool, cuts: list[int]) -> None:
    data = b"".join([b"EHLO x\r\n" + MAIL + RCPT + b"DATA\r\n" if opened else b"", *steps])
    size_max_bytes = 200
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    chunked = [data[start:end] for start, end in itertools.pairwise(places)]
    octets = [data[place : place + 1] for place in range(len(data))]
    expected = plain_reading(data, size_max_bytes)
    with asyncio.Runner() as runner:
        for chunks in ([data], chunked, octets):
            assert runner.run(converse(chunks, size_max_bytes)) == expected


@given(
    st.lists(
        st.binary(max_size=40)
        | st.sampled_from(STEPS)
        | st.builds(
            lambda start, rest: start + rest.encode() + b"\r\n",
            st.sampled_from([b"EHLO ", b"MAIL FROM:", b"RCPT TO:", b"MAIL FROM:<a@b> ", b"VRFY ", b"DATA ", b"HELP "]),
            st.text(alphabet='<>@.:;"[]\\ =aSIZEBODY8-\t\x00\x7fü\u2028', max_size=30),
        ),
        max_size=30,
    )
)
def test_no_bytes_make_it_stumble(steps: list[bytes]) -> None:
    """Whatever is said, no exception is logged and every reply is well formed."""
    errors: list[logging.LogRecord] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record)

    handler = Watch(logging.ERROR)
    logger = logging.getLogger("smtpraft.smtp")
    logger.addHandler(handler)
    try:
        with asyncio.Runner() as runner:
            found, _ = runner.run(converse(steps, 1000))
    finally:
        logger.removeHandler(handler)
    assert not errors
    assert all(200 <= code < 560 for code in found)
