"""One attempt: a message, its recipients at one destination, and what the far side answered for each."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from smtpraft.delivery.smtp_wire import Reply
from smtpraft.errors import SmtpRaftError

GONE_STATUS: Final = "4.4.2"  # RFC 3463: bad connection
LOOKUP_STATUS: Final = "4.4.3"  # RFC 3463: directory server failure
CONNECT_STATUS: Final = "4.4.1"  # RFC 3463: no answer from host


class Verdict(enum.Enum):
    """What one recipient's answer means to the queue."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    NOT_NOW = "not now"
    """The server wants this recipient in another transaction (RFC 5321 §4.5.3.1.10), right after this one."""


class Answer(NamedTuple):
    """What became of one recipient. `code` is 0 when the words are ours and not a server's."""

    verdict: Verdict
    code: int
    status: str
    """Enhanced status code, RFC 3463."""
    text: str
    command: str = ""
    """The command that was answered, `RCPT TO`, or what we did."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a transport needs to know of a message."""

    id: str
    sender: str
    recipients: Sequence[str]
    content: Sequence[bytes]
    """The message in blocks of any size, lines ended by CRLF."""
    smtputf8: bool
    may_send: Callable[[], bool]
    """May this node still deliver it? Asked after every wait and right before the step that completes it."""

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.content))


class Abandoned(SmtpRaftError):
    """We may not work on the message any more. Nothing that completes it was sent; nothing is to be reported."""


class DestinationFailed(SmtpRaftError):
    """No session could be had: this says something of the destination, and nothing of any message."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


def answer_of(reply: Reply, command: str) -> Answer:
    """Return what `reply` to `command` means where 2yz is success; a 3yz is a server that lost its place."""
    if reply.code < 300:
        return Answer(Verdict.DELIVERED, reply.code, reply.enhanced or "2.0.0", reply.text, command)
    if reply.code >= 500:
        return Answer(Verdict.FAILED, reply.code, reply.enhanced or "5.0.0", reply.text, command)
    if reply.code >= 400:
        return Answer(Verdict.DEFERRED, reply.code, reply.enhanced or "4.0.0", reply.text, command)
    return Answer(Verdict.DEFERRED, reply.code, "4.5.0", f"unexpected reply: {reply.text}", command)


def deferred(status: str, text: str, command: str = "") -> Answer:
    """Return a temporary failure in our own words."""
    return Answer(Verdict.DEFERRED, 0, status, text, command)


def failed(status: str, text: str, command: str = "") -> Answer:
    """Return a permanent failure in our own words."""
    return Answer(Verdict.FAILED, 0, status, text, command)


def clipped(text: str, bytes_max: int) -> str:
    """Return the beginning of a server's words, `bytes_max` long at most in UTF-8."""
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
