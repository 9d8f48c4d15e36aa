"""Moves pages from SQLite's write-ahead log into the database file, beside the applying.

A commit must not wait for it: it writes thousands of pages and syncs twice. So it runs on a thread and a connection of
its own, in PASSIVE mode, which holds up neither the writer nor the readers. SQLite begins its log anew only when a
transaction starts on one that is moved completely; after the bulk is moved, a second look usually manages that between
two commits. Under a load that leaves no gap the machine does the small rest itself (`PAGES_MAX`), so the log stays
bounded.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Final, cast

import apsw

log = logging.getLogger(__name__)

PAGES_MIN: Final = 1000  # 4 MB: what SQLite would do by itself
PAGES_MAX: Final = 8000  # 32 MB
PASSES: Final = 3


class Checkpointer:
    """Call `consider` after each commit with the pages in the log. If moving them failed, that raises the error."""

    def __init__(self, path: str, *, background: bool = True) -> None:
        self._path = path
        self._background = background
        self._connection: apsw.Connection | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._running = False
        self._moved_at = 0  # pages in the log when the last move began
        self._failure: apsw.Error | None = None

    def open(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool-checkpoint")

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def consider(self, pages: int) -> bool:
        """Start moving if it is worth it; return whether the caller should move the rest itself, now.

        Raises:
            apsw.Error: a sync or a write failed, and the pages may be gone: the caller must stop.
        """
        if self._failure is not None:
            raise self._failure
        if pages < self._moved_at:
            self._moved_at = 0  # SQLite began its log anew
        if self._running or pages - self._moved_at < PAGES_MIN:
            return False
        self._moved_at = pages
        if pages >= PAGES_MAX:
            return True
        assert self._executor is not None, "the checkpointer is open"
        self._running = True
        if self._background:
            self._executor.submit(self._move)
        else:
            self._move()
        return False

    def _connected(self) -> apsw.Connection:
        """Return the connection, which is opened when it is needed first: not while somebody waits for the start."""
        if self._connection is None:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
            connection.set_busy_timeout(0)
            connection.execute("PRAGMA synchronous = NORMAL").fetchall()
            connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
            self._connection = connection
        return self._connection

    def _move(self) -> None:
        try:
            connection = self._connected()
            for _ in range(PASSES):
                pages, moved = move_pages(connection)
                if moved >= pages:
                    break
        except (apsw.BusyError, apsw.FullError) as error:
            log.debug("checkpoint put off error=%s", error)  # nothing is lost: the log keeps the pages
        except apsw.Error as error:
            self._failure = error
        finally:
            self._running = False


def move_pages(connection: apsw.Connection) -> tuple[int, int]:
    """Move pages as far as nobody has to wait for it; return (pages in the log, of these moved)."""
    # As SQL: the method of the connection keeps the interpreter lock for as long as the disk takes.
    [(_, pages, moved)] = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return cast(int, pages), cast(int, moved)
