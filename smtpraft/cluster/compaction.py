"""When and how far the log is cut: behind what the state machine has made durable, and not past what a member that is
there can still use, within bounds. Whoever comes later gets a snapshot.

After `snapshot_threshold` entries (or `snapshot_threshold_bytes`) beyond the `max_log_entries` that are kept for slow
followers, the machine copies what it still needs of the oldest entries and syncs itself; only then does the log forget
them. It goes in steps, so that no step holds the apply thread up for long. While a snapshot is being made nothing is
forgotten: what it needs may be nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from time import monotonic
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.applier import Applier
from smtpraft.cluster.machine import StateMachine
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.snapshots import Snapshots
from smtpraft.storage import Wal

log = logging.getLogger(__name__)

STEP_ENTRIES: Final = 5_000
HELD_FACTOR: Final = 4
"""A member that is there but slow is waited for until so many times the usual size of the log, or that of the snapshot
on its way, are kept for it."""
HELD_INTERVAL_S: Final = 60.0


class Compaction:
    """The compaction of one node's log. Loop thread, but for what the machine does on the apply thread."""

    def __init__(
        self,
        entries: fastlog.Log,
        wal: Wal,
        machine: StateMachine,
        applier: Applier,
        files: Executor,
        options: NodeOptions,
        snapshots: Snapshots,
        *,
        forget: Callable[[int], None],
    ) -> None:
        """`forget` takes the entries up to an index out of the log in memory, with what the core has queued of them."""
        self._log = entries
        self._forget = forget
        self._wal = wal
        self._machine = machine
        self._applier = applier
        self._files = files
        self._options = options
        self._snapshots = snapshots
        self._running = False
        self._say_at = 0.0
        self.compacted_entries = 0

    def consider(self, retain_index: int, on_failure: Callable[[BaseException], None]) -> None:
        """Start a step if one is due. `retain_index` is the last index that no node needs from this log, of those that
        are there.
        """
        if self._running or self._snapshots.frozen:
            return
        to_index = self._target(retain_index)
        if to_index <= self._log.prev_index:
            return
        self._running = True
        done = self._applier.run(lambda: self._prepare(to_index))
        loop = asyncio.get_running_loop()

        def finish(future: Future[int]) -> None:
            error = future.exception()
            if error is None:
                loop.call_soon_threadsafe(self._cut, min(to_index, future.result()), on_failure)

        done.add_done_callback(finish)

    def _target(self, retain_index: int) -> int:
        """Return the index up to which the log may be cut now; at or below `prev_index` if no step is due."""
        entries = self._log
        applied = self._applier.applied_index
        spare = applied - entries.prev_index - self._options.max_log_entries
        if spare >= self._options.snapshot_threshold:
            keep = self._options.max_log_entries
        elif applied > entries.prev_index and (
            entries.size_bytes(entries.first_index, applied) > 2 * self._options.snapshot_threshold_bytes
        ):
            # Few but large entries: keep the newer half of the bytes instead of a number of entries.
            cut = entries.upto_bytes(entries.first_index, applied, self._options.snapshot_threshold_bytes)
            keep = applied - cut
        else:
            return 0
        wanted = applied - keep
        if retain_index < wanted and self._held_too_much(wanted, max(retain_index, entries.prev_index)):
            retain_index = wanted
        to_index = min(wanted, retain_index, entries.prev_index + STEP_ENTRIES)
        # Behind a follower that catches up the floor rises with every answer: many small steps would cost a sync each.
        least = min(self._options.snapshot_threshold // 5, STEP_ENTRIES)
        if to_index < wanted and to_index - entries.prev_index < least:
            return 0
        return to_index

    def _held_too_much(self, wanted: int, retain_index: int) -> bool:
        """Is what is kept for members that are behind beyond all measure? Then they will need a snapshot."""
        if retain_index >= wanted:
            return False
        size_bytes = self._log.size_bytes(retain_index + 1, wanted)
        # A large snapshot takes long, and if the log did not reach back to it in the end, all would begin anew.
        usual = max(self._options.snapshot_threshold_bytes, self._snapshots.copy_bytes)
        too_much = size_bytes > HELD_FACTOR * usual
        now = monotonic()
        if too_much and now >= self._say_at:
            self._say_at = now + HELD_INTERVAL_S
            log.warning(
                "log cut before a slow member had it bytes=%d reason='it lacks what follows index %d, and will need a "
                "snapshot'",
                size_bytes,
                retain_index,
            )
        return too_much

    def _prepare(self, to_index: int) -> int:
        """On the apply thread: save what is still needed, sync it, say how far that is safe."""
        self._machine.before_compaction(to_index)
        return self._machine.checkpoint()

    def _cut(self, to_index: int, on_failure: Callable[[BaseException], None]) -> None:
        self._running = False
        if to_index <= self._log.prev_index or self._snapshots.frozen:
            return
        try:
            self.compacted_entries += to_index - self._log.prev_index
            self._forget(to_index)
        except Exception as error:
            on_failure(error)
            return
        log.debug("compacted first_index=%d", self._log.first_index)
        recycled = self._files.submit(self._wal.compact, to_index)
        recycled.add_done_callback(lambda future: _report(future, on_failure))


def _report(future: Future[int], on_failure: Callable[[BaseException], None]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        on_failure(error)
