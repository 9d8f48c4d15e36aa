"""How long this node's proposals took, for metrics: counted where they are awaited, on the loop."""

from __future__ import annotations

from bisect import bisect_left
from time import monotonic
from typing import Final

from smtpraft.cluster.proposals import Committed, Done

COMMIT_BUCKETS_S: Final = tuple(0.0001 * 2**power for power in range(16))
"""Upper bounds: 0.1 ms, doubled up to 3.3 s. A last bucket holds what took longer."""


class CommitTimes:
    """A histogram of the proposals that were answered; those that failed are counted elsewhere."""

    def __init__(self) -> None:
        self.counts = [0] * (len(COMMIT_BUCKETS_S) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.seconds += seconds
        self.counts[bisect_left(COMMIT_BUCKETS_S, seconds)] += 1

    def timed(self, began: float, done: Done, committed: Committed | None) -> tuple[Done, Committed | None]:
        """Return the two of a proposal that was made at `began`, monotonic: the one that tells of the commit counts."""
        if committed is None:

            def answered(result: object, error: Exception | None) -> None:
                if error is None:
                    self.add(monotonic() - began)
                done(result, error)

            return answered, None

        def counted() -> None:
            self.add(monotonic() - began)
            committed()

        return done, counted
