"""Command lines and the arguments of MAIL and RCPT: RFC 5321 §4.1.1, RFC 1870, RFC 6152, RFC 6531."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.smtp.command import CommandRefused, parse_mail, parse_rcpt
from smtpraft.smtp.faults import COMMAND_BYTES_MAX_EXTENDED, LineFault


def cut(scan: ModuleType, chunks: Iterable[bytes]) -> list[tuple[bytes, str | None, int] | LineFault]:
    lines = scan.CommandLines()
    found = []
    for chunk in chunks:
        lines.feed(chunk)
        while (line := lines.next_command()) is not None:
            found.append(line)
    return found


def reference(data: bytes) -> list[str]:
    """Octet by octet: what each CRLF-ended line is, and whether what is left over is already bad."""
    found = []
    line = bytearray()
    for octet in data:
        line.append(octet)
        if line.endswith(b"\r\n"):
            found.append(verdict(bytes(line[:-2])))
            line.clear()
    rest = bytes(line).removesuffix(b"\r")
    if verdict(rest) != "line":
        found.append("fault")
    return found


def verdict(line: bytes) -> str:
    bad = any(octet in line for octet in b"\r\n\0")
    return "fault" if bad or len(line) > COMMAND_BYTES_MAX_EXTENDED else "line"


def chunked(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


NOOP = (b"NOOP", "", 4)

STREAMS = st.lists(
    st.sampled_from(
        [b"NOOP", b"\r\n", b"\r\n", b"\n", b"\r", b"\0", b"\r\r\n", b"x" * 1500, b"MAIL FROM:<a@b>", b"\xff"]
    ),
    max_size=20,
).map(b"".join)


@given(STREAMS, st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_chunking_of_the_same_bytes_gives_the_same_lines(scan: ModuleType, data: bytes, cuts: list[int]) -> None:
    expected = reference(data)
    for chunks in ([data], chunked(data, cuts), [data[place : place + 1] for place in range(len(data))]):
        found = cut(scan, chunks)
        assert ["fault" if isinstance(line, LineFault) else "line" for line in found] == expected
        assert [line for line in found if isinstance(line, tuple)] == [
            line for line in cut(scan, [data]) if isinstance(line, tuple)
        ]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"", (b"", "", 0)),
        (b"noop", (b"NOOP", "", 4)),
        (b"Mail FROM:<a@b>", (b"MAIL", "FROM:<a@b>", 15)),
        (b"RcPt  \tTO:<a@b> \t", (b"RCPT", "TO:<a@b>", 17)),
        (b" MAIL", (b"", "MAIL", 5)),
        (b"MAIL\tx", (b"MAIL\tX", "", 6)),
        (b"xyzw a", (b"XYZW", "a", 6)),
        ("VRFY ü".encode(), (b"VRFY", "ü", 7)),
        (b"VRFY \xff", (b"VRFY", None, 6)),
        (b"\xff\xfe x", (b"\xff\xfe", "x", 4)),
        (b"QUIT ", (b"QUIT", "", 5)),
    ],
)
def test_a_line_is_a_verb_and_an_argument(
    scan: ModuleType, line: bytes, command: tuple[bytes, str | None, int]
) -> None:
    assert cut(scan, [line + b"\r\n"]) == [command]


def test_only_crlf_ends_a_command(scan: ModuleType) -> None:
    """A line with a bare LF is one bad line: what follows the LF is no command (RFC 5321 §2.3.8)."""
    assert cut(scan, [b"NOOP\nRCPT TO:<victim@x>\r\nNOOP\r\n"]) == [LineFault.BARE, NOOP]
    assert cut(scan, [b"NOOP\rQUIT\r\nNOOP\r\n"]) == [LineFault.BARE, NOOP]
    assert cut(scan, [b"NO\0OP\r\nNOOP\r\n"]) == [LineFault.BARE, NOOP]


def test_a_client_that_ends_lines_with_lf_is_answered_at_once(scan: ModuleType) -> None:
    assert cut(scan, [b"EHLO x\n"]) == [LineFault.BARE]
    assert cut(scan, [b"EHLO x\n", b"EHLO y\n", b"z\r\nNOOP\r\n"]) == [LineFault.BARE, NOOP]


def test_an_endless_line_is_answered_once_and_not_kept(scan: ModuleType) -> None:
    lines = scan.CommandLines()
    faults = 0
    for _ in range(1000):
        lines.feed(b"x" * 10_000)
        while lines.next_command() is not None:
            faults += 1
    assert faults == 1
    assert len(lines.take_rest()) == 0


def test_what_follows_data_is_not_lost(scan: ModuleType) -> None:
    lines = scan.CommandLines()
    lines.feed(b"DATA\r\nSubject: x\r\n\r\n.\r\nQUIT\r\n")
    assert lines.next_command() == (b"DATA", "", 4)
    assert lines.take_rest() == b"Subject: x\r\n\r\n.\r\nQUIT\r\n"
    assert lines.next_command() is None


@pytest.mark.parametrize(
    ("argument", "address", "size_bytes", "body_8bitmime", "smtputf8"),
    [
        ("FROM:<>", "", 0, False, False),
        ("from:<a@b>", "a@b", 0, False, False),
        ("FROM: <a@b>", "a@b", 0, False, False),
        ("FROM:<a@b> SIZE=123", "a@b", 123, False, False),
        ("FROM:<a@b>  size=0  body=8bitmime", "a@b", 0, True, False),
        ("FROM:<a@b> BODY=7BIT SMTPUTF8", "a@b", 0, False, True),
        ("FROM:<ü@b> SMTPUTF8 BODY=8BITMIME", "ü@b", 0, True, True),
        ("FROM:<@r:a@b> SIZE=99999999999999999999", "a@b", 99999999999999999999, False, False),
    ],
)
def test_mail_is_read(argument: str, address: str, size_bytes: int, body_8bitmime: bool, smtputf8: bool) -> None:
    mail = parse_mail(argument)
    assert mail.path.address == address
    assert (mail.size_bytes, mail.body_8bitmime, mail.smtputf8) == (size_bytes, body_8bitmime, smtputf8)


def test_keywords_of_parameters_are_given_in_capitals_and_values_as_they_came() -> None:
    """As to aiosmtpd's hooks; RFC 5321 §2.4: keywords are the same in any case."""
    assert parse_mail("FROM:<a@b> size=7 Body=8bitMime smtputf8").options == ["SIZE=7", "BODY=8bitMime", "SMTPUTF8"]


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("", "501 5.5.4"),
        ("TO:<a@b>", "501 5.5.4"),
        ("FROM <a@b>", "501 5.5.4"),
        ("FROM:a@b", "501 5.1.7"),
        ("FROM:<a>", "501 5.1.7"),
        ("FROM:<postmaster>", "501 5.1.7"),
        ("FROM:<a@b>SIZE=1", "501 5.5.4"),
        ("FROM:<a@b>\tSIZE=1", "501 5.5.4"),
        ("FROM:<a@b> SIZE", "501 5.5.4"),
        ("FROM:<a@b> SIZE=", "501 5.5.4"),
        ("FROM:<a@b> SIZE=-1", "501 5.5.4"),
        ("FROM:<a@b> SIZE=1e3", "501 5.5.4"),
        ("FROM:<a@b> SIZE=\u0661", "501 5.5.4"),
        ("FROM:<a@b> SIZE=1 SIZE=2", "501 5.5.4"),
        ("FROM:<a@b> SIZE=123456789012345678901", "501 5.5.4"),
        ("FROM:<a@b> BODY", "501 5.5.4"),
        ("FROM:<a@b> BODY=BINARYMIME", "501 5.5.4"),
        ("FROM:<a@b> SMTPUTF8=1", "501 5.5.4"),
        ("FROM:<a@b> =1", "501 5.5.4"),
        ("FROM:<a@b> X=a=b", "501 5.5.4"),
        ("FROM:<a@b> X=a\x01", "501 5.5.4"),
        ("FROM:<a@b> RET=HDRS", "555 5.5.4"),
        ("FROM:<a@b> MT-PRIORITY=3", "555 5.5.4"),
        ("FROM:<ü@b>", "553 5.6.7"),
        ("FROM:<a@ü>", "553 5.6.7"),
    ],
)
def test_mail_that_cannot_be_read_is_refused(argument: str, reply: str) -> None:
    with pytest.raises(CommandRefused) as refused:
        parse_mail(argument)
    assert refused.value.reply.startswith(reply + " ")


