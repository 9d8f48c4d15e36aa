"""What waits for one destination, and whether it is worth trying. No I/O, no clock: the caller says what time it is.

    up ── no session can be had ──▶ down: one probe each time the back-off is over, and nothing else
     ▲                               │
     └────── a probe succeeds ◀──────┘

A dead destination costs one connection attempt and one message's attempt at a time, however much waits for it. What
waits is kept a moment, for most outages are a restart; after that it goes back to its schedule, all at once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smtpraft.delivery.attempt import Answer
from smtpraft.delivery.routes import Destination

if TYPE_CHECKING:
    from smtpraft.delivery.schedule import Job

PROBE_S_MIN: Final = 1.0
PROBE_S_MAX: Final = 60.0
KEEP_WAITING_S: Final = 15.0  # a server's restart; longer, and its mail goes back to its schedule
STRIKES_MAX: Final = 3  # sessions in a row that broke before they achieved anything
LIMIT_RESTORE_S: Final = 60.0  # for so long we open no more connections than the server let us have


class Verge(enum.Enum):
    """What a failed session means for the destination."""

    STILL_UP = enum.auto()
    CROWDED = enum.auto()
    """It serves other connections of ours: it wants no more of them."""
    DOWN = enum.auto()


@dataclass(frozen=True, slots=True)
class Outage:
    """Since when, what was said last, and when the next probe may be made. Seconds, monotonic."""

    since: float
    answer: Answer
    probes: int
    retry_at: float


class DestinationQueue:
    """One destination: messages that are due, and its state."""

    def __init__(self, destination: Destination, *, connections_max: int, probe_s: float, jitter: Callable[[], float]):
        self.destination = destination
        self.ready: deque[Job] = deque()
        """Due, in order; may hold jobs that have left since, which `Schedule.take` skips."""
        self.loaded = 0
        """Jobs in memory."""
        self.slots = 0
        """Workers running."""
        self.connections = 0
        """Sessions that got past EHLO and are open."""
        self.idle: list[Callable[[], None]] = []
        """Workers that wait with an open connection: call the last to wake it."""
        self.outage: Outage | None = None
        self.strikes = 0
        self._connections_max = connections_max
        self._crowded_at = 0
        self._crowded_until = 0.0
        self._probe_s = min(max(probe_s, PROBE_S_MIN), PROBE_S_MAX)
        self._jitter = jitter

    def slots_allowed(self, now: float) -> int:
        """Return how many workers may run now.

        While nobody is connected only one tries, so a dead host is not asked eight times for what one can find out.
        """
        if self.outage is not None:
            return 1 if now >= self.outage.retry_at else 0
        if not self.connections:
            return 1
        return self._crowded_at if now < self._crowded_until else self._connections_max

    def connected(self) -> None:
        """A session is there."""
        self.connections += 1

    def disconnected(self) -> None:
        """A session is over."""
        self.connections -= 1

    def session_failed(self, answer: Answer, now: float) -> Verge:
        """No session could be had."""
        if self.connections > 0:
            self._crowded_at = self.connections
            self._crowded_until = now + LIMIT_RESTORE_S
            return Verge.CROWDED
        self._go_down(answer, now)
        return Verge.DOWN

    def session_broke(self, answer: Answer, now: float) -> Verge:
        """A session ended in the middle of a message. That may be the message; three in a row are the destination."""
        self.strikes += 1
        if self.strikes < STRIKES_MAX:
            return Verge.STILL_UP
        self._go_down(answer, now)
        return Verge.DOWN

    def succeeded(self) -> bool:
        """A transaction came to a regular end, whatever it was. Return whether that ends an outage."""
        self.strikes = 0
        ended = self.outage is not None
        self.outage = None
        return ended

    def hurry(self) -> None:
        """An operator wants it tried now."""
        if self.outage is not None:
            self.outage = Outage(self.outage.since, self.outage.answer, 0, 0.0)

    def gives_up(self, now: float) -> bool:
        """Has it been down for so long that what waits should go back to its schedule?"""
        return self.outage is not None and now - self.outage.since >= KEEP_WAITING_S

    def _go_down(self, answer: Answer, now: float) -> None:
        since, probes = (self.outage.since, self.outage.probes) if self.outage is not None else (now, 0)
        pause = min(self._probe_s, PROBE_S_MIN * 2.0 ** min(probes, 10)) * self._jitter()
        self.outage = Outage(since, answer, probes + 1, now + pause)
        self.strikes = STRIKES_MAX - 1  # the next failure counts at once
