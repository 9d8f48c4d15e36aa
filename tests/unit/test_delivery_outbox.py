"""Results on their way to the cluster: how many may be uncommitted, and who hears what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

import pytest

from smtpraft.delivery import outbox as outbox_module
from smtpraft.delivery.outbox import GATHER_COUNT, UNREPORTED_MAX, Outbox
from smtpraft.delivery.schedule import Job
from smtpraft.errors import Stopped
from smtpraft.spool.types import Outcome, message_id


class Cluster:
    """Commits and answers when it is told to."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Callable[[int], object], asyncio.Future[list[bool]]]] = []

    async def report(self, outcomes: Sequence[Outcome], committed: Callable[[int], object]) -> list[bool]:
        answer: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self.reports.append((len(outcomes), committed, answer))
        return await answer


class Desk:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.answered: list[tuple[str, bool]] = []
        self.rooms = 0
        self.outbox = Outbox(self.cluster.report, answered=self._on_answered, room=self._on_room)
        self.running = asyncio.create_task(self.outbox.run())

    def _on_answered(self, job: Job, outcome: Outcome, counted: bool) -> None:
        self.answered.append((outcome.message, counted))

    def _on_room(self) -> None:
        self.rooms += 1

    def put(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.outbox.put(cast(Job, None), Outcome(message_id(number), number, ()))

    async def reported(self, count: int) -> None:
        for _ in range(500):
            if len(self.cluster.reports) >= count:
                return
            await asyncio.sleep(0.001)
        raise AssertionError(f"{len(self.cluster.reports)} reports")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    yield desk
    desk.running.cancel()
    await asyncio.gather(desk.running, return_exceptions=True)


async def test_room_comes_with_the_commit_and_not_with_the_answer(desk: Desk) -> None:
    desk.put(1, UNREPORTED_MAX)
    assert desk.outbox.full
    await desk.reported(1)
    count, committed, answer = desk.cluster.reports[0]
    assert count == UNREPORTED_MAX
    committed(count)
    assert desk.outbox.unreported == 0
    assert desk.rooms == 1
    await asyncio.wait_for(desk.outbox.wait_empty(), 5)
    assert desk.answered == []
    answer.set_result([True] * count)
    await asyncio.sleep(0.01)
    assert len(desk.answered) == count
    assert desk.rooms == 2, "what was answered has left memory"


async def test_the_next_report_goes_once_the_one_before_is_committed(desk: Desk) -> None:
    desk.put(1, GATHER_COUNT)
    await desk.reported(1)
    desk.put(100, 5)
    await asyncio.sleep(3 * outbox_module.GATHER_S)
    assert len(desk.cluster.reports) == 1
    desk.cluster.reports[0][1](GATHER_COUNT)
    await desk.reported(2)
    assert desk.cluster.reports[1][0] == 5
    desk.cluster.reports[1][1](5)
    desk.cluster.reports[1][2].set_result([False] * 5)
    await asyncio.sleep(0.01)
    assert [counted for _, counted in desk.answered] == [False] * 5
    desk.cluster.reports[0][2].set_result([True] * GATHER_COUNT)
    await asyncio.sleep(0.01)
    assert len(desk.answered) == 5 + GATHER_COUNT


async def test_a_node_that_stops_ends_it(desk: Desk) -> None:
    desk.put(1, GATHER_COUNT)
    await desk.reported(1)
    desk.cluster.reports[0][2].set_exception(Stopped())
    await asyncio.wait_for(desk.running, 5)
    assert desk.answered == []
    assert desk.outbox.unreported == GATHER_COUNT


async def test_a_bug_is_not_taken_for_that(desk: Desk) -> None:
    desk.put(1, GATHER_COUNT)
    await desk.reported(1)
    desk.cluster.reports[0][2].set_exception(ValueError("too large"))
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(desk.running, 5)
    assert [str(error) for error in raised.value.exceptions] == ["too large"]