@pytest.mark.parametrize(
    ("argument", "smtputf8", "reply"),
    [
        ("TO:<>", False, "501 5.1.3"),
        ("TO:a@b", False, "501 5.1.3"),
        ("TO:<joe>", False, "501 5.1.3"),
        ("FROM:<a@b>", False, "501 5.5.4"),
        ("TO:<a@b>x", False, "501 5.5.4"),
        ("TO:<a@b> NOTIFY=NEVER", False, "555 5.5.4"),
        ("TO:<ü@b>", False, "553 5.6.7"),
    ],
)
def test_rcpt_that_cannot_be_read_is_refused(argument: str, smtputf8: bool, reply: str) -> None:
    with pytest.raises(CommandRefused) as refused:
        parse_rcpt(argument, smtputf8)
    assert refused.value.reply.startswith(reply + " ")


def test_rcpt_is_read() -> None:
    assert parse_rcpt("TO:<a@b>", False).address == "a@b"
    assert parse_rcpt("to: <postmaster>", False).address == "postmaster"
    assert parse_rcpt("TO:<ü@b>", True).address == "ü@b"


@given(
    st.sampled_from(["", "FROM:", "TO:"]),
    st.text(alphabet='<>@.:;"\\ =ab1-SIZEBODY\t\x00\x7fü', max_size=40),
    st.booleans(),
)
def test_an_argument_is_read_or_refused_with_a_reply(start: str, argument: str, smtputf8: bool) -> None:
    for parse in (parse_mail, lambda text: parse_rcpt(text, smtputf8)):
        try:
            parse(start + argument)
        except CommandRefused as refused:
            reply = refused.reply
        else:
            continue
        assert reply[:3].isdigit()
        assert reply.isascii()
        assert reply.isprintable()
