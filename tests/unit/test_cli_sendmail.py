"""`smtpraft sendmail`: from what a program pipes to what goes over the wire."""

from __future__ import annotations

import email
import email.utils
from typing import Any

import pytest

from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.sendmail import Mail, compose, deliver


def composed(text: bytes, *recipients: str, **given: Any) -> Mail:
    facts: dict[str, Any] = {"sender": "me@example.org", "name": None, "from_header": False, "dot_ends": False} | given
    return compose(text, recipients=recipients, **facts)


def test_recipients_come_from_the_header_and_bcc_stays_secret() -> None:
    text = b"To: A <a@x.example>,\n b@x.example\nCc: c@x.example\nBcc: d@x.example,\n e@x.example\nSubject: s\n"
    text += b"\nbcc: body\n"
    mail = composed(text, "f@x.example", from_header=True)
    assert set(mail.recipients) == {f"{name}@x.example" for name in "abcdef"}
    assert b"d@x.example" not in mail.content
    assert b"e@x.example" not in mail.content
    assert mail.content.endswith(b"Subject: s\r\n\r\nbcc: body\r\n")


def test_what_the_header_lacks_is_added_and_what_it_has_is_kept() -> None:
    message = email.message_from_bytes(composed(b"Subject: s\n\nx\n", "a@x.example", name="Me, Myself").content)
    assert email.utils.parseaddr(message["From"]) == ("Me, Myself", "me@example.org")
    assert email.utils.parsedate_to_datetime(message["Date"]).year > 2000
    assert message["Message-ID"].startswith("<")
    given = b"From: x@y.example\r\nDate: d\r\nMessage-ID: <m>\r\n\r\nx\r\n"
    assert composed(given, "a@x.example").content == given


def test_a_text_without_a_header_becomes_the_body() -> None:
    mail = composed(b"hello: there is a colon, but no field\nlast", "a@x.example")
    assert mail.content.endswith(b"\r\n")
    assert b"\r\n\r\n" in mail.content or b"hello: there" in mail.content
    mail = composed(b"just a line\nand another\n", "a@x.example")
    assert mail.content.endswith(b"\r\n\r\njust a line\r\nand another\r\n")


def test_a_lone_dot_ends_the_message_unless_it_is_told_not_to() -> None:
    assert composed(b"S: s\n\na\n.\nb\n", "a@x.example", dot_ends=True).content.endswith(b"\r\n\r\na\r\n")
    assert composed(b"S: s\n\na\n.\nb\n", "a@x.example").content.endswith(b"\r\n\r\na\r\n.\r\nb\r\n")


def test_the_null_sender_is_said_in_two_ways() -> None:
    assert composed(b"S: s\n\n", "a@x.example", sender="<>").sender == ""
    assert composed(b"S: s\n\n", "a@x.example", sender="").sender == ""


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_every_line_ends_as_smtp_wants_it(newline: bytes) -> None:
    content = composed(b"A: b" + newline * 2 + b"x" + newline + b"y", "a@x.example").content
    assert content.endswith(b"A: b\r\n\r\nx\r\ny\r\n")


@pytest.mark.parametrize(
    ("text", "recipients", "status"),
    [
        (b"S: s\n\nx\n", (), Exit.USAGE),
        (b"S: s\n\nx\0\n", ("a@x.example",), Exit.DATA),
        (b"S: s\n\nx\n", ("a@x.example> SIZE=1\r\nRCPT TO:<b@x.example",), Exit.DATA),
    ],
)
def test_what_cannot_be_sent_is_refused(text: bytes, recipients: tuple[str, ...], status: Exit) -> None:
    with pytest.raises(CommandError) as caught:
        composed(text, *recipients)
    assert caught.value.status == status


def test_nobody_there_is_a_temporary_failure() -> None:
    with pytest.raises(CommandError) as caught:
        deliver(composed(b"S: s\n\n", "a@x.example"), ["127.0.0.1:1", "127.0.0.1:2"])
    assert caught.value.status == Exit.TEMPFAIL
    assert len(caught.value.lines) == 2
