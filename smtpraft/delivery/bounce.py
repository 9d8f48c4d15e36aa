"""The notification that a message could not be delivered (RFC 3464; RFC 6533 where an address is not ASCII).

    multipart/report
      text/plain                       for the person
      message/delivery-status          for programs
      message/rfc822                   the message, if it is small; else text/rfc822-headers

Its envelope sender is <>, it goes to the sender of the message, and there is none about a message from <>: nobody is
told that a notification could not be delivered (RFC 5321 §6.1). It is built before the failure is proposed to the
cluster and travels in the same command, so there is exactly one.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from smtpraft.delivery import addresses
from smtpraft.delivery.attempt import Answer, clipped

RETURNED_BYTES_MAX: Final = 50_000  # Postfix: bounce_size_limit
HEADER_BYTES_MAX: Final = 16_000
TEXT_BYTES_MAX: Final = 500
ALL_TEXT_BYTES_MAX: Final = 100_000  # as many failed recipients as an attempt may have must fit a log entry
PEOPLE_RECIPIENTS_MAX: Final = 100  # explained to the person; programs are told of all

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A recipient who will not get the message, and why."""

    address: str
    answer: Answer
    """The last one that there was."""
    status: str
    expired: bool
    remote: str
    """The server that gave the answer; "" if none did."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The message that comes back."""

    id: str
    sender: str
    accepted_ms: int
    content: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Notification:
    """What is queued to the sender: headers and body with CRLF line ends."""

    content: bytes
    smtputf8: bool


