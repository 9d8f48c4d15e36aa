"""Notifications, read back by the standard library."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

import pytest

from smtpraft.delivery.attempt import Answer, Verdict, failed
from smtpraft.delivery.bounce import (
    HEADER_BYTES_MAX,
    RETURNED_BYTES_MAX,
    Notification,
    Returned,
    Undelivered,
    notification,
)

NO_USER = Answer(Verdict.FAILED, 550, "5.1.1", "5.1.1 no such user", "RCPT TO")
ORIGINAL = b"Received: by mx\r\nSubject: hello\r\nFrom: sender@example.net\r\n\r\nthe body\r\n"


def undelivered(address: str = "a@example.org", answer: Answer = NO_USER, *, expired: bool = False) -> Undelivered:
    return Undelivered(address, answer, "4.4.7" if expired else answer.status, expired, "mail.example.org")


def made(
    *recipients: Undelivered, content: tuple[bytes, ...] = (ORIGINAL,), sender: str = "sender@example.net"
) -> Notification:
    returned = Returned("00000000000A", sender, 1_700_000_000_000, content)
    what = notification(returned, recipients, hostname="mx.example.org", now_ms=1_700_000_060_000, token="abc123")
    assert what is not None
    return what


def parsed(what: Notification) -> EmailMessage:
    message = email.message_from_bytes(what.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    for part in message.walk():
        assert not part.defects
    return message


def parts(message: EmailMessage) -> list[EmailMessage]:
    return [part for part in message.iter_parts() if isinstance(part, EmailMessage)]


def test_a_notification_is_a_report_of_three_parts() -> None:
    """RFC 3464 §2, RFC 6522 §3."""
    message = parsed(made(undelivered()))
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["To"] == "sender@example.net"
    assert message["From"] == "Mail Delivery System <MAILER-DAEMON@mx.example.org>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message["Date"] == "Tue, 14 Nov 2023 22:14:20 +0000"
    text, status, original = parts(message)
    assert text.get_content_type() == "text/plain"
    assert "<a@example.org>: host mail.example.org said: 550 5.1.1 no such user" in " ".join(text.get_content().split())
    assert status.get_content_type() == "message/delivery-status"
    per_message, per_recipient = status.iter_parts()
    assert per_message["Reporting-MTA"] == "dns; mx.example.org"
    assert per_message["Arrival-Date"] == "Tue, 14 Nov 2023 22:13:20 +0000"
    assert dict(per_recipient.items()) == {
        "Final-Recipient": "rfc822; a@example.org",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mail.example.org",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        "Last-Attempt-Date": "Tue, 14 Nov 2023 22:14:20 +0000",
    }
    assert original.get_content_type() == "message/rfc822"
    assert original.get_content()["Subject"] == "hello"


def test_lines_end_by_the_rules_and_are_short() -> None:
    long = Answer(Verdict.FAILED, 550, "5.0.0", "word " * 200, "end of data")
    content = made(undelivered(answer=long), undelivered("b@example.org")).content
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert max(map(len, content.split(b"\r\n"))) <= 120


def test_several_recipients_are_told_of_in_one_notification() -> None:
    ours = failed("5.1.3", "address cannot be a path", "maildir")
    message = parsed(
        made(undelivered(), undelivered("b@example.org", ours), undelivered("c@example.org", expired=True))
    )
    _, status, _ = parts(message)
    _, first, second, third = status.iter_parts()
    assert first["Status"] == "5.1.1"
    assert second["Diagnostic-Code"] == "x-smtpraft; address cannot be a path"
    assert second["Remote-MTA"] is None
    assert third["Status"] == "4.4.7"


def test_nobody_is_told_about_a_message_from_nobody() -> None:
    """RFC 5321 §6.1."""
    for sender in ("", "evil\r\nBcc: all@example.org"):
        returned = Returned("00000000000A", sender, 0, (ORIGINAL,))
        assert notification(returned, [undelivered()], hostname="mx", now_ms=0, token="abc") is None


def test_what_a_server_says_cannot_break_the_report() -> None:
    evil = Answer(
        Verdict.FAILED, 550, "5.0.0", "no\r\n\r\n--00000000000A.abc123\r\nX: \x00\x85\u2028\udcff ü", "RCPT TO"
    )
    what = made(undelivered(answer=evil))
    assert what.content.isascii()
    assert len(parts(parsed(what))) == 3


def test_a_large_message_comes_back_as_its_header() -> None:
    content = (ORIGINAL, b"x" * RETURNED_BYTES_MAX)
    what = made(undelivered(), content=content)
    assert len(what.content) < 4000
    _, _, original = parts(parsed(what))
    assert original.get_content_type() == "text/rfc822-headers"
    assert "Subject: hello" in original.get_content()
    assert "the body" not in original.get_content()


@pytest.mark.parametrize(
    "content", [(b"X: " + b"y" * 70 + b"\r\n",) * 5000, (b"X: y\r\n" * 10_000 + b"\r\nbody\r\n",), (b"x" * 100_000,)]
)
def test_even_a_header_is_bounded(content: tuple[bytes, ...]) -> None:
    assert len(made(undelivered(), content=content).content) < HEADER_BYTES_MAX + 4000


@pytest.mark.parametrize(
    "content", [(), (b"\r\nno header\r\n",), (b"Subject: only a header\r\n",), (b"\r", b"\nx\r\n")]
)
def test_odd_messages_come_back_too(content: tuple[bytes, ...]) -> None:
    assert len(parts(parsed(made(undelivered(), content=content)))) == 3


def test_eight_bit_text_comes_back_as_it_was() -> None:
    body = "Grüße\r\n".encode()
    what = made(undelivered(), content=(ORIGINAL + body,))
    assert body in what.content
    assert parsed(what)["Content-Transfer-Encoding"] == "8bit"
    assert not what.smtputf8


def test_utf8_addresses_make_a_global_report() -> None:
    """RFC 6533."""
    what = made(undelivered("jürgen@example.org"), content=("Subject: Grüße\r\n\r\nx\r\n".encode(),))
    assert what.smtputf8
    kinds = [part.get_content_type() for part in parts(parsed(what))]
    assert kinds == ["text/plain", "message/global-delivery-status", "message/global"]
    assert "Final-Recipient: utf-8; jürgen@example.org".encode() in what.content


def test_a_thousand_recipients_make_less_than_a_log_entry() -> None:
    long = Answer(Verdict.FAILED, 550, "5.0.0", "word " * 200, "RCPT TO")
    recipients = [undelivered(f"{'u' * 60}{i}@{'d' * 60}.example.org", long) for i in range(1000)]
    assert len(made(*recipients).content) < 1024 * 1024


def test_a_person_is_told_of_the_first_hundred() -> None:
    text = parts(parsed(made(*(undelivered(f"a{number}@example.org") for number in range(150)))))[0].get_content()
    assert "<a99@example.org>" in text
    assert "<a100@example.org>" not in text
    assert "and 50 more" in text
