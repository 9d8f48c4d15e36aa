"""Bounded memory for mail on its way in: all sessions together hold at most so many bytes of content.

A session asks before it receives. When the budget is spent it waits its turn, not reading from its client; the caller
bounds the wait and refuses with `452 4.3.1` when it was in vain. First come, first served, but messages that have begun
come before those that have not: else, under a flood of large ones, each would get its start and none its end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Request = tuple[int, Callable[[], None]]
"""So many bytes, and what to call once they are taken for whoever asked."""


class MemoryBudget:
    """So many bytes, lent out and given back."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used_bytes = 0
        self._begun: deque[Request] = deque()
        self._new: deque[Request] = deque()

    def try_reserve(self, size_bytes: int, begun: bool = False) -> bool:
        """Take `size_bytes` if they are free and nobody is before us. More than there is: once everything is free."""
        if self._begun or (self._new and not begun) or not self._fits(size_bytes):
            return False
        self.used_bytes += size_bytes
        return True

    async def reserve(self, size_bytes: int, timeout_s: float, *, begun: bool = False) -> bool:
        """Take `size_bytes`, waiting up to `timeout_s` for them. Return whether they are ours."""
        if self.try_reserve(size_bytes, begun=begun):
            return True
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request = self.ask(size_bytes, lambda: granted.set_result(None), begun=begun)
        try:
            await asyncio.wait((granted,), timeout=timeout_s)
        except asyncio.CancelledError:
            if granted.done():
                self.release(size_bytes)
            raise
        finally:
            if not granted.done():
                self.withdraw(request)
        return granted.done()

    def ask(self, size_bytes: int, granted: Callable[[], None], *, begun: bool) -> Request:
        """Wait in the queue, which `try_reserve` said must be; `granted` is called once, from whoever makes room."""
        request = (size_bytes, granted)
        (self._begun if begun else self._new).append(request)
        return request

    def withdraw(self, request: Request) -> None:
        """Wait no more for what was asked and not granted."""
        queue = self._begun if request in self._begun else self._new
        queue.remove(request)
        self._serve()  # what stood behind a large request may fit

    def release(self, size_bytes: int) -> None:
        """Give `size_bytes` back."""
        self.used_bytes -= size_bytes
        assert self.used_bytes >= 0, self.used_bytes
        if self._begun or self._new:
            self._serve()

    def _fits(self, size_bytes: int) -> bool:
        return self.used_bytes + size_bytes <= self.bytes_max or self.used_bytes == 0

    def _serve(self) -> None:
        while queue := self._begun or self._new:
            if not self._fits(queue[0][0]):
                return
            size_bytes, granted = queue.popleft()
            self.used_bytes += size_bytes
            granted()
