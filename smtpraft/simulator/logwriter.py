"""The writer of one node's log in virtual time: group commit on a disk that takes as long as it likes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from smtpraft.simulator.invariants import Batch
from smtpraft.simulator.timeline import MS
from smtpraft.storage import HardState, Wal, WalFull
from smtpraft.storage.group import Submission, gather, write_group
from smtpraft.storage.simdisk import SECTOR_BYTES
from smtpraft.storage.wal import MARK_BYTES

if TYPE_CHECKING:
    from smtpraft.simulator.process import Process

BATCH_BYTES_MAX: Final = 16 * 1024
ROOM_US: Final = 250 * MS


class LogWriter:
    """What `storage.writer.WalWriter` is, for one process."""

    def __init__(self, process: Process, wal: Wal) -> None:
        self._process = process
        self._host = process.host
        self._wal = wal
        self._queue: deque[Submission] = deque()
        self._batches: deque[Batch] = deque()
        self._busy = False
        self._vouch_number = 0
        self._waits_since = 0.0
        self.in_flight: list[Submission] | None = None
        """What is being written."""
        self.begun = False
        """Some of that is handed to the disk already."""

    def submit(
        self,
        spans: Sequence[memoryview],
        first_index: int,
        last_index: int,
        hard_state: HardState | None,
        sync: bool,
        done: Callable[[], None],
    ) -> None:
        """Have it written; `done` is called when it is, and all before it."""
        if not self._queue:
            self._waits_since = self._process.now_s()
        log = self._host.mirror.log
        entries = [log[index] for index in range(first_index, last_index + 1)] if spans else []
        self._batches.append(Batch(hard_state, first_index, entries))
        size_bytes = sum(map(len, spans))
        self._queue.append(Submission(spans, first_index, last_index, size_bytes, hard_state, sync, done, 0.0))
        self._next()

    def submit_job(self, job: Callable[[], None], done: Callable[[], None]) -> None:
        """Have `job` done between what was submitted before and after it, then `done`."""
        if not self._queue:
            self._waits_since = self._process.now_s()
        self._batches.append(Batch(None, 0, []))
        self._queue.append(Submission((), 0, 0, 0, None, False, done, 0.0, job))
        self._next()

    def write_age_s(self) -> float:
        """Return for how long there has been something to write and nothing got done."""
        return self._process.now_s() - self._waits_since if self._queue else 0.0

    def _next(self) -> None:
        if self._busy or not self._queue:
            return
        self._busy = True
        group = gather(self._queue, BATCH_BYTES_MAX)
        self._host.mirror.writing = tuple(self._batches[number] for number in range(len(group)))
        self.in_flight = group
        self._process.after(self._host.disk_latency_us(), self._write, group)

    def _write(self, group: list[Submission]) -> None:
        """The disk is done, or dies, or has no room."""
        process = self._process
        segment = self._wal._segments[-1]
        vouched, number = self._host.vouched, self._wal._number
        if self._wal._durable == self._wal._number:  # No mark lies between, which nothing vouches for.
            vouched = (segment.name, segment.end_offset)
        large = sum(item.size_bytes for item in group) > SECTOR_BYTES
        times = 10 if (large and process.plan.has("torn")) or group[0].job is not None else 1
        operations = 4 if group[0].job is None else 24  # the many steps of an install
        early = group[0].job is None
        fault = "crash-persist"
        if group[0].job is not None and process.plan.has("crash-install"):
            fault, times = "crash-install", 20
        with self._host.aiming(fault, operations=operations, times=times, early=early):
            try:
                self.begun = True
                write_group(self._wal, group)
            except WalFull:
                self.begun = False
                process.after(ROOM_US, self._write, group)
                return
        self.begun = False
        self.in_flight = None
        if self._wal._number != number:  # A group that wanted nothing but its turn writes none.
            self._host.vouched = vouched  # By the header of the batch that was written now.
        process.world.invariants.synced(self._host, [self._batches.popleft() for _ in group])
        # Where more waits for its turn, it is often the rest of what goes in pieces.
        process.aim("crash-persist", times=10 if len(self._queue) > len(group) else 1)
        self._host.wrote()
        for _ in group:
            self._queue.popleft()
        self._waits_since = process.now_s()
        self._busy = False
        for item in group:
            item.done()
        process.turn()
        self._next()
        if not self._queue:
            self._vouch_number += 1
            process.after(process.plan.vouch_us, self._vouch, self._vouch_number)
        if process.random.random() < 0.3:
            process.after(self._host.disk_latency_us(), self._prepare_spares)

    def _vouch(self, number: int) -> None:
        if number == self._vouch_number and not self._queue:
            self._wal.vouch()
            promise = self._wal._promises.current if self._wal._promises is not None else None
            if promise is not None and promise.durable == self._wal._durable and self._wal._marked == self._wal._number:
                segment = self._wal._segments[-1]
                # Not the mark itself: nobody misses it.
                self._host.vouched = (segment.name, segment.end_offset - MARK_BYTES)

    def _prepare_spares(self) -> None:
        if not self._busy:
            self._wal.prepare_spares()
