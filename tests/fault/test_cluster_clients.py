"""Clients that behave badly, or are merely slow, at a cluster that has troubles of its own."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import pytest

from smtpraft.cli.demo.book import Outcome

from .cluster import Stage
from .talk import Talk

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

CLIENTS: Final = 30
TRICKLE_S: Final = 0.01


async def hang_up_after_the_dot(stage: Stage, number: int, *, reset: bool) -> str:
    node = stage.cluster.nodes[number % len(stage.cluster.nodes)]
    async with Talk(node, stage.journal) as talk:
        talk.write(await talk.begin(b"Subject: hangs up\r\n\r\n" + b"x" * number * 100 + b"\r\n"))
        talk.write(b".\r\n")
        await talk.writer.drain()
        talk.hang_up(reset=reset)
        talk.close(Outcome.UNKNOWN)
        return talk.attempt


async def hang_up_before_the_dot(stage: Stage, number: int) -> str:
    node = stage.cluster.nodes[number % len(stage.cluster.nodes)]
    async with Talk(node, stage.journal) as talk:
        talk.write(await talk.begin(b"Subject: never ends\r\n\r\n" + b"x" * 500 + b"\r\n"))
        if number % 2:
            talk.write(b".\r")
        await talk.writer.drain()
        talk.hang_up(reset=number % 3 == 0)
        talk.close(Outcome.BROKEN_OFF)
        return talk.attempt


async def test_clients_that_hang_up(directory: Path) -> None:
    """After the dot: accepted, and delivered once. Before it: there is no message (RFC 5321 §4.1.1.4).

    A reset may overtake the dot in the kernel; then there is none either.
    """
    async with Stage(directory) as stage:
        leader = await stage.cluster.leader()
        async with stage.load(clients_per_node=2) as load:
            await load.wait_acknowledged(20)
            gone = await asyncio.gather(*(hang_up_after_the_dot(stage, n, reset=False) for n in range(CLIENTS)))
            reset = await asyncio.gather(*(hang_up_after_the_dot(stage, n, reset=True) for n in range(CLIENTS)))
            unfinished = await asyncio.gather(*(hang_up_before_the_dot(stage, n) for n in range(CLIENTS)))
            await load.wait_acknowledged(20)
            # Again, with the leader dying at the same moment: once or not at all.
            dying = [asyncio.create_task(hang_up_after_the_dot(stage, n, reset=False)) for n in range(CLIENTS)]
            await asyncio.sleep(0.02)
            (outage,) = stage.kill(leader)
            await asyncio.gather(*dying, return_exceptions=True)
            await load.wait_acknowledged(20)
            await stage.restart(outage)
            await load.finish()
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()
        copies = stage.journal.copies
        assert [len(copies[attempt]) for attempt in gone] == [1] * CLIENTS
        assert max(len(copies[attempt]) for attempt in reset) <= 1
        assert not [attempt for attempt in unfinished if copies[attempt]]


async def test_a_client_that_trickles_through_a_failover_gets_its_250(directory: Path) -> None:
    """It sends a byte or two at a time, commands and content alike, while the leader is killed and comes back."""
    async with Stage(directory) as stage:
        source = random.Random(7)
        leader = await stage.cluster.leader()
        survivors = stage.cluster.others(leader)
        text = b"Subject: slow\r\n\r\n.\r\n..\r\n.dots\r\n" + b"a few more words\r\n" * 8 + b".\r\n"
        stuffed = text.replace(b"\r\n.", b"\r\n..")

        async def trickle(number: int) -> str:
            async with Talk(survivors[number % 2], stage.journal) as talk:
                content = talk.open(text)
                for line in (b"MAIL FROM:<slow@demo.example>\r\n", b"RCPT TO:<somebody@demo.example>\r\n", b"DATA\r\n"):
                    await slowly(talk, line)
                    reply = await talk.reply()
                    assert reply.startswith(("2", "3")), reply
                await slowly(talk, content.removesuffix(text) + stuffed)
                await slowly(talk, b".\r\n"[:-1])
                talk.write(b"\n")
                return await talk.answered()

        async def slowly(talk: Talk, data: bytes) -> None:
            while data:
                size = source.randint(1, 3)
                talk.write(data[:size])
                data = data[size:]
                await asyncio.sleep(TRICKLE_S)

        async with stage.load() as load:
            clients = [asyncio.create_task(trickle(number)) for number in range(10)]
            await load.wait_acknowledged(40)
            (outage,) = stage.kill(leader)
            await load.wait_acknowledged(40)
            await stage.restart(outage)
            replies = await asyncio.gather(*clients)
            await load.finish()
        assert all(reply.startswith("250 2.0.0") for reply in replies), replies
        await stage.settle()
        stage.check_mail()
        stage.journal.check_sessions()
