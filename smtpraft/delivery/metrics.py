"""What delivery counts, as plain numbers; the admin side gives them their Prometheus names."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

RESULTS: Final = ("delivered", "deferred", "bounced", "expired")
DURATION_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


@dataclass(slots=True)
class Histogram:
    """Counts per bucket (the last is everything above), and the sum."""

    bounds: tuple[float, ...] = DURATION_BUCKETS_S
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`; a bucket's bound belongs to it."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class DeliveryMetrics:
    """Since the start of this process, on this node."""

    recipients: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    """`smtpraft_deliveries_total{result}`: recipients by the result of an attempt."""
    duration_s: dict[str, Histogram] = field(default_factory=dict)
    """`smtpraft_delivery_duration_seconds{transport}`: an attempt, from taking the message to the last answer."""
    bounces: int = 0
    """Notifications proposed."""
    dead_letters: int = 0
    """Failures that nobody could be told of: the message was from <>."""
    abandoned: int = 0
    """Attempts broken off before the final step because this node lost the right to go on."""
    stale_reports: int = 0
    """Outcomes that did not count: the message was not ours any more."""
    connections_opened: int = 0
    connections_failed: int = 0
    connections: int = 0
    """Open now."""

    def observe(self, transport: str, seconds: float, times: int = 1) -> None:
        """Count `times` attempts that took `seconds` each."""
        histogram = self.duration_s.get(transport)
        if histogram is None:
            histogram = self.duration_s[transport] = Histogram()
        histogram.observe(seconds, times)
