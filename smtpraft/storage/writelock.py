"""The lock around all writing to a log, and what is to be done when it changes hands."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from types import TracebackType


class WriteLock:
    """A lock. While it is lent, its borrower is told before somebody else writes (`take`), and after (`give`)."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._take: Callable[[], None] | None = None
        self._give: Callable[[], None] | None = None

    def lend(self, take: Callable[[], None] | None, give: Callable[[], None] | None) -> None:
        """Say whom to tell from now on; None and None: nobody."""
        with self._lock:
            self._take, self._give = take, give

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._take is not None:
            try:
                self._take()
            except BaseException:
                self._lock.release()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._give is not None:
                self._give()
        finally:
            self._lock.release()
