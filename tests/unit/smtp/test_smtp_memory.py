"""The budget of all sessions together."""

from __future__ import annotations

import asyncio

import pytest

from smtpraft.smtp.memory import MemoryBudget


async def test_it_lends_what_there_is() -> None:
    budget = MemoryBudget(100)
    assert budget.try_reserve(60)
    assert not budget.try_reserve(41)
    assert budget.try_reserve(40)
    budget.release(100)
    assert budget.used_bytes == 0


async def test_a_request_above_the_whole_budget_is_served_alone() -> None:
    budget = MemoryBudget(100)
    assert budget.try_reserve(500)
    assert not budget.try_reserve(1)
    budget.release(500)
    assert budget.try_reserve(1)


async def test_a_wait_ends_with_what_was_given_back() -> None:
    budget = MemoryBudget(100)
    assert budget.try_reserve(100)
    waiting = asyncio.create_task(budget.reserve(50, 60.0))
    await asyncio.sleep(0)
    budget.release(100)
    assert await waiting
    assert budget.used_bytes == 50


async def test_a_wait_in_vain_is_told_and_blocks_nobody() -> None:
    budget = MemoryBudget(100)
    assert budget.try_reserve(60)
    large = asyncio.create_task(budget.reserve(90, 0.01))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.reserve(30, 60.0))  # would fit, but stands behind
    assert not await large
    assert await small
    assert budget.used_bytes == 90


async def test_messages_that_have_begun_come_first() -> None:
    """Else each of many large messages would get its start and none its end."""
    budget = MemoryBudget(100)
    assert budget.try_reserve(100)
    new = asyncio.create_task(budget.reserve(50, 60.0))
    await asyncio.sleep(0)
    begun = asyncio.create_task(budget.reserve(50, 60.0, begun=True))
    await asyncio.sleep(0)
    budget.release(50)
    assert await begun
    assert not new.done()
    budget.release(50)
    assert await new


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    budget = MemoryBudget(100)
    assert budget.try_reserve(100)
    waiting = asyncio.create_task(budget.reserve(50, 60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    budget.release(100)
    assert budget.used_bytes == 0

    assert budget.try_reserve(100)
    waiting = asyncio.create_task(budget.reserve(50, 60.0))
    await asyncio.sleep(0)
    budget.release(100)  # granted, and cancelled in the same turn
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.used_bytes == 0
