"""Brings into memory what the replicated queue holds and `Schedule` does not: at start, after a take-over, with room.

One read at a time, so that `Schedule` can tell what changed while it ran.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, Protocol

from smtpraft.delivery.schedule import FROM_THE_START, Schedule
from smtpraft.errors import Stopped
from smtpraft.spool.types import Changes, MessageId, MessageInfo, Outcome
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

PAGE_MESSAGES: Final = 500
DUE_AHEAD_MS: Final = 30_000
SWEEP_EVERY_S: Final = 1.0  # when there is no room, and only one destination's mail could give way to another's
SWEEP_BEYOND_MESSAGES: Final = 5000  # so many that find no room end a sweep
READ_AGAIN_S: Final = 1.0


class MailQueue(Protocol):
    """What delivery needs of `SpoolClient`."""

    async def report(self, outcomes: Sequence[Outcome]) -> list[bool]: ...
    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None: ...
    async def body(self, message: MessageId | MessageInfo) -> list[bytes]: ...
    async def owned(self, node: NodeId, after: MessageId | None, limit: int) -> list[MessageInfo]: ...
    async def due(self, node: NodeId, until_ms: int, limit: int) -> list[MessageInfo]: ...
    def now_ms(self) -> int: ...
    def subscribe(self, callback: Callable[[Changes], None]) -> None: ...


class Reader:
    """`loaded` is called whenever something was read."""

    def __init__(self, client: MailQueue, node: NodeId, schedule: Schedule, loaded: Callable[[], None]) -> None:
        self._client = client
        self._node = node
        self._schedule = schedule
        self._loaded = loaded
        self._wanted = asyncio.Event()
        self._doubted: set[MessageId] = set()
        self._resync = True
        self._swept_at = -SWEEP_EVERY_S
        self._begin_after: MessageId | None = None
        self._timer: asyncio.TimerHandle | None = None

    def resync(self) -> None:
        """Everything may have changed: read it all."""
        self._resync = True
        self._wanted.set()

    def doubt(self, message: MessageId) -> None:
        """Read this message again."""
        self._doubted.add(message)
        self._wanted.set()

    def consider(self, now_ms: int) -> None:
        """Read on if there is something to read and room for it."""
        if self._wanted.is_set():
            return
        if self._schedule.wants_due(now_ms) or (self._schedule.wants_sweep and self._schedule.has_room):
            self._wanted.set()
        elif self._schedule.wants_sweep and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(loop.time(), self._swept_at + SWEEP_EVERY_S), self._on_timer)

    def close(self) -> None:
        """Nothing more will be read."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_timer(self) -> None:
        self._timer = None
        self._wanted.set()

    async def run(self) -> None:
        """Read until the node stops."""
        self._wanted.set()
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._read()
            except Stopped:
                return
            except Exception:
                log.exception("cannot read the queue retry_s=%.1f", READ_AGAIN_S)
                await asyncio.sleep(READ_AGAIN_S)
                self._wanted.set()
            self._loaded()

    async def _read(self) -> None:
        while self._doubted:
            await self._reread(next(iter(self._doubted)))
        if self._resync:
            await self._read_all()
        elif self._schedule.wants_sweep and (self._schedule.has_room or self._timer is None):
            await self._sweep()
        if self._schedule.wants_due(self._client.now_ms()):
            await self._read_due()

    async def _reread(self, message: MessageId) -> None:
        self._schedule.begin_reading()
        try:
            info = await self._client.get(message, linearizable=False)
        except BaseException:
            self._schedule.end_reading((), 0)
            raise
        if self._schedule.end_rereading(message, info, self._client.now_ms()):
            self._doubted.discard(message)

    async def _read_all(self) -> None:
        """Read every message of ours: what we think we own and do not find is not ours any more."""
        self._resync = False
        self._schedule.begin_sweep()
        try:
            await self._pages(FROM_THE_START, whole=True)
        except BaseException:
            self._schedule.leave_out_after(FROM_THE_START)
            self._resync = True
            raise
        if not self._resync:
            self._schedule.finish_resync()

    async def _sweep(self) -> None:
        """Read on from where something was left out, until memory is full.

        What is left out again may all be for one slow destination; then the next sweep begins where this one ended, for
        the sake of the others behind.
        """
        self._swept_at = asyncio.get_running_loop().time()
        before = self._schedule.begin_sweep()
        start = before if self._begin_after is None else self._begin_after
        found = self._schedule.found
        try:
            end = await self._pages(start, whole=False)
        finally:
            if start != before:
                self._schedule.leave_out_after(before)
        self._begin_after = end if self._schedule.found == found else None

    async def _pages(self, after: MessageId, *, whole: bool) -> MessageId | None:
        """Read page by page; return where we stopped, None at the end."""
        refused = self._schedule.refused
        while whole or self._schedule.refused - refused < SWEEP_BEYOND_MESSAGES:
            try:
                page = await self._load(self._client.owned(self._node, after or None, PAGE_MESSAGES))
            except BaseException:
                self._schedule.leave_out_after(after)
                raise
            if len(page) < PAGE_MESSAGES:
                return None
            after = page[-1].id
            self._loaded()
        self._schedule.leave_out_after(after)
        return after

    async def _read_due(self) -> None:
        """Read what waited elsewhere than in memory and is due now, or within half a minute."""
        now_ms = self._client.now_ms()
        until_ms = now_ms + DUE_AHEAD_MS
        # What is in memory comes back too, and must not crowd out what is not.
        limit = PAGE_MESSAGES + len(self._schedule)
        self._schedule.unloaded_due_ms = None
        try:
            found = await self._load(self._client.due(self._node, until_ms, limit))
        except BaseException:
            self._schedule.leave_waiting(now_ms)
            raise
        self._schedule.leave_waiting(found[-1].next_attempt_ms if len(found) == limit else until_ms + 1)

    async def _load(self, read: Coroutine[None, None, list[MessageInfo]]) -> list[MessageInfo]:
        infos: list[MessageInfo] = []
        self._schedule.begin_reading()
        try:
            infos = await read
        finally:
            self._schedule.end_reading(infos, self._client.now_ms())
        return infos
