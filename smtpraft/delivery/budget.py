"""A bound on the bytes of messages under way.

Small messages do not wait: the number of workers bounds them. Large ones share a budget of which one destination gets
half at most, so that a destination which hangs in the middle of large messages leaves the others theirs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

SMALL_BYTES: Final = 256 * 1024
ALL_BYTES_MAX: Final = 64 * 1024 * 1024


class ByteBudget:
    """`limit` bytes for whoever comes first. What is larger than all of it gets it all, alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0

    async def acquire(self, size_bytes: int) -> None:
        """Wait for room and take it; give it back with `release`."""
        if not self._waiters and self._fits(size_bytes):
            self.used += size_bytes
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size_bytes, granted)
        self._waiters.append(entry)
        try:
            await granted
        except asyncio.CancelledError:
            if entry in self._waiters:
                self._waiters.remove(entry)
                self._grant()
            else:
                self.release(size_bytes)
            raise

    def release(self, size_bytes: int) -> None:
        """Give back what `acquire` took."""
        self.used -= size_bytes
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self._fits(self._waiters[0][0]):
            size_bytes, granted = self._waiters.popleft()
            if not granted.cancelled():
                self.used += size_bytes
                granted.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        return self.used == 0 or self.used + size_bytes <= self._limit


class MessageMemory:
    """One destination's part of the budget that all share."""

    def __init__(self, shared: ByteBudget) -> None:
        self._shared = shared
        self._own = ByteBudget(ALL_BYTES_MAX // 2)

    async def acquire(self, size_bytes: int) -> None:
        """Wait until messages of `size_bytes` in all may be read into memory; give it back with `release`."""
        if size_bytes <= SMALL_BYTES:
            return
        await self._own.acquire(size_bytes)
        try:
            await self._shared.acquire(size_bytes)
        except BaseException:
            self._own.release(size_bytes)
            raise

    def release(self, size_bytes: int) -> None:
        """Give back what `acquire` took."""
        if size_bytes > SMALL_BYTES:
            self._shared.release(size_bytes)
            self._own.release(size_bytes)
