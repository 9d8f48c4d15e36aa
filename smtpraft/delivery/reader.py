"""Brings into memory what the replicated queue holds and `Schedule` does not: at start, after a take-over, with room.

One read at a time, so that `Schedule` can tell what changed while it ran.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, Protocol

from smtpraft.delivery.schedule import Schedule
from smtpraft.errors import Stopped
from smtpraft.spool.types import WHENEVER_MS, Changes, MessageId, MessageInfo, Outcome
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

PAGE_MESSAGES: Final = 500
DUE_AHEAD_MS: Final = 30_000
SWEEP_EVERY_S: Final = 1.0  # when there is no room, and only one destination's mail could give way to another's
SWEEP_SHARE: Final = 10  # of the time, one part in so many at most goes into such sweeps
SWEEP_BEYOND_MESSAGES: Final = 5000  # so many that find no room end a sweep
READ_AGAIN_S: Final = 1.0


class MailQueue(Protocol):
    """What delivery needs of `SpoolClient`."""

    async def report(
        self, outcomes: Sequence[Outcome], committed: Callable[[int], object] | None = None
    ) -> list[bool]: ...
    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None: ...
    async def body(self, message: MessageId | MessageInfo) -> list[bytes]: ...
    async def owned(
        self, node: NodeId, after: MessageId | None, limit: int, due_by_ms: int = ...
    ) -> list[MessageInfo]: ...
    async def due(self, node: NodeId, until_ms: int, limit: int) -> list[MessageInfo]: ...
    def now_ms(self) -> int: ...
    def subscribe(self, callback: Callable[[Changes], None]) -> None: ...
    def subscribe_committed(self, callback: Callable[[Sequence[MessageInfo]], None]) -> None: ...


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
        self._next_sweep_at = 0.0
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
            self._timer = loop.call_at(max(loop.time(), self._next_sweep_at), self._on_timer)

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
        if self._resync:
            # Who works on something waits to hear whether it is still ours; the rest is read as there is room for it.
            self._resync = False
            self._doubted.update(self._schedule.unsure)
            self._begin_after = None
        while self._doubted:
            await self._reread(next(iter(self._doubted)))
        if self._schedule.wants_sweep and (self._schedule.has_room or self._timer is None):
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

    async def _sweep(self) -> None:
        """Read on from where something was left out, until memory is full.

        What is left out again may all be for one slow destination; then the next sweep begins where this one ended, for
        the sake of the others behind. So a queue of any length costs a node that comes up no more than what it can
        hold, and after that at most so much a second.
        """
        time = asyncio.get_running_loop().time
        began_at = time()
        start = self._begin_after if not self._schedule.has_room else None  # with room, what waits longest comes first
        before = self._schedule.begin_sweep(going_on=start is not None)
        try:
            self._begin_after = await self._pages(before if start is None else start)
        finally:
            if start is not None:
                self._schedule.leave_out_after(before)
            self._next_sweep_at = max(began_at + SWEEP_EVERY_S, began_at + SWEEP_SHARE * (time() - began_at))

    async def _pages(self, after: MessageId) -> MessageId | None:
        """Read page by page; return where we stopped, None at the end."""
        schedule = self._schedule
        refused = schedule.refused
        while schedule.refused - refused < SWEEP_BEYOND_MESSAGES:
            now_ms = self._client.now_ms()
            due_by_ms = WHENEVER_MS
            if not schedule.has_room_for_waiting:
                due_by_ms = now_ms
                schedule.leave_waiting(now_ms + 1)
            try:
                page = await self._load(self._client.owned(self._node, after or None, PAGE_MESSAGES, due_by_ms))
            except BaseException:
                self._leave_unseen(after)
                raise
            if len(page) < PAGE_MESSAGES:
                return None
            after = page[-1].id
            self._loaded()
        self._leave_unseen(after)
        return after

    def _leave_unseen(self, after: MessageId) -> None:
        """Nobody has looked at what comes after that: it may be due now, or at any time."""
        self._schedule.leave_out_after(after, unseen=True)
        self._schedule.leave_waiting(self._client.now_ms() + 1)

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
