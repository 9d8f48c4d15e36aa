"""When a deferred recipient is tried again, and when that ends.

Times are milliseconds, and moments are on the replicated machine's clock (the stamps of log entries): a wall clock that
jumps on one node moves nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

RETRY_MS_MIN: Final = 100  # a schedule of zeros must not become a busy loop


class RetrySchedule:
    """`retry_s`, the last of which repeats, spread by `jitter_percent` either way (RFC 5321 §4.5.4.1).

    Jitter is there so that what failed together does not come back together.
    """

    def __init__(self, retry_s: Sequence[float], *, jitter_percent: float, expire_s: float, rng: random.Random) -> None:
        if not retry_s:
            raise ValueError("a retry schedule needs at least one interval")
        self._retry_ms = [max(RETRY_MS_MIN, round(interval * 1000)) for interval in retry_s]
        self._jitter = jitter_percent / 100
        self._expire_ms = round(expire_s * 1000)
        self._rng = rng

    def delay_ms(self, attempts: int) -> int:
        """Return how long to wait after the attempt that was number `attempts`, counted from 1."""
        interval = self._retry_ms[min(max(attempts, 1), len(self._retry_ms)) - 1]
        return max(RETRY_MS_MIN, round(interval * (1 + self._jitter * self._rng.uniform(-1, 1))))

    def expires_at_ms(self, accepted_ms: int) -> int:
        """Return the moment after which a message accepted at `accepted_ms` is given up."""
        return accepted_ms + self._expire_ms

    def next_attempt_ms(self, *, attempts: int, accepted_ms: int, now_ms: int) -> int | None:
        """Return the moment of the next attempt, or None if the message has expired.

        A message gets a last attempt at its expiry rather than being given up early: the next moment is never past it.
        """
        expires_ms = self.expires_at_ms(accepted_ms)
        if now_ms >= expires_ms:
            return None
        return min(now_ms + self.delay_ms(attempts), expires_ms)
