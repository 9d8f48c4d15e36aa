"""The thread that writes the log, so that the event loop never waits for a disk: group commit.

While one sync runs, everything submitted gathers; all of it goes out as the next batch, with one write and one sync.

    submit A   B  C  D        E                loop thread
           |write A, sync|write BCD, sync|write E, sync|
                         done A          done B, C, D  done E

The thread sees spans of immutable bytes and never the in-memory log, which belongs to the loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic
from typing import Final

from smtpraft.errors import Stopped
from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Buffer
from smtpraft.storage.errors import WalFull, WalReadOnly
from smtpraft.storage.group import Done, Submission, gather, write_group
from smtpraft.storage.stats import WalStats
from smtpraft.storage.wal import Wal

log = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 4 * 1024 * 1024  # Gather no more than this: at 1 GB/s a sync of 4 MiB takes 4 ms already.
FULL_RETRY_S: Final = 0.25
VOUCH_AFTER_S: Final = 0.5  # With nothing to write for so long, note that the last batch was synced.


class Pace:
    """How long the last writes took. Written by one thread, read by others."""

    def __init__(self) -> None:
        self._seconds = (0.0,) * 8
        self._at = 0.0

    def took(self, seconds: float) -> None:
        """Note one write, which is done now."""
        self._seconds = (*self._seconds[1:], seconds)
        self._at = monotonic()

    def worst_s(self, within_s: float) -> float:
        """Return the longest of the last eight; 0 if the last of them was done longer than `within_s` ago."""
        return max(self._seconds) if monotonic() - self._at <= within_s else 0.0

    def least_s(self, count: int) -> float:
        """Return the shortest of the last `count`."""
        return min(self._seconds[-count:])

    @property
    def usual_s(self) -> float:
        """The median of the last three."""
        return sorted(self._seconds[-3:])[1]

    def last_at_least(self, count: int, seconds: float) -> bool:
        """Did each of the last `count` take so long?"""
        return all(each >= seconds for each in self._seconds[-count:])

    def last_below(self, count: int, seconds: float) -> bool:
        """Did each of the last `count` take less?"""
        return all(each < seconds for each in self._seconds[-count:])


class WalWriter:
    """Writes what is submitted, in order. `submit` is for one thread, the loop's; the facts are for any.

    `deliver` runs a callable on the loop's thread (`loop.call_soon_threadsafe`): once a write, for all it completed.
    `on_failure` is run through it too, once, when the log has failed; nothing is answered as done afterwards.
    """

    def __init__(
        self,
        wal: Wal,
        *,
        deliver: Callable[[Callable[[], None]], object],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._wal = wal
        self._deliver = deliver
        self._on_failure = on_failure
        # No lock: one thread puts at each end and one takes, and waking a thread by a condition costs twenty calls.
        self._given: SimpleQueue[Submission | None] = SimpleQueue()  # None: look whether it is time to close
        self._fetched: deque[Submission] = deque()  # of the writer's thread: taken from there, and not done
        self._unfinished: deque[Submission] = deque()  # given or fetched or being written; for looking at its oldest
        self._bytes_given = self._bytes_done = 0  # each written by one thread
        self._done_at = 0.0
        self._batch_bytes_max = min(BATCH_BYTES_MAX, wal.batch_bytes_max)
        self._closing = Event()
        self._waiting_for_room = False
        self.read_only = False
        """Whether it has stopped because the file system is read-only: that too it waits out."""
        self.pace = Pace()
        self._thread = Thread(target=self._run, name="wal-writer", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> WalStats:
        """The log's counters."""
        return self._wal.stats

    @property
    def pending_bytes(self) -> int:
        """Bytes of entries submitted and not done."""
        return self._bytes_given - self._bytes_done

    @property
    def waiting_for_room(self) -> bool:
        """Whether writing has stopped because the disk is full. It goes on by itself when there is room."""
        return self._waiting_for_room

    def write_age_s(self) -> float:
        """Return for how long there has been something to write and nothing got done; 0 when there is nothing.

        A leader for which this is more than an election timeout has a disk that cannot lead. For how long the oldest
        submission has waited says nothing of that: of a hundred long messages the last waits while all others are done.
        """
        try:
            return monotonic() - max(self._unfinished[0].since, self._done_at)
        except IndexError:
            return 0.0

    def submit(
        self,
        spans: Sequence[Buffer],
        first_index: int,
        last_index: int,
        hard_state: HardState | None,
        sync: bool,
        done: Done,
    ) -> None:
        """Have entries and hard state written, as `Wal.write`; `done` is run when they are, and durable if `sync`.

        Everything is done in the order of submission; with neither entries nor hard state nor sync, that is all a
        submission does. After a failure nothing is done any more.

        Raises:
            Stopped: the writer is closed.
        """
        size_bytes = sum(map(len, spans))
        self._bytes_given += size_bytes
        self._give(Submission(spans, first_index, last_index, size_bytes, hard_state, sync, done, monotonic()))

    def submit_job(self, job: Done, done: Done) -> None:
        """Have `job` run on the writer's thread between what was submitted before and after it, then `done`.

        A job that raises `WalFull` is run again when there may be room; anything else that it raises is a failure.

        Raises:
            Stopped: the writer is closed.
        """
        self._give(Submission((), 0, 0, 0, None, False, done, monotonic(), job))

    def _give(self, item: Submission) -> None:
        if self._closing.is_set():
            raise Stopped("the write-ahead log's writer is closed")
        self._unfinished.append(item)
        self._given.put(item)

    def close(self) -> None:
        """Write what was submitted, unless the log has failed or is full, and end the thread. The log stays open."""
        self._closing.set()
        self._given.put(None)
        self._thread.join()

    # -------------------------------------------------------------------------------------------- the writer's thread

    def _run(self) -> None:
        try:
            self._work()
        except Stopped:
            log.info("the write-ahead log's writer ends: what its work is for is closed")
        except BaseException as error:
            log.exception("the write-ahead log's writer ends")
            failure = error
            with suppress(RuntimeError):  # The loop is closed: nobody is left to be told.
                self._deliver(lambda: self._on_failure(failure))

    def _work(self) -> None:
        """Write until the writer is closed, or something fails."""
        while group := self._gather():
            if not self._insist(lambda group=group: write_group(self._wal, group)):  # type: ignore[misc]
                return
            self._finish(group)

    def _gather(self) -> list[Submission]:
        """Return what can go out as one batch, waiting for the first of it; nothing when closed."""
        timeout_s: float | None = VOUCH_AFTER_S
        while not self._fetched and not self._closing.is_set():
            try:
                self._fetch(timeout_s)
            except Empty:
                timeout_s = None if self._wal.vouch() else VOUCH_AFTER_S
        with suppress(Empty):
            while True:
                self._fetch(0)
        return gather(self._fetched, self._batch_bytes_max)

    def _fetch(self, timeout_s: float | None) -> None:
        """Fetch one that was given, waiting for it so long; `Empty` if there is none then."""
        item = self._given.get(timeout_s != 0, timeout_s)
        if item is not None:
            self._fetched.append(item)

    def _insist(self, write: Done) -> bool:
        """Do a write, again and again while the disk is full; False if it cannot be done and the writer is closed."""
        while True:
            began = monotonic()
            try:
                write()
            except WalFull as error:
                if not self._waiting_for_room:
                    log.warning("write-ahead log waits for room error=%s", error)
                self._waiting_for_room = True
                self.read_only = isinstance(error, WalReadOnly)
                if self._closing.wait(FULL_RETRY_S):
                    return False
            else:
                self._waiting_for_room = self.read_only = False
                self.pace.took(monotonic() - began)
                return True

    def _finish(self, group: list[Submission]) -> None:
        self._done_at = monotonic()
        for item in group:
            self._fetched.popleft()
            self._unfinished.popleft()
            self._bytes_done += item.size_bytes
        answers = [item.done for item in group]
        self._deliver(answers[0] if len(answers) == 1 else lambda: _run_all(answers))


def _run_all(answers: Sequence[Done]) -> None:
    for done in answers:
        done()
