"""Linearizable reads: what was asked for together is confirmed together (ReadIndex, Raft thesis §6.4).

A round carries a context; when the core says at which index it is safe, its readers wait until this node has applied
that far. A lost round is repeated. Loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Final

from smtpraft.consensus.messages import ReadState

ROUND_RETRY_S: Final = 0.3


@dataclass(slots=True)
class _Round:
    context: bytes
    retry_at: float
    waiters: list[asyncio.Future[int]] = field(default_factory=list)


class Reads:
    """The reads of one node that are not answered yet."""

    def __init__(self, incarnation: bytes) -> None:
        self._prefix = incarnation[:8]
        self._numbers = itertools.count(1)
        self._new: list[asyncio.Future[int]] = []
        self._rounds: dict[bytes, _Round] = {}
        self._confirmed: list[tuple[int, asyncio.Future[int]]] = []

    def ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[int]:
        """Return a future that gets the index once this node has applied it and it is safe to read."""
        future: asyncio.Future[int] = loop.create_future()
        self._new.append(future)
        return future

    def contexts(self, now: float) -> list[bytes]:
        """Return the contexts to ask the core for now: one for all new readers and all that met silence."""
        contexts = []
        for read in list(self._rounds.values()):
            read.waiters = [waiter for waiter in read.waiters if not waiter.done()]
            if not read.waiters:
                del self._rounds[read.context]
            elif now >= read.retry_at:
                # A new context: an answer to the old one may stem from before these readers' retry, and may still come.
                self._new.extend(read.waiters)
                del self._rounds[read.context]
        if self._new:
            context = self._prefix + next(self._numbers).to_bytes(8, "big")
            self._rounds[context] = _Round(context, now + ROUND_RETRY_S, self._new)
            self._new = []
            contexts.append(context)
        return contexts

    def confirmed(self, state: ReadState, applied_index: int) -> None:
        """The core says that `state.index` is safe for the round `state.context`."""
        read = self._rounds.pop(state.context, None)
        if read is not None:
            self._confirmed.extend((state.index, waiter) for waiter in read.waiters)
            self.applied(applied_index)

    def applied(self, applied_index: int) -> None:
        """This node has applied the log up to `applied_index`."""
        if not self._confirmed:
            return
        still = []
        for index, waiter in self._confirmed:
            if index > applied_index:
                still.append((index, waiter))
            elif not waiter.done():
                waiter.set_result(index)
        self._confirmed = still

    @property
    def waiting(self) -> bool:
        """Does a reader wait for this node to apply what is committed?"""
        return bool(self._confirmed)

    @property
    def has_some(self) -> bool:
        """Is any reader not confirmed yet?"""
        return bool(self._new or self._rounds)

    def has_work(self, now: float) -> bool:
        """Whether `contexts` would return anything."""
        if not self._rounds:
            return bool(self._new)
        return bool(self._new) or any(now >= read.retry_at for read in self._rounds.values())

    def close(self, error: Exception) -> None:
        """Fail everything that waits."""
        waiters = [*self._new, *(waiter for _, waiter in self._confirmed)]
        for read in self._rounds.values():
            waiters.extend(read.waiters)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()