def notification(
    returned: Returned, recipients: Sequence[Undelivered], *, hostname: str, now_ms: int, token: str
) -> Notification | None:
    """Return the notification about `recipients`, or None if nobody can be told.

    `token` is a text that no message can guess; it becomes the boundary. Times are milliseconds since 1970.
    """
    if not returned.sender:
        return None
    try:
        addresses.check(returned.sender)
    except addresses.BadAddress:
        return None
    utf8 = not all(r.address.isascii() for r in recipients) or not returned.sender.isascii()
    limit = max(80, min(TEXT_BYTES_MAX, ALL_TEXT_BYTES_MAX // max(1, len(recipients))))
    people = _for_people(recipients, hostname, limit, utf8)
    programs = _for_programs(returned, recipients, hostname, now_ms, limit, utf8)
    kind, original = _original(returned.content, utf8)
    parts = [
        ("Notification", f"text/plain; charset={'utf-8' if utf8 else 'us-ascii'}", people),
        ("Delivery report", f"message/{'global-' if utf8 else ''}delivery-status", programs),
        ("Undelivered message", kind, original),
    ]
    boundary = f"{returned.id}.{token}"
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>",
        f"To: <{returned.sender}>",
        "Subject: Undelivered Mail Returned to Sender",
        f"Date: {_date(now_ms)}",
        f"Message-ID: <{boundary}@{hostname}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
        f"Content-Transfer-Encoding: {'7bit' if all(body.isascii() for _, _, body in parts) else '8bit'}",
    ]
    blocks = ["\r\n".join(lines).encode(), b"\r\n\r\n"]
    for description, content_type, body in parts:
        encoding = "7bit" if body.isascii() else "8bit"
        blocks.append(
            f"--{boundary}\r\nContent-Description: {description}\r\nContent-Type: {content_type}\r\n"
            f"Content-Transfer-Encoding: {encoding}\r\n\r\n".encode()
        )
        blocks.append(body)
        blocks.append(b"\r\n")
    blocks.append(f"--{boundary}--\r\n".encode())
    return Notification(b"".join(blocks), smtputf8=utf8)


def _for_people(recipients: Sequence[Undelivered], hostname: str, limit: int, utf8: bool) -> bytes:
    lines = [
        f"This is the mail system at host {hostname}.",
        "",
        "Your message could not be delivered to the recipients below, and no further",
        "attempt will be made. It is attached.",
        "",
    ]
    for recipient in recipients[:PEOPLE_RECIPIENTS_MAX]:
        reason = f"host {recipient.remote} said: " if recipient.answer.code else ""
        reason += _said(recipient.answer, limit)
        if recipient.answer.code and recipient.answer.command:
            reason += f" (in reply to {recipient.answer.command})"
        if recipient.expired:
            reason = f"it could not be delivered for too long; at last: {reason}"
        lines += [*_folded(f"<{_one_line(recipient.address)}>: {reason}", "    "), ""]
    if len(recipients) > PEOPLE_RECIPIENTS_MAX:
        lines += [f"and {len(recipients) - PEOPLE_RECIPIENTS_MAX} more, listed in the delivery report.", ""]
    return _text(lines, utf8)


def _for_programs(
    returned: Returned, recipients: Sequence[Undelivered], hostname: str, now_ms: int, limit: int, utf8: bool
) -> bytes:
    lines = [
        f"Reporting-MTA: dns; {hostname}",
        f"X-Smtpraft-Queue-Id: {returned.id}",
        f"X-Smtpraft-Sender: {'utf-8' if utf8 else 'rfc822'}; {returned.sender}",
        f"Arrival-Date: {_date(returned.accepted_ms)}",
    ]
    for recipient in recipients:
        # RFC 3464 §2.3.6: `smtp` is for what an SMTP server said.
        kind = "smtp" if recipient.answer.code else "x-smtpraft"
        address_type = "rfc822" if recipient.address.isascii() else "utf-8"
        lines += [
            "",
            f"Final-Recipient: {address_type}; {_one_line(recipient.address)}",
            "Action: failed",
            f"Status: {recipient.status}",
        ]
        if recipient.answer.code:
            lines.append(f"Remote-MTA: dns; {recipient.remote}")
        lines += _folded(f"Diagnostic-Code: {kind}; {_said(recipient.answer, limit)}", "    ")
        lines.append(f"Last-Attempt-Date: {_date(now_ms)}")
    return _text(lines, utf8)


def _original(content: Sequence[bytes], utf8: bool) -> tuple[str, bytes]:
    """Return the third part's type and what goes into it."""
    header, has_end = _header(content)
    international = utf8 and not header.isascii()
    if has_end and sum(map(len, content)) <= RETURNED_BYTES_MAX:
        return "message/global" if international else "message/rfc822", b"".join(content)
    if len(header) > HEADER_BYTES_MAX:
        header = header[: header.rfind(b"\r\n", 0, HEADER_BYTES_MAX) + 2]
    return "message/global-headers" if international else "text/rfc822-headers", header


def _header(content: Sequence[bytes]) -> tuple[bytes, bool]:
    """Return the header section, its last line end included, and whether its end was seen in a bounded part."""
    seen = bytearray()
    for block in content:
        seen += block[: RETURNED_BYTES_MAX + 1]
        if seen.startswith(b"\r\n"):
            return b"", True
        end = seen.find(b"\r\n\r\n")
        if end >= 0:
            return bytes(seen[: end + 2]), True
        if len(seen) > RETURNED_BYTES_MAX:
            return bytes(seen), False
    return bytes(seen), True


def _said(answer: Answer, limit: int) -> str:
    code = f"{answer.code} " if answer.code else ""
    text = _one_line(answer.text)
    beginning = clipped(text, limit)
    return code + (text if beginning == text else beginning + "...")


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text).strip()


def _folded(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, 78, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _text(lines: Sequence[str], utf8: bool) -> bytes:
    """Return the lines as bytes; UTF-8 only where an address needs it, for a server's words are not worth SMTPUTF8."""
    text = "\r\n".join([*lines, ""])
    return text.encode() if utf8 else text.encode("ascii", "replace")


def _date(ms: int) -> str:
    return format_datetime(datetime.fromtimestamp(ms / 1000, UTC))
