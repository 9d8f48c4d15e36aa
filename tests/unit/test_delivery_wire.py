"""Replies and message text as bytes, compared with the plainest way to do the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.delivery.smtp_wire import (
    REPLY_BYTES_MAX,
    REPLY_LINE_BYTES_MAX,
    DotStuffer,
    Extensions,
    MalformedReply,
    Reply,
    ReplyParser,
)

LINES = st.lists(st.sampled_from([b".", b"..", b"", b"text", b".x", b"a.b", b"."]), max_size=8)
NASTY = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"x", b"\0", b"\r\n.\r\n", b"\n.\n"]), max_size=20)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    """Return `data` in pieces, cut at the given places."""
    places = sorted({min(place, len(data)) for place in at})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def sent(blocks: list[bytes]) -> bytes:
    stuffer = DotStuffer()
    return b"".join(stuffer.block(block) for block in blocks) + stuffer.end()


def naive(data: bytes) -> bytes:
    """Line by line, as RFC 5321 §4.5.2 says it."""
    data = re.sub(rb"\r(?!\n)|(?<!\r)\n|\0", b" ", data)
    if not data:
        return b""
    lines = data.removesuffix(b"\r\n").split(b"\r\n") if data.endswith(b"\r\n") else data.split(b"\r\n")
    return b"".join((b"." + line if line.startswith(b".") else line) + b"\r\n" for line in lines)


@given(LINES, st.booleans(), st.lists(st.integers(0, 60), max_size=6))
def test_dots_are_stuffed_wherever_the_blocks_are_cut(lines: list[bytes], ended: bool, at: list[int]) -> None:
    data = b"\r\n".join(lines) + (b"\r\n" if ended else b"")
    assert sent(cut(data, at)) == naive(data)


@given(NASTY, st.lists(st.integers(0, 80), max_size=6))
def test_what_ends_no_line_by_the_rules_never_leaves(parts: list[bytes], at: list[int]) -> None:
    data = b"".join(parts)
    text = sent(cut(data, at))
    assert text == naive(data)
    assert text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n")
    assert b"\0" not in text
    assert b"\r\n.\r\n" not in b"\r\n" + text  # nothing but our own dot ends it


@given(NASTY)
def test_a_receiver_reads_back_the_same_message(parts: list[bytes]) -> None:
    text = sent([b"".join(parts)])
    lines = text.split(b"\r\n")[:-1]
    received = b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)
    assert received == re.sub(rb"(?m)^\.", b"", naive(b"".join(parts)).replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")


def test_replacing_is_told() -> None:
    stuffer = DotStuffer()
    stuffer.block(b"fine\r\n")
    assert not stuffer.replaced
    stuffer.block(b"a\rb")
    assert stuffer.replaced


@given(st.lists(st.integers(0, 200), max_size=8))
def test_replies_are_read_wherever_they_are_cut(at: list[int]) -> None:
    data = b"220 hello\r\n250-one\r\n250-two\r\n250 three\r\n354\r\n550-5.1.1 no\n550 5.1.1 such user\n"
    parser = ReplyParser()
    replies = [reply for piece in cut(data, at) for reply in parser.feed(piece)]
    assert replies == [
        Reply(220, "hello"),
        Reply(250, "one\ntwo\nthree"),
        Reply(354, ""),
        Reply(550, "5.1.1 no\n5.1.1 such user"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b"\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"250x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"250 " + b"x" * REPLY_LINE_BYTES_MAX + b"\r\n",
        b"x" * (REPLY_LINE_BYTES_MAX + 1),
        b"250-x\r\n" * (REPLY_BYTES_MAX // 5 + 1),
    ],
)
def test_what_is_no_reply_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedReply):
        ReplyParser().feed(data)


@given(st.binary())
def test_no_bytes_make_the_parser_fail_in_another_way(data: bytes) -> None:
    try:
        replies = ReplyParser().feed(data)
    except MalformedReply:
        return
    assert all(200 <= reply.code < 600 for reply in replies)


@pytest.mark.parametrize(
    ("reply", "enhanced"),
    [
        (Reply(550, "5.1.1 no"), "5.1.1"),
        (Reply(550, "5.1.1"), "5.1.1"),
        (Reply(550, "4.1.1 of another class"), ""),
        (Reply(550, "no 5.1.1"), ""),
        (Reply(250, "2.10.0 ok\nmore"), "2.10.0"),
        (Reply(550, "5.1.1234 no"), ""),
    ],
)
def test_an_enhanced_code_counts_if_it_is_of_the_replys_class(reply: Reply, enhanced: str) -> None:
    """RFC 2034 §4."""
    assert reply.enhanced == enhanced


def test_extensions_are_read_without_regard_to_case() -> None:
    assert Extensions.parse(Reply(250, "mx\npipelining\nSize 1000\n8bitMIME\nSMTPUTF8")) == Extensions(
        True, True, True, True, 1000
    )
    assert Extensions.parse(Reply(250, "PIPELINING")) == Extensions()  # the first line is a name
    assert Extensions.parse(Reply(250, "mx\nSIZE")).size_bytes_max == 0
    assert Extensions.parse(Reply(250, "mx\nSIZE many")).size_bytes_max == 0
