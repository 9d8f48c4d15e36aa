"""The background scrub: what lies in the log for long is read back now and then, before somebody needs it.

The committed entries are read from the disk in pieces and verified, oldest first, at a bounded rate; then it rests and
begins again. Damage ends the node as it would if a delivery had found it; the next start heals it from the others. A
node without others goes on and says so: stopping would help nobody. The headers of batches are looked at by a start,
and by `smtpraft wal verify`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Final

from smtpraft.errors import SmtpRaftError
from smtpraft.fastlog import Log
from smtpraft.storage import Wal, WalCorrupt

log = logging.getLogger(__name__)

PIECE_BYTES: Final = 256 * 1024
REST_S: Final = 600.0
FIRST_AFTER_S: Final = 5.0  # a start has just read everything


class Scrubbing:
    """The scrub of one log. Loop thread; `files` reads."""

    def __init__(
        self, wal: Wal, entries: Log, files: Executor, bytes_per_s: int, damaged: Callable[[WalCorrupt], None]
    ) -> None:
        """`damaged` is called, on the thread that reads, with what was found."""
        self._wal = wal
        self._entries = entries
        self._files = files
        self._bytes_per_s = bytes_per_s
        self._damaged = damaged
        self._done_index = 0
        self._next_at = 0.0
        self._reading: Future[None] | None = None
        self.passes = 0
        self.read_bytes = 0

    def sweep(self, now: float, settled_index: int) -> None:
        """Read the next piece if it is time. Up to `settled_index` all is committed and on the disk."""
        if not self._bytes_per_s or (self._reading is not None and not self._reading.done()):
            return
        self._reading = None
        if not self._next_at:
            self._next_at = now + FIRST_AFTER_S
        if now < self._next_at:
            return
        first = max(self._done_index + 1, self._entries.first_index)
        if first > settled_index:
            self.passes += self._done_index > 0
            self._done_index = 0
            self._next_at = now + REST_S
            return
        last = self._entries.upto_bytes(first, settled_index, PIECE_BYTES)
        size_bytes = self._entries.size_bytes(first, last)
        self._done_index = last
        self._next_at = now + size_bytes / self._bytes_per_s
        self.read_bytes += size_bytes
        self._reading = self._files.submit(self._read, first, last)

    def _read(self, first: int, last: int) -> None:
        try:
            self._wal.read(first, last, None, fresh=True)
        except WalCorrupt as error:
            log.error("scrub found damage file=%s offset=%d reason=%r", error.file, error.offset, error.reason)
            self._damaged(error)
        except SmtpRaftError:
            pass  # compacted meanwhile, or closed
