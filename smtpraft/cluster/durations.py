"""Histograms of what happens now and then on the loop: plain counts, that whoever exports metrics reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

ROUND_TRIP_BUCKETS_S: Final = tuple(0.0001 * 2**power for power in range(16))
"""Upper bounds for heartbeats: 0.1 ms, doubled up to 3.3 s."""
SNAPSHOT_BUCKETS_S: Final = tuple(0.01 * 2**power for power in range(15))
"""Upper bounds for snapshots: 10 ms, doubled up to 164 s."""


class Durations:
    """How often something took how long, in seconds. A bound belongs to its bucket; the last holds what took longer."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.seconds += seconds
        self.counts[bisect_left(self.bounds, seconds)] += 1
