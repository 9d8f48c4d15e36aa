"""The last minutes of one node in small numbers: a sample a second, kept as slots of three seconds.

Only differences of counters that exist anyway are kept. Slots are numbered by the wall clock, so that those of several
nodes can be laid on each other; a clock that is off moves a node's curve, and nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

SAMPLE_S: Final = 1.0
SLOT_S: Final = 3
SLOTS: Final = 100  # five minutes


class Sample(NamedTuple):
    """Counters since the start of the process. Histograms count by bucket, the last for what is above all bounds."""

    accepted: int
    delivered: int
    failed: int
    """Attempts that ended in anything else."""
    ack_counts: Sequence[int]
    """Final dot to 250."""
    sync_counts: Sequence[int]


@dataclass(slots=True)
class Slot:
    """What happened in the seconds `number * SLOT_S` to the next slot's."""

    number: int
    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    acks: dict[int, int] = field(default_factory=dict)
    syncs: dict[int, int] = field(default_factory=dict)

    def add(self, before: Sample, now: Sample) -> None:
        """Count what came between two samples."""
        self.accepted += now.accepted - before.accepted
        self.delivered += now.delivered - before.delivered
        self.failed += now.failed - before.failed
        add_differences(self.acks, before.ack_counts, now.ack_counts)
        add_differences(self.syncs, before.sync_counts, now.sync_counts)

    def merge(self, other: Slot) -> None:
        """Count what another node did in the same seconds."""
        self.accepted += other.accepted
        self.delivered += other.delivered
        self.failed += other.failed
        for bucket, count in other.acks.items():
            self.acks[bucket] = self.acks.get(bucket, 0) + count

    def packed(self) -> list[object]:
        """Return what travels: no syncs, these are asked of each node by itself."""
        return [self.number, self.accepted, self.delivered, self.failed, [list(pair) for pair in self.acks.items()]]

    @classmethod
    def unpacked(cls, value: Any) -> Slot:
        """Return what `packed` gave.

        Raises:
            ValueError, TypeError, LookupError: it is no slot.
        """
        head, acks = [int(part) for part in value[:4]], {int(bucket): int(count) for bucket, count in value[4]}
        return cls(head[0], head[1], head[2], head[3], acks)


def add_differences(into: dict[int, int], before: Sequence[int], now: Sequence[int]) -> None:
    """Add by how much each bucket has grown."""
    for bucket, (old, new) in enumerate(zip(before, now, strict=True)):
        if new != old:
            into[bucket] = into.get(bucket, 0) + new - old


def quantile(counts: dict[int, int], bounds: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` of what was counted lies, by straight line within its bucket; None: nothing.

    What is above all bounds is given the last bound.
    """
    total = sum(counts.values())
    if not total:
        return None
    wanted = share * total
    below = 0
    for bucket in sorted(counts):
        count = counts[bucket]
        if below + count >= wanted:
            if bucket >= len(bounds):
                return bounds[-1]
            low = bounds[bucket - 1] if bucket else 0.0
            return low + (bounds[bucket] - low) * (wanted - below) / count
        below += count
    raise AssertionError("the last bucket reaches the total")


class History:
    """Of one node. `sample` reads its counters."""

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample
        self._last = sample()
        self.slots: deque[Slot] = deque(maxlen=SLOTS + 1)

    @staticmethod
    def slot_now() -> int:
        """Return the number of the slot that is being filled."""
        return int(time.time()) // SLOT_S

    def look(self) -> None:
        """Take a sample: about once a second."""
        now = self._sample()
        number = self.slot_now()
        if not self.slots or self.slots[-1].number < number:
            self.slots.append(Slot(number))
        self.slots[-1].add(self._last, now)
        self._last = now

    def recent(self, count: int) -> Slot:
        """Return the sum of the last `count` whole slots."""
        total = Slot(0)
        first = self.slot_now() - count
        for slot in self.slots:
            if first <= slot.number < first + count:
                total.merge(slot)
                for bucket, number in slot.syncs.items():
                    total.syncs[bucket] = total.syncs.get(bucket, 0) + number
        return total
