"""What the SMTP side counts: plain integers on the hot path, read by whoever exports them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

ACK_SECONDS_BOUNDS: Final = tuple(0.0001 * 2**power for power in range(18))  # 0.1 ms to 13 s
MESSAGE_BYTES_BOUNDS: Final = tuple(float(1024 * 4**power) for power in range(9))  # 1 KiB to 64 MiB


class Histogram:
    """Counts by upper bound: `counts[i]` values were above `bounds[i - 1]` and at most `bounds[i]`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


@dataclass(slots=True)
class SmtpStatistics:
    """Since the start of the server, but for `connections`."""

    connections: int = 0
    """Open now."""
    connections_total: int = 0
    connections_by_listener: Counter[str] = field(default_factory=Counter)
    """The same, by the setting that the client came to."""
    connections_denied: Counter[str] = field(default_factory=Counter)
    """By reason: `total`, `client` (too many of one address), `draining`."""
    messages_received: int = 0
    """Answered, or answerable, with 250: committed."""
    received_by_listener: Counter[str] = field(default_factory=Counter)
    """The same, by the setting that the client came to."""
    recipients_received: int = 0
    bytes_received: int = 0
    messages_rejected: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By stage (`connect`, `command`, `mail`, `rcpt`, `data`) and reply code."""
    outcomes_unknown: int = 0
    """Connections closed without a reply because nobody could tell whether the message was committed."""
    clients_gone: int = 0
    """Messages committed after their client had left: it will send them again."""
    timeouts: int = 0
    ack_seconds: Histogram = field(default_factory=lambda: Histogram(ACK_SECONDS_BOUNDS))
    """Final dot to reply, accepted messages."""
    message_bytes: Histogram = field(default_factory=lambda: Histogram(MESSAGE_BYTES_BOUNDS))
