"""The clock that stamps entries while this node leads: wall time when it took over, monotonic time from then on.

A jump of the wall clock changes nothing until the next election, and the stamps never fall behind the newest one
applied, so the replicated machine's time neither goes back nor stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class StampClock:
    """Milliseconds since the epoch for new entries."""

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._base_ms = 0
        self._since = monotonic()
        self.lead_from(0)

    def lead_from(self, newest_stamp_ms: int) -> None:
        """This node begins to lead; no stamp so far is above `newest_stamp_ms`."""
        self._base_ms = max(int(self._wall() * 1000), newest_stamp_ms)
        self._since = self._monotonic()

    def now_ms(self) -> int:
        """Return the stamp for an entry appended now."""
        return self._base_ms + int((self._monotonic() - self._since) * 1000)
