"""What the clients were told and what arrived, with nodes and times: the evidence on which the cluster tests judge.

Times are monotonic seconds of the test's process. Nodes are named by their ids.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft.cli.demo.book import ID_FIELD, Book, Outcome
from smtpraft.delivery.delivery import MAILDIR_THREADS
from smtpraft.delivery.outbox import UNREPORTED_MAX

CONNECTIONS_PER_ROUTE: Final = 8  # the default of delivery.connections_per_route
REPEATS_PER_KILL_MAX: Final = UNREPORTED_MAX + max(CONNECTIONS_PER_ROUTE, MAILDIR_THREADS)
"""Delivered and not yet recorded (docs/design.md, promise 4): the bound of the outbox, and what is under way."""

RECORDED_S: Final = 3.0
"""So long the outcome of a delivery may be on its way to the log: an election, and the work of a busy machine."""

BUFFERED_S: Final = 1.0
"""What a node wrote before it was stopped may be read here a little later."""

_ATTEMPT_ID: Final = re.compile(rb"^" + ID_FIELD + rb"([^\r\n]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Copy:
    """One message that a node handed to the sink."""

    at: float
    node: str
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A message that came again to somebody who had it."""

    attempt: str
    first: Copy
    again: Copy


@dataclass(frozen=True, slots=True)
class Answer:
    """A 250: the final dot left at `sent_at`, the reply came at `at`."""

    attempt: str
    node: str
    sent_at: float
    at: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A client was refused, or its session broke."""

    at: float
    node: str
    what: str


@dataclass(slots=True)
class Outage:
    """From `since` to `until` this node was down, or was not yet ready again: trouble with it is no wonder."""

    node: str
    since: float
    until: float = float("inf")


class Journal(Book):
    """The demo's book, and who, when and where."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: defaultdict[str, list[Copy]] = defaultdict(list)
        self.answers: list[Answer] = []
        self.troubles: list[Trouble] = []
        self.outages: list[Outage] = []
        self.last_arrival = time.monotonic()
        self._nodes: dict[str, str] = {}
        self._next_sender = 0

    def new_sender(self, node: str) -> int:
        """Return a number for a client of `node`; the attempts of its `Sender` carry it."""
        self._next_sender += 1
        self._nodes[str(self._next_sender)] = node
        return self._next_sender

    def node_of(self, attempt_id: str) -> str:
        """Return the node that this attempt was made at."""
        return self._nodes[attempt_id.split("-")[1]]

    def trouble(self, node: str, error: Exception) -> None:
        """Note what a client of `node` met."""
        self.troubles.append(Trouble(time.monotonic(), node, f"{type(error).__name__}: {error}"))

    def outage(self, node: str) -> Outage:
        """A node is being stopped now."""
        outage = Outage(node, time.monotonic())
        self.outages.append(outage)
        return outage

    def close(self, attempt_id: str, outcome: Outcome, sent_at: float = 0.0) -> None:
        """As `Book.close`; a 250 is noted with its times."""
        super().close(attempt_id, outcome, sent_at)
        if outcome is Outcome.ACKNOWLEDGED:
            self.answers.append(Answer(attempt_id, self.node_of(attempt_id), sent_at, time.monotonic()))

    def arrived_from(self, node: str, recipients: list[str], content: bytes) -> None:
        """Note a copy that `node` delivered."""
        self.last_arrival = time.monotonic()
        if found := _ATTEMPT_ID.search(content):
            copy = Copy(self.last_arrival, node, tuple(recipients))
            self.copies[found[1].decode("ascii", "replace")].append(copy)
        self.arrived(recipients, content)

    def bounced(self, attempt_id: str, recipient: str) -> None:
        """The sender was told that this recipient did not get it: the promise of the 250 is kept that way too."""
        attempt = self.attempts[attempt_id]
        was_resolved = attempt.delivered
        attempt.copies[recipient] += 1
        if attempt.outcome is Outcome.ACKNOWLEDGED and attempt.delivered and not was_resolved:
            self.undelivered -= 1

    # ---- what the evidence says ----

    def repeats(self) -> list[Repeat]:
        """Return every copy that came to a recipient who had one, with the copy before it."""
        found = []
        for attempt, copies in self.copies.items():
            for position, again in enumerate(copies):
                for first in reversed(copies[:position]):
                    if set(first.recipients) & set(again.recipients):
                        found.append(Repeat(attempt, first, again))
                        break
        return found

    def unexcused_repeats(self) -> list[Repeat]:
        """Return the repeats that no outage explains: the first copy did not come from a node that was just stopped."""
        return [
            repeat
            for repeat in self.repeats()
            if not any(
                outage.node == repeat.first.node
                and outage.since - RECORDED_S <= repeat.first.at <= outage.since + BUFFERED_S
                for outage in self.outages
            )
        ]

    def repeats_by_outage(self) -> list[int]:
        """Return how many repeats each outage explains, in the order of the outages."""
        counts: Counter[int] = Counter()
        for repeat in self.repeats():
            at = repeat.first.at
            for number, outage in enumerate(self.outages):
                if outage.node == repeat.first.node and outage.since - RECORDED_S <= at <= outage.since + BUFFERED_S:
                    counts[number] += 1
                    break
        return [counts[number] for number in range(len(self.outages))]

    def unexcused_troubles(self) -> list[Trouble]:
        """Return what clients of nodes met that were up."""
        return [
            trouble
            for trouble in self.troubles
            if not any(
                outage.node == trouble.node and outage.since <= trouble.at <= outage.until + BUFFERED_S
                for outage in self.outages
            )
        ]

    def pauses(self, outage: Outage, within_s: float = 10.0) -> list[float]:
        """Return how long clients of other nodes waited for the 250s that `outage` may have held up."""
        return [
            answer.at - answer.sent_at
            for answer in self.answers
            if answer.node != outage.node
            and outage.since <= answer.at
            and answer.sent_at <= outage.since + within_s
            and answer.sent_at >= outage.since - within_s
        ]

    def delivered_by(self, attempts: Iterable[str]) -> Counter[str]:
        """Return which node handed how many of these attempts to the sink."""
        return Counter(copy.node for attempt in attempts for copy in self.copies[attempt])

    def acknowledged_at(self, node: str) -> list[str]:
        """Return the attempts that `node` answered with 250."""
        return [answer.attempt for answer in self.answers if answer.node == node]

    def check_mail(self) -> None:
        """Fail unless all that was promised arrived unchanged, and nothing that was refused."""
        lost = [
            f"{attempt_id} at {self.node_of(attempt_id)} for {attempt.recipients}, arrived {dict(attempt.copies)}"
            for attempt_id, attempt in self.attempts.items()
            if attempt.outcome is Outcome.ACKNOWLEDGED and not attempt.delivered
        ]
        assert not lost, f"answered 250 and lost: {_some(lost)}"
        undead = [
            f"{attempt_id} at {self.node_of(attempt_id)}, {attempt.outcome.value}: {self.copies[attempt_id]}"
            for attempt_id, attempt in self.attempts.items()
            if attempt.outcome in (Outcome.REFUSED, Outcome.BROKEN_OFF) and attempt.copies
        ]
        assert not undead, f"refused, or never handed over, and delivered: {_some(undead)}"
        assert not self.damaged, f"{self.damaged} copies differ from what was sent"
        assert not self.strange, f"{self.strange} copies of messages that nobody sent"
        assert not self.misrouted, f"{self.misrouted} copies came to people they were not for"

    def check_repeats(self) -> None:
        """Fail if a message came twice without an outage to explain it, or one outage explains too many."""
        unexcused = self.unexcused_repeats()
        assert not unexcused, f"delivered twice without need: {_some(unexcused)}\noutages: {self.outages}"
        counts = self.repeats_by_outage()
        assert max(counts, default=0) <= REPEATS_PER_KILL_MAX, f"repeats by outage: {counts}"

    def check_sessions(self) -> None:
        """Fail if a client of a node that was up was refused, or its session broke."""
        unexcused = self.unexcused_troubles()
        assert not unexcused, f"sessions with nodes that were up: {_some(unexcused)}\noutages: {self.outages}"


def _some(items: Sequence[object], count: int = 10) -> str:
    shown = "\n  ".join(str(item) for item in items[:count])
    return f"{len(items)}\n  {shown}"
