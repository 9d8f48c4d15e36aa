"""Leadership moves under load, again and again: nothing is lost, nobody is told no, and how long they waited."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.client import Client
from smtpraft.cli.demo.book import Outcome

from .cluster import Stage
from .figures import Figures
from .journal import Journal

pytestmark = pytest.mark.fault

SPAN_S: Final = 0.25  # what was sent or answered so soon after a transfer began may have waited for it
REST_S: Final = 0.03


def small_messages() -> Iterator[bytes]:
    """Yield messages that cost nothing but the way through the log."""
    for number in itertools.count():
        yield b"Subject: %d\r\n\r\nshort\r\n" % number


def waits_ms(journal: Journal, moments: list[float]) -> list[float]:
    """Return, for each transfer, the longest wait for a 250 that it may have held up, in milliseconds."""
    answers = sorted((answer.at, answer.at - answer.sent_at, answer.sent_at) for answer in journal.answers)
    longest = []
    first = 0
    for moment in moments:
        while first < len(answers) and answers[first][0] < moment:
            first += 1
        held = [wait for at, wait, sent_at in answers[first : first + 2000] if sent_at <= moment + SPAN_S]
        longest.append(max(held, default=0.0) * 1000)
    return longest


def quiet_waits_ms(journal: Journal, begin: float, end: float) -> list[float]:
    """Return how long 250s took while leadership stayed where it was."""
    return sorted(
        (answer.at - answer.sent_at) * 1000
        for answer in journal.answers
        if begin <= answer.sent_at and answer.at <= end
    )


async def transfer_often(directory: Path, figures: Figures, count: int) -> None:
    async with Stage(directory) as stage:
        journal = stage.journal
        loads = stage.load(clients_per_node=2, pace_s=0.05, messages=small_messages())
        async with loads as load:
            await load.wait_acknowledged(100)
            begin = time.monotonic()
            await asyncio.sleep(2)
            quiet = quiet_waits_ms(journal, begin, time.monotonic())
            moments = []
            asked = itertools.cycle(stage.cluster.nodes)
            for _ in range(count):
                node = next(asked)
                moments.append(time.monotonic())
                answer = await asyncio.to_thread(
                    Client([], timeout_s=5.0).ask, f"127.0.0.1:{node.admin_port}", "POST", "/v1/leader/transfer", {}
                )
                assert answer.status == 200, answer.body
                await asyncio.sleep(REST_S)
            await load.wait_acknowledged(100)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        journal.check_sessions()
        assert not journal.repeats()
        assert not [attempt for attempt in journal.attempts.values() if attempt.outcome is not Outcome.ACKNOWLEDGED]
        waits = sorted(waits_ms(journal, moments))
        figures.add("250 while leadership stays: p99", [quiet[len(quiet) * 99 // 100]], "ms")
        figures.add("leadership transferred: longest wait for a 250", waits, "ms")
        figures.add("leadership transferred: p99 of that", [waits[len(waits) * 99 // 100]], "ms")
        figures.add("leadership transferred: messages", [journal.acknowledged], "")


@pytest.mark.timeout(120)
async def test_leadership_that_moves_often_costs_no_message_and_no_error(directory: Path, figures: Figures) -> None:
    await transfer_often(directory, figures, 60)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_leadership_that_moves_a_thousand_times_costs_no_message_and_no_error(
    directory: Path, figures: Figures
) -> None:
    await transfer_often(directory, figures, 1000)
