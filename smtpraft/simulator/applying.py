"""From the commit to the transaction of one process, in virtual time: what `cluster.driver` and the apply thread do.

What is committed is told to whoever is content with that, at once; it is applied when somebody waits for it, or when it
has waited for long enough. In between the process may crash.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from smtpraft import fastlog
from smtpraft.cluster.applier import Batch
from smtpraft.consensus import Message
from smtpraft.simulator import records

if TYPE_CHECKING:
    from smtpraft.simulator.process import Process


class Applying:
    """The way of committed entries to the machine of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._entries: list[records.Committed] = []
        self._busy = False
        self.under_way: deque[Message] = deque()
        """What the core wants applied and has not heard of."""

    def apply(self, message: Message) -> None:
        """Hand committed entries over."""
        process = self._process
        first, last = message.entries.first, message.entries.last
        spans: list[memoryview] | None
        try:
            spans = process.log.spans(first, last)
            seen: list[memoryview] | list[bytes] = spans
            urgent = process.foresight.committed(spans)
        except fastlog.NotCached:
            spans, seen, urgent = None, [process.read(first, last)], True
            process.foresight.unseen(last)
        self._entries.extend(records.committed(seen))
        self.under_way.append(message)
        urgent = urgent or process.reads.waiting or process.proposals.waiting or process.foresight.blind
        process.applier.submit(Batch(first, last, process.log.size_bytes(first, last), spans), urgent=urgent)

    def summon(self) -> None:
        """It is time for a transaction, if none is under way."""
        if not self._busy:
            self._busy = True
            self._process.after(self._process.host.apply_latency_us(), self._work)

    def _work(self) -> None:
        process = self._process
        self._busy = False
        process.aim("crash-apply")
        process.world.applying(process, self._entries)
        self._entries.clear()
        process.applier.work()

    def finish(self) -> None:
        """Apply all that was committed so far, here and now."""
        process = self._process
        process.world.applying(process, self._entries)
        self._entries.clear()
        while process.applier.work():
            pass
