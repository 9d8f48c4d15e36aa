"""The thread that writes the log, compiled: `WalWriter` whose plain batches never meet the interpreter.

    loop      submit ──▶ the batch that waits          eventfd ──▶ drain: tell the log, call who waits
    thread               └─▶ pump: header, pwritev, fdatasync ──┘
                              └─▶ Python for the rest: a new segment, a new term or vote, jobs, errors

Measured: a thread that has to get the GIL twice for a write of 0.2 ms, beside a busy loop, makes it 0.35 ms.

The pump knows the end of the log while nobody else writes to it. Whoever does, takes the log's write lock, and gets
what the pump knows with it; the log's own attributes are right only then.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpraft.errors import Stopped
from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Buffer, RealFile
from smtpraft.storage.errors import WalFull
from smtpraft.storage.group import Done
from smtpraft.storage.index import Extent
from smtpraft.storage.wal import MARK_BYTES, Wal
from smtpraft.storage.writer import BATCH_BYTES_MAX, VOUCH_AFTER_S, WalWriter

if TYPE_CHECKING:
    from smtpraft.storage import _fastwal
    from smtpraft.storage._fastwal import Batch

    COMPILED: bool = True
elif os.environ.get("SMTPRAFT_PURE", "0") not in ("", "0"):
    COMPILED = False
else:
    try:
        import smtpraft.storage._fastwal as _fastwal

        COMPILED = True
    except ModuleNotFoundError as error:
        if error.name != "smtpraft.storage._fastwal":
            raise
        COMPILED = False


class CompiledWalWriter(WalWriter):
    """As `WalWriter`, for a log on a real disk."""

    def __init__(
        self, wal: Wal, loop: asyncio.AbstractEventLoop, *, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._pump = _fastwal.Pump(min(BATCH_BYTES_MAX, wal.batch_bytes_max), MARK_BYTES)
        self._loop = loop
        loop.add_reader(self._pump.fileno(), self._drain)
        wal.write_lock.lend(self._take_state, self._give_state)
        super().__init__(wal, deliver=loop.call_soon_threadsafe, on_failure=on_failure)

    # ------------------------------------------------------------------------------------------------ the loop's thread

    @property
    def pending_bytes(self) -> int:
        return self._pump.pending_bytes

    def write_age_s(self) -> float:
        return self._pump.write_age_s()

    def submit(
        self,
        spans: Sequence[Buffer],
        first_index: int,
        last_index: int,
        hard_state: HardState | None,
        sync: bool,
        done: Done,
    ) -> None:
        if self._closing.is_set():
            raise Stopped("the write-ahead log's writer is closed")
        self._pump.submit(spans, first_index, last_index, hard_state, sync, done)

    def submit_job(self, job: Done, done: Done) -> None:
        if self._closing.is_set():
            raise Stopped("the write-ahead log's writer is closed")
        self._pump.submit((), 0, 0, None, False, done, job)

    def close(self) -> None:
        self._closing.set()
        self._pump.close()
        self._thread.join()
        with self._wal.write_lock:
            pass  # the log gets back what the pump knows
        self._wal.write_lock.lend(None, None)
        with suppress(RuntimeError):  # The loop is closed: nobody is left to be told.
            self._deliver(self._unwatch_last)

    def _unwatch_last(self) -> None:
        self._drain()
        self._loop.remove_reader(self._pump.fileno())

    def _drain(self) -> None:
        """Tell the log what was written, then all who waited for it."""
        with self._wal._index_changed:
            batches = self._pump.drain()
            self._tell(batches)
        for batch in batches:
            if batch.written:
                self.pace.took(batch.took_s)
            for done in batch.dones:
                done()

    def _tell(self, batches: list[Batch]) -> None:
        """Note in the log what the pump wrote, in order. Under the index lock."""
        wal = self._wal
        segment = wal._segments[-1]  # A new one begins only when all this is told.
        for batch in batches:
            if batch.told or not batch.written:
                continue
            batch.told = True
            segment.end_offset = batch.end_offset
            wal.stats.batches += 1
            wal.stats.bytes_written += batch.size_bytes
            if batch.sync:
                wal.stats.synced(batch.synced_s)
            if batch.count:
                segment.holds_from(batch.first_index)
                ends = array("I")
                ends.frombytes(batch.ends)
                wal._index.append(Extent(batch.first_index, batch.last_index, segment, batch.position, ends))
                wal.stats.wrote(batch.count)

    # ------------------------------------------------------------------------------------------- whoever writes himself

    def _take_state(self) -> None:
        """The write lock was taken: let the log know what its end looks like."""
        wal, pump = self._wal, self._pump
        pump.lock_state()
        with wal._index_changed:
            self._tell(pump.written())
        if pump.writes:
            _, wal._number, wal._durable, wal._crc, wal._last_term, commit = pump.state()
            if commit != wal._hard_state.commit:
                wal._hard_state = HardState(wal._hard_state.term, wal._hard_state.vote, commit)

    def _give_state(self) -> None:
        """The write lock is given back: the pump goes on from here."""
        wal, pump = self._wal, self._pump
        segment = wal._segments[-1]
        fd = -1
        if isinstance(segment.file, RealFile) and wal.failure is None and not wal._closed:
            # Until a promise is in both slots each batch brings it nearer to the second, and only Python writes that.
            fd = segment.file.fileno() if wal._promises is None or wal._promises.complete else -1
        pump.set_state(
            fd,
            segment.header.salt,
            segment.header.size_bytes,
            segment.end_offset,
            wal._number,
            wal._durable,
            wal._floor,
            wal._index.first_index,
            wal._index.last_index,
            wal._last_term,
            wal._crc,
            wal._hard_state,
        )
        pump.unlock_state()

    # -------------------------------------------------------------------------------------------- the writer's thread

    def _work(self) -> None:
        pump = self._pump
        with self._wal.write_lock:
            pass  # gives the pump its state
        while (why := pump.run(VOUCH_AFTER_S)) != _fastwal.CLOSED:
            if why == _fastwal.IDLE:
                if not self._wal.vouch():
                    pump.ask_again()
                continue
            batch = pump.current
            if why != _fastwal.SLOW:
                what = "write" if why == _fastwal.WRITE_FAILED else "sync"
                cause = OSError(pump.error, os.strerror(pump.error))
                error = self._wal._fail(what, self._wal._segments[-1].file.path, cause)
                if not isinstance(error, WalFull):
                    raise error from cause
            if not self._insist(lambda batch=batch: self._write_slowly(batch)):  # type: ignore[misc]
                return
            pump.finish()

    def _write_slowly(self, batch: Batch) -> None:
        if batch.job is not None:
            batch.job()
        else:
            self._wal.write(batch.spans, batch.first_index, batch.last_index, batch.hard_state, batch.sync)


def begin_writing(
    wal: Wal, loop: asyncio.AbstractEventLoop, *, on_failure: Callable[[BaseException], None]
) -> WalWriter:
    """Start the writer that fits, for `loop`: the compiled one where there is one and the disk is real."""
    if COMPILED and isinstance(wal._segments[-1].file, RealFile):
        return CompiledWalWriter(wal, loop, on_failure=on_failure)
    return WalWriter(wal, deliver=loop.call_soon_threadsafe, on_failure=on_failure)
