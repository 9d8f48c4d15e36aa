"""Outcomes on their way into the log.

One command is on its way to be committed, and everything that arrives meanwhile goes into the next. What is committed
may wait for the machine's answer in company: that says only which of the outcomes counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.spool import commands
from smtpraft.spool.commands import OUTCOMES_MAX, OutcomeHeader, Refusal
from smtpraft.spool.types import Outcome

log = logging.getLogger(__name__)

COMMAND_BYTES_MAX: Final = 1000 * 1024
"""Of outcomes in one command: less than an entry holds, more than one outcome of ours ever takes."""
ATTEMPT_DEADLINE_S: Final = 10.0
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 1.0


Committed = Callable[[int], object]
"""Hears of how many more outcomes of a report are committed."""
Replicate = Callable[[bytes, float, Callable[[], object]], Awaitable[object]]
"""Puts a command to the log: deadline in seconds, and what to call when it is committed; returns the answer."""


class _Report:
    """One caller's outcomes, which may end up in several commands."""

    __slots__ = ("committed", "counted", "future", "left")

    def __init__(self, count: int, future: asyncio.Future[list[bool]], committed: Committed | None) -> None:
        self.counted = [False] * count
        self.left = count
        self.future = future
        self.committed = committed


_Waiting = tuple[_Report, int, OutcomeHeader, bytes, int]
"""Report, place in it, outcome, its bounce, the bytes of both."""


class Reports:
    """Proposes outcomes with `replicate` until the cluster has taken them or the node stops."""

    def __init__(self, replicate: Replicate) -> None:
        self._replicate = replicate
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None
        self._commands: set[asyncio.Task[None]] = set()
        self._closed = False

    async def report(self, outcomes: Sequence[Outcome], committed: Committed | None = None) -> list[bool]:
        """Record `outcomes`; see `SpoolClient.report`. A caller that is cancelled does not undo it."""
        if self._closed:
            raise Stopped("the queue's client is closed")
        if not outcomes:
            return []
        headers = [commands.outcome_header(outcome) for outcome in outcomes]
        sizes = [commands.outcome_bytes(header) for header in headers]
        if max(sizes) > COMMAND_BYTES_MAX:
            raise ValueError(f"an outcome of {max(sizes)} bytes: at most {COMMAND_BYTES_MAX}")
        report = _Report(len(outcomes), asyncio.get_running_loop().create_future(), committed)
        self._waiting += [
            (report, place, header, outcome.bounce, size)
            for place, (header, outcome, size) in enumerate(zip(headers, outcomes, sizes, strict=True))
        ]
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="spool-reports")
        return await report.future

    async def close(self) -> None:
        """Stop; what is not recorded now fails with Stopped."""
        self._closed = True
        tasks = [*self._commands] if self._task is None else [self._task, *self._commands]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail((), Stopped())

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                task = asyncio.create_task(self._record(batch, committed), name="spool-report")
                self._commands.add(task)
                task.add_done_callback(self._commands.discard)
                try:
                    await committed
                except BaseException as error:
                    self._fail(batch, error)  # a task that is cancelled before it has begun tells nobody
                    raise
        finally:
            self._task = None

    async def _record(self, batch: Sequence[_Waiting], committed: asyncio.Future[None]) -> None:
        """Have `batch` recorded, and tell who reported it. `committed` is done when it is, or never will be."""
        loop = asyncio.get_running_loop()

        def at_commit() -> None:
            if not committed.done():
                committed.set_result(None)
                loop.call_soon(_tell_committed, batch)  # not in the middle of the node's own work

        try:
            command = commands.encode_outcomes(
                [header for _, _, header, _, _ in batch], [bounce for _, _, _, bounce, _ in batch if bounce]
            )
            answer = await self._propose(command, at_commit)
            at_commit()
            self._settle(batch, answer)
        except BaseException as error:
            self._fail(batch, error)
            if not isinstance(error, Exception):
                raise
        finally:
            if not committed.done():
                committed.set_result(None)

    def _take(self) -> list[_Waiting]:
        batch = [self._waiting.popleft()]
        size_bytes = batch[0][4]
        while self._waiting and len(batch) < OUTCOMES_MAX:
            size_bytes += self._waiting[0][4]
            if size_bytes > COMMAND_BYTES_MAX:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _propose(self, command: bytes, committed: Callable[[], object]) -> object:
        """Propose until it is applied. A repeat changes nothing that counted: each result names its attempt."""
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                return await self._replicate(command, ATTEMPT_DEADLINE_S, committed)
            except (NotReplicated, OutcomeUnknown) as error:
                log.warning("outcomes not recorded yet, trying again error=%s", type(error).__name__)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _settle(self, batch: Sequence[_Waiting], answer: object) -> None:
        assert not isinstance(answer, Refusal), f"outcomes refused: {answer!r}"
        assert isinstance(answer, tuple)
        for (report, place, *_), counted in zip(batch, answer, strict=True):
            report.counted[place] = counted
            report.left -= 1
            if report.left == 0 and not report.future.done():
                report.future.set_result(report.counted)

    def _fail(self, batch: Sequence[_Waiting], error: BaseException) -> None:
        """Tell all that wait. A bug is told as what it is: who reports must not take it for a node that stops."""
        waiting = [*batch, *self._waiting]
        self._waiting.clear()
        for report, *_ in waiting:
            if report.future.done():
                continue
            if isinstance(error, Exception) and not isinstance(error, Stopped):
                report.future.set_exception(error)
            else:
                report.future.set_exception(Stopped("outcomes may not be recorded: the node stops"))


def _tell_committed(batch: Sequence[_Waiting]) -> None:
    for report, count in Counter(report for report, *_ in batch).items():
        if report.committed is not None:
            report.committed(count)
