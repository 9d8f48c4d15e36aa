"""Counters of the write-ahead log, for metrics. Written by one thread, read by any; each number by itself is right."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

SYNC_BUCKETS_S: Final = tuple(0.0001 * 2**power for power in range(16))
"""Upper bounds of the histogram of sync times: 0.1 ms, doubled up to 3.3 s. A last bucket holds what took longer."""
BATCH_BUCKETS: Final = tuple(2**power for power in range(11))
"""Upper bounds of the histogram of entries in a batch: 1, doubled up to 1,024."""


@dataclass(slots=True)
class WalStats:
    """What a log has done since it was opened."""

    batches: int = 0
    entries: int = 0
    batch_counts: list[int] = field(default_factory=lambda: [0] * (len(BATCH_BUCKETS) + 1))
    """Batches that held entries, by how many; not cumulative."""
    bytes_written: int = 0
    """Bytes of batches, headers included."""
    syncs: int = 0
    sync_seconds: float = 0.0
    sync_seconds_max: float = 0.0
    sync_counts: list[int] = field(default_factory=lambda: [0] * (len(SYNC_BUCKETS_S) + 1))
    """Syncs by how long they took; not cumulative."""
    rolls: int = 0
    rolls_without_spare: int = 0
    """Rolls that had to make their segment in the write path."""

    def wrote(self, entries: int) -> None:
        """Count the entries of one batch."""
        self.entries += entries
        self.batch_counts[bisect_left(BATCH_BUCKETS, entries)] += 1

    def synced(self, seconds: float) -> None:
        """Count one sync."""
        self.syncs += 1
        self.sync_seconds += seconds
        self.sync_seconds_max = max(self.sync_seconds_max, seconds)
        self.sync_counts[bisect_left(SYNC_BUCKETS_S, seconds)] += 1
