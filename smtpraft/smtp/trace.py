"""The `Received:` line (RFC 5321 §4.4, RFC 3848, RFC 6531 §4.3), and counting those of others to find loops.

Received: from client.example ([192.0.2.1])
        by mx1.example.org (smtpraft) with ESMTP id 5f1c09e2-12
        for <user@example.net>; Thu, 26 Nov 2026 12:00:00 +0000

The id is the transaction's, unique on this node: the queue id is born with the commit, and these bytes are part of what
is committed. The log line of the acceptance names both. `for` appears only with a single recipient, so that nobody
learns of the others. `Return-Path:` is the final delivery's to add.
"""

from __future__ import annotations

import email.utils
import re
from typing import Final

HEADER_BYTES_SCANNED: Final = 128 * 1024  # a loop adds its lines on top; Postfix looks at 100 KiB of header
_NOT_IN_TRACE: Final = re.compile(r"[^A-Za-z0-9._:\[\]-]")


class DateLine:
    """RFC 5322 dates, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def at(self, time_s: float) -> str:
        """Return the date of a POSIX time, in UTC: the nodes of a cluster need not share a time zone."""
        second = int(time_s)
        if second != self._second:
            self._text = email.utils.formatdate(second)[:-5] + "+0000"  # "-0000" would say "zone unknown"
            self._second = second
        return self._text


def received_line(
    *, helo: str, client_host: str, hostname: str, protocol: str, transaction_id: str, recipient: str, date: str
) -> bytes:
    """Return a folded `Received:` line. `recipient` is "" if there are several.

    `helo` is the client's claim: what could leave its place in the line is replaced by `?`.
    """
    claimed = _NOT_IN_TRACE.sub("?", helo)
    for_clause = f"\tfor <{recipient}>; " if recipient else "\t"
    id_end = "" if recipient else ";"
    return (
        f"Received: from {claimed} ([{client_host}])\r\n"
        f"\tby {hostname} (smtpraft) with {protocol} id {transaction_id}{id_end}\r\n"
        f"{for_clause}{date}\r\n"
    ).encode()


def count_received(content: list[bytes]) -> int:
    """Return how many `Received:` lines the header of `content` has (RFC 5321 §6.3)."""
    if not content or content[0].startswith(b"\r\n"):
        return 0
    start = content[0]
    if len(start) < HEADER_BYTES_SCANNED and len(content) > 1:
        start = b"".join(content[:4])
    end = start.find(b"\r\n\r\n", 0, HEADER_BYTES_SCANNED)
    header = start[: end if end >= 0 else HEADER_BYTES_SCANNED].lower()
    return header.count(b"\nreceived:") + header.startswith(b"received:")
