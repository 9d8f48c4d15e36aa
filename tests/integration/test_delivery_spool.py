"""Delivery on the real queue: the SQLite machine and its client, over a log of one process."""

from __future__ import annotations

import asyncio
import email
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtpraft.config import DeliverySettings, RouteSettings
from smtpraft.delivery import Delivery
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.types import CHUNK_BYTES, Envelope
from tests.integration.fake_queue import FakeNode
from tests.integration.sinks import OK, Sink
from tests.unit.spool.journal import START_MS, A, B, Bench, Single

A_TO_B = Envelope("alice@example.org", ("bob@example.net",))


class House:
    """A machine, its client, and delivery on top."""

    def __init__(self, tmp_path: Path) -> None:
        self.bench = Bench(str(tmp_path / "queue.db"))
        self.bench.journal.stamp = START_MS
        self.client = SpoolClient(Single(self.bench), self.bench.machine)
        self.node = FakeNode()
        self.node.node_id = A
        self._tmp_path = tmp_path

    @asynccontextmanager
    async def deliver(self, url: str, **settings: object) -> AsyncIterator[Delivery]:
        self.client.attach(asyncio.get_running_loop())
        delivery = Delivery(
            DeliverySettings(routes=[RouteSettings(domain="*", to=url)], **settings),  # type: ignore[arg-type]
            client=self.client,
            node=self.node,
            hostname="mx.example.org",
            data_dir=str(self._tmp_path),
            rng=random.Random(1),
        )
        await delivery.start()
        try:
            yield delivery
        finally:
            await delivery.close()
            await self.client.close()
            self.bench.machine.close()

    async def until(self, condition: Callable[[dict[str, int]], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition(self.client.counts()):  # noqa: ASYNC110 - the counts tell nobody
                await asyncio.sleep(0.01)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_accepted_mail_reaches_the_sink_and_leaves_the_queue(house: House) -> None:
    body = [b"Received: by mx\r\n", b"Subject: x\r\n\r\n.dot\r\n", b"y" * (2 * CHUNK_BYTES) + b"\r\n"]
    async with Sink() as sink, house.deliver(sink.url):
        for _ in range(100):
            await house.client.accept(A_TO_B, body[:2], deadline_s=5)
        await house.client.accept(A_TO_B, body, deadline_s=5)
        await house.until(lambda counts: counts["messages"] == 0)
        assert house.client.counts()["delivered"] == 101
        assert max(len(r.content) for r in sink.received) == sum(map(len, body))
        assert b"".join(body) in [r.content for r in sink.received]


async def test_a_failure_becomes_one_message_to_the_sender(house: House) -> None:
    async with Sink() as sink, house.deliver(sink.url):
        sink.rule = lambda stage, said: "550 5.1.1 no such user" if said == "bob@example.net" else OK
        message = await house.client.accept(A_TO_B, [b"Subject: x\r\n\r\nhello\r\n"], deadline_s=5)
        (bounce,) = await sink.wait_received(1)
        await house.until(lambda counts: counts["messages"] == 0)
        assert (bounce.sender, bounce.recipients) == ("", ["alice@example.org"])
        assert email.message_from_bytes(bounce.content).get_content_type() == "multipart/report"
        assert message.encode() in bounce.content
        counts = house.client.counts()
        assert (counts["bounces"], counts["failed"], counts["delivered"]) == (1, 1, 1)


async def test_a_bounce_that_cannot_be_delivered_ends_there(house: House) -> None:
    async with (
        Sink(lambda stage, said: "550 5.1.1 nobody" if stage == "rcpt" else OK) as sink,
        house.deliver(sink.url) as delivery,
    ):
        await house.client.accept(A_TO_B, [b"Subject: x\r\n\r\nhello\r\n"], deadline_s=5)
        await house.until(lambda counts: counts["messages"] == 0 and counts["failed"] == 2)
        assert delivery.metrics.dead_letters == 1
        assert house.client.counts()["bounces"] == 1


async def test_an_operator_holds_releases_flushes_and_deletes(house: House) -> None:
    async with Sink() as sink, house.deliver(sink.url, retry_s=[3600.0]):
        sink.rule = lambda stage, said: "451 4.3.0 later" if stage == "dot" else OK
        first = await house.client.accept(A_TO_B, [b"Subject: 1\r\n\r\n"], deadline_s=5)
        second = await house.client.accept(A_TO_B, [b"Subject: 2\r\n\r\n"], deadline_s=5)
        await house.until(lambda counts: counts["deferred"] == 2)
        await house.client.hold([first])
        await house.client.delete([second])
        sink.rule = lambda stage, said: OK
        await house.client.flush(None)
        await asyncio.sleep(0.1)
        assert not sink.received
        await house.client.release([first])
        await house.client.flush(None)
        await house.until(lambda counts: counts["messages"] == 0)
        assert [r.content for r in sink.received] == [b"Subject: 1\r\n\r\n"]


async def test_a_dead_nodes_queue_is_taken_over_and_a_live_nodes_is_given_up(house: House) -> None:
    house.bench.up(A)
    house.bench.up(B)
    theirs = [house.bench.accept(A_TO_B, b"Subject: theirs\r\n\r\n", node=B) for _ in range(1500)]
    async with Sink() as sink, house.deliver(sink.url):
        await asyncio.sleep(0.05)
        assert not sink.received
        house.bench.down(B, A)
        await house.until(lambda counts: counts["messages"] == 0)
        assert len(sink.received) == len(theirs)
        house.node.lease = False
        house.bench.accept(A_TO_B, b"Subject: ours\r\n\r\n", node=A)
        house.bench.down(A, B)
        house.node.lease = True
        await asyncio.sleep(0.2)
        assert len(sink.received) == len(theirs)
