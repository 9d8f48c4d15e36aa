"""A node that comes up with a queue far longer than its memory: what it reads, and that nobody is forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.integration.sinks import HANG, OK, Sink
from tests.integration.test_delivery_service import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def wait_until(house: House, number: int, in_ms: int) -> None:
    """Queue a message, as if before the start, that waits so long."""
    info = house.queue.accept([f"u{number}@example.org"], silent=True)
    recipient = replace(info.recipients[0], attempts=1, next_attempt_ms=house.queue.now_ms() + in_ms)
    house.queue.infos[info.id] = replace(info, recipients=(recipient,))


async def test_a_start_reads_no_more_than_memory_holds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a queue of a million holds would be half a minute of a core, taken from the mail that comes in."""
    monkeypatch.setattr("smtpraft.delivery.reader.PAGE_MESSAGES", 50)
    monkeypatch.setattr("smtpraft.delivery.reader.SWEEP_BEYOND_MESSAGES", 100)
    for number in range(5000):
        house.queue.accept([f"u{number}@example.org"], silent=True)
    async with (
        Sink(lambda stage, said: HANG if stage == "mail" else OK) as sink,
        house.deliver(("*", sink.url), loaded_max=100) as delivery,
    ):
        await sink.wait(lambda: len(sink.sessions) > 0)
        await asyncio.sleep(0.3)
        assert delivery.loaded == 100
        assert house.queue.found <= 100 + 100 + 50


async def test_a_start_reads_of_what_waits_no_more_than_memory_holds(house: House) -> None:
    for number in range(2000):
        wait_until(house, number, 3_600_000)
    last = house.queue.accept(["last@example.org"], silent=True)
    async with Sink() as sink, house.deliver(("*", sink.url), loaded_max=100) as delivery:
        await sink.wait_received(1)
        await house.queue.wait(lambda: last.id not in house.queue.infos)
        assert delivery.loaded <= 100
        assert house.queue.found <= 500 + 1


async def test_who_stands_behind_a_long_queue_for_another_destination_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpraft.delivery.reader.PAGE_MESSAGES", 50)
    monkeypatch.setattr("smtpraft.delivery.reader.SWEEP_BEYOND_MESSAGES", 200)
    monkeypatch.setattr("smtpraft.delivery.reader.SWEEP_EVERY_S", 0.02)
    for number in range(1500):
        house.queue.accept([f"u{number}@slow.example"], silent=True)
    for number in range(3):
        house.queue.accept([f"v{number}@example.org"], silent=True)
    async with (
        Sink(lambda stage, said: HANG if stage == "mail" else OK) as slow,
        Sink() as quick,
        house.deliver(("slow.example", slow.url), ("*", quick.url), loaded_max=50),
    ):
        await quick.wait_received(3)


async def test_what_waits_for_long_does_not_keep_what_is_due_out_of_memory(house: House) -> None:
    for number in range(200):
        wait_until(house, number, 3_600_000)
    wait_until(house, 200, 300)
    async with Sink() as sink, house.deliver(("*", sink.url), loaded_max=50):
        await sink.wait_received(1)
