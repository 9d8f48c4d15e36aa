"""Virtual time: events in the order of their moments. One process, one thread; nothing waits."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final

US: Final = 1
MS: Final = 1000
S: Final = 1_000_000
"""Moments and durations are whole microseconds: additions of these are exact on every machine."""


class Timeline:
    """What is going to happen. Events of one moment happen in the order in which they were asked for."""

    __slots__ = ("_events", "_number", "events_done", "now")

    def __init__(self) -> None:
        self.now = 0
        self.events_done = 0
        self._number = 0
        self._events: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []

    def after(self, delay_us: int, act: Callable[..., object], *arguments: object) -> None:
        """Do `act` so much later; never in the past."""
        self._number += 1
        at = self.now + delay_us if delay_us > 0 else self.now
        heappush(self._events, (at, self._number, act, arguments))

    def run_until(self, end_us: int, *, stop: Callable[[], bool] | None = None) -> bool:
        """Live until then; or until `stop`, asked after each event, says so. Return whether it did."""
        events, done = self._events, 0
        try:
            while events and events[0][0] <= end_us:
                self.now, _, act, arguments = heappop(events)
                done += 1
                act(*arguments)
                if stop is not None and stop():
                    return True
        finally:
            self.events_done += done
        self.now = max(self.now, end_us)
        return False
