"""Outcomes on their way into the cluster: one report at a time, holding all that gathered during the one before."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from smtpraft.delivery.schedule import Job
from smtpraft.errors import Stopped
from smtpraft.spool.types import Outcome

UNREPORTED_MAX: Final = 128
"""So many results may be uncommitted; with what is under way, that is what a crash of this node can send twice."""

GATHER_COUNT: Final = 32
GATHER_S: Final = 0.01
"""Fewer results than that wait this long for company. A command costs every node a write and a transaction, and takes
processor and disk from the next message's `250`; alone it would cost as much as the acceptance. What a crash may repeat
grows by what is delivered in that time, within the same bound."""

Report = Callable[[Sequence[Outcome], Callable[[int], object]], Awaitable[Sequence[bool]]]
"""Reports outcomes, and says of how many it is certain by now; returns which counted. See `SpoolClient.report`."""


class Outbox:
    """`answered` is called for each outcome, with whether it counted; `room` when there is room, here or in memory."""

    def __init__(self, report: Report, *, answered: Callable[[Job, Outcome, bool], None], room: Callable[[], None]):
        self._report = report
        self._answered = answered
        self._room = room
        self._waiting: deque[tuple[Job, Outcome]] = deque()
        self._wanted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._stopped = False
        self.unreported = 0
        """Results that are not committed."""

    @property
    def full(self) -> bool:
        """Must nothing more be begun?"""
        return self.unreported >= UNREPORTED_MAX

    def put(self, job: Job, outcome: Outcome) -> None:
        """Report `outcome`. Never refused: what is done is done."""
        self._waiting.append((job, outcome))
        self.unreported += 1
        self._empty.clear()
        if self.full:
            self._has_room.clear()
        self._wanted.set()

    async def wait_room(self) -> None:
        """Return when something may be begun."""
        await self._has_room.wait()

    async def wait_empty(self) -> None:
        """Return when everything is committed."""
        await self._empty.wait()

    async def run(self) -> None:
        """Report until the node stops: what gathers while one report is not committed goes into the next."""
        async with asyncio.TaskGroup() as reports:
            while not self._stopped:
                await self._wanted.wait()
                self._wanted.clear()
                while self._waiting and not self._stopped:
                    if len(self._waiting) < GATHER_COUNT:
                        await asyncio.sleep(GATHER_S)
                    batch = list(self._waiting)
                    self._waiting.clear()
                    committed = asyncio.Event()
                    reports.create_task(self._record(batch, committed), name="delivery-report-one")
                    await committed.wait()

    async def _record(self, batch: Sequence[tuple[Job, Outcome]], all_committed: asyncio.Event) -> None:
        """Report `batch`. `all_committed` is set when it is committed, or the node stops."""
        left = len(batch)

        def committed(count: int) -> None:
            nonlocal left
            left -= count
            self._committed(count)
            if not left:
                all_committed.set()

        try:
            counted = await self._report([outcome for _, outcome in batch], committed)
        except Stopped:
            self._stopped = True
            return
        finally:
            all_committed.set()
        assert not left, f"{left} results are recorded, and were not committed"
        for (job, outcome), did in zip(batch, counted, strict=True):
            self._answered(job, outcome, did)
        if not self.full:
            self._room()

    def _committed(self, count: int) -> None:
        self.unreported -= count
        if not self.unreported:
            self._empty.set()
        if not self.full:
            self._has_room.set()
            self._room()
