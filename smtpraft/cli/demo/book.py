"""Who promised what: every attempt to send, every reply to it, every copy that arrived. The verdict comes from here.

Each attempt carries an id of its own in its first header field, so that a repeat by the cluster (one id, twice at the
sink) is told from a message that its sender sent again (two ids).
"""

from __future__ import annotations

import enum
import hashlib
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

ID_FIELD: Final = b"X-Demo-Id: "
_TRACE_ONLY: Final = re.compile(rb"(?:Received:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*)*", re.IGNORECASE)


class Outcome(enum.Enum):
    """What the sender knows of an attempt."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    """A 4yz or 5yz reply: it must never arrive (RFC 5321 §4.2.5)."""
    BROKEN_OFF = "broken off"
    """The connection broke before the first content byte: it must never arrive either."""
    UNKNOWN = "unknown"
    """The connection broke between the first content byte and the reply: it may arrive or not."""


@dataclass(slots=True)
class Attempt:
    """One try to hand one message over."""

    digest: bytes
    recipients: tuple[str, ...]
    outcome: Outcome = Outcome.OPEN
    copies: Counter[str] = field(default_factory=Counter)

    @property
    def delivered(self) -> bool:
        return all(self.copies[recipient] for recipient in self.recipients)


@dataclass(slots=True)
class Kill:
    """A node was killed `at`; `seconds` later a message that was sent after it got its 250."""

    node: str
    at: float
    seconds: float | None = None


class Book:
    """All attempts by id, and the counts."""

    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.kills: list[Kill] = []
        self.damaged = 0
        self.strange = 0
        self.misrouted = 0
        self.longest_pause_s = 0.0
        self.replies_refusing: Counter[str] = Counter()
        self.acknowledged = 0
        self.undelivered = 0

    def open(self, attempt_id: str, content: bytes, recipients: tuple[str, ...]) -> None:
        """Note that `content` is about to be sent under `attempt_id`."""
        assert attempt_id not in self.attempts
        self.attempts[attempt_id] = Attempt(hashlib.sha256(content).digest(), recipients)

    def close(self, attempt_id: str, outcome: Outcome, sent_at: float = 0.0) -> None:
        """Note how an attempt ended; `sent_at` is when its final dot left."""
        attempt = self.attempts[attempt_id]
        assert attempt.outcome is Outcome.OPEN
        attempt.outcome = outcome
        if outcome is Outcome.ACKNOWLEDGED:
            now = time.monotonic()
            self.acknowledged += 1
            self.undelivered += not attempt.delivered
            for kill in self.kills:
                if kill.seconds is None and sent_at > kill.at:
                    kill.seconds = now - kill.at

    def arrived(self, recipients: list[str], content: bytes) -> None:
        """Note a copy at the sink: it must be what was sent, byte for byte, below `Received:` fields."""
        trace = _TRACE_ONLY.match(content)
        start = trace.end() if trace else 0
        own = content[start:]
        attempt_id = own[len(ID_FIELD) : own.find(b"\r\n")].decode("ascii", "replace")
        attempt = self.attempts.get(attempt_id)
        if attempt is None or not own.startswith(ID_FIELD):
            self.strange += 1
            return
        if hashlib.sha256(own).digest() != attempt.digest:
            self.damaged += 1
            return
        was_delivered = attempt.delivered
        for recipient in recipients:
            if recipient in attempt.recipients:
                attempt.copies[recipient] += 1
            else:
                self.misrouted += 1
        if attempt.outcome is Outcome.ACKNOWLEDGED and attempt.delivered and not was_delivered:
            self.undelivered -= 1

    def of(self, outcome: Outcome) -> list[Attempt]:
        """Return the attempts that ended so."""
        return [attempt for attempt in self.attempts.values() if attempt.outcome is outcome]

    @property
    def lost(self) -> int:
        """Acknowledged, and not at the sink for every recipient."""
        return sum(not attempt.delivered for attempt in self.of(Outcome.ACKNOWLEDGED))

    @property
    def refused_but_delivered(self) -> int:
        """Refused or not even handed over, and at the sink all the same."""
        return sum(bool(attempt.copies) for attempt in [*self.of(Outcome.REFUSED), *self.of(Outcome.BROKEN_OFF)])

    @property
    def repeated(self) -> int:
        """Copies beyond the first, by attempt and recipient."""
        return sum(count - 1 for attempt in self.attempts.values() for count in attempt.copies.values())
