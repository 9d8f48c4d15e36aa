"""Who is not let in, or thrown out: strangers, liars, babblers, and the replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from smtpraft import fastlog
from smtpraft.cluster import connection as connection_module
from smtpraft.cluster import transport as transport_module
from smtpraft.fastlog import CorruptFrame

from .members import (
    FAKE,
    ONE,
    PATIENCE_S,
    SECRET,
    THREE,
    TWO,
    TYPE,
    Driver,
    FakePeer,
    Run,
    cluster_of,
    listening,
    pair,
    until,
)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"secret": b"another secret of 16+"}, "do not have the same secret"),
        ({"secret": None}, "has none"),
        ({"cluster_id": b"another cluster."}, "belongs to cluster"),
        ({"node_id": THREE}, "is not among its peers"),
    ],
)
def test_who_does_not_belong_stays_out_and_both_logs_say_why(
    run: Run, ports: Iterator[list[int]], caplog: pytest.LogCaptureFixture, options: dict[str, Any], reason: str
) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            one, two = Driver(), Driver()
            first = await cluster.start(ONE, one, with_peers=(TWO,))
            second = await cluster.start(TWO, two, with_peers=(ONE,), **options)
            await until(lambda: second.stats(ONE).failures >= 4 and first.stats(TWO).failures >= 4)
            assert not first.connected(TWO)
            assert not second.connected(ONE)
            assert (one.events, two.events) == ([], [])
            assert first.stats(TWO).incoming == 0

    with caplog.at_level(logging.WARNING):
        run(test())
    lines = [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert any(line.startswith("connection refused") for line in lines)
    assert any(line.startswith("cannot connect") and "refused by peer" in line for line in lines)
    assert len(lines) <= 8  # rate-limited: there were many more attempts
    assert not any(SECRET.decode() in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "babble",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SMTPRAFT\x01\xff\xff",
        os.urandom(1 << 20),
    ],
)
def test_a_stranger_that_babbles_is_shown_the_door(run: Run, ports: Iterator[list[int]], babble: bytes) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, one, _, _ = await pair(cluster)
            events = list(one.events)
            loop = asyncio.get_running_loop()
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", cluster.port(ONE)))
            stranger = FakePeer(sock)
            with contextlib.suppress(ConnectionError):
                await stranger.send(babble)
            await stranger.rest()
            stranger.close()
            assert one.events == events
            assert first.connected(TWO)

    run(test())


def test_a_stranger_that_says_nothing_is_not_waited_for(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            await cluster.start(ONE, Driver(), with_peers=(TWO,), handshake_timeout_s=0.1)
            loop = asyncio.get_running_loop()
            for start in (b"", b"SMTPR"):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", cluster.port(ONE)))
                stranger = FakePeer(sock)
                await stranger.send(start)
                assert await stranger.rest() == b""
                stranger.close()

    run(test())


def test_a_crowd_of_silent_strangers_does_not_keep_a_node_out(
    run: Run, ports: Iterator[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            monkeypatch.setattr(transport_module, "UNPROVEN_MAX", 8)
            first = await cluster.start(ONE, Driver(), with_peers=(TWO,))
            loop = asyncio.get_running_loop()
            strangers = []
            for _ in range(30):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", cluster.port(ONE)))
                strangers.append(FakePeer(sock))
            async with asyncio.timeout(PATIENCE_S):
                for stranger in strangers[:22]:
                    assert await stranger.rest() == b""
            second = await cluster.start(TWO, Driver(), with_peers=(ONE,))
            await until(lambda: first.connected(TWO) and second.connected(ONE))
            for stranger in strangers:
                stranger.close()

    run(test())


def corrupt_frame() -> bytes:
    frame = bytearray(fastlog.encode_frame(TYPE, b"head"))
    frame[-1] ^= 1
    return bytes(frame)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (corrupt_frame(), b"checksum"),
        (struct.pack(">IHBBI", 9_000_000, 4, TYPE, 1, 0), b"9000000"),
        (struct.pack(">IHBBI", 0xFFFFFFFF, 4, TYPE, 1, 0), b"4294967295"),
        (struct.pack(">IHBBI", 4, 4, TYPE, 9, 0), b"version"),
        (fastlog.encode_frame(connection_module.FRAME_PONG, b""), b"out of place"),
        (fastlog.encode_frame(255, b""), b"out of place"),
    ],
)
def test_a_proven_peer_that_sends_garbage_loses_the_connection_and_nothing_else(
    run: Run, ports: Iterator[list[int]], data: bytes, reason: bytes
) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            one = Driver()
            await cluster.start(ONE, one, with_peers=(TWO,))
            peer = await FakePeer.dial(cluster.port(ONE), FAKE)
            await peer.send(fastlog.encode_frame(TYPE, b"good"))
            await until(lambda: one.frames)
            await peer.send(data)
            [(type, head, _)] = fastlog.FrameDecoder(1000).feed(await peer.rest())
            assert type == connection_module.FRAME_CLOSE
            assert reason in head
            await until(lambda: one.events)
            assert one.events == [("lost", TWO, False)]
            assert one.failures == []
            peer.close()
            again = await FakePeer.dial(cluster.port(ONE), FAKE)
            await again.send(fastlog.encode_frame(TYPE, b"good again"))
            await until(lambda: len(one.frames) == 2)
            again.close()

    run(test())


@pytest.mark.parametrize("error", [CorruptFrame("no such message"), fastlog.CorruptEntry("bad crc")])
def test_a_frame_that_the_driver_finds_corrupt_ends_its_connection(
    run: Run, ports: Iterator[list[int]], error: Exception
) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, one, second, two = await pair(cluster)
            two.refuse = error
            assert first.send(TWO, TYPE, b"x")
            await until(lambda: ("lost", TWO, False) in one.events, "told, and not taken for a death")
            assert ("lost", ONE, False) in two.events
            two.refuse = None
            await until(lambda: first.connected(TWO))
            assert first.send(TWO, TYPE, b"y")
            await until(lambda: two.frames)
            assert (two.failures, second.connected(ONE)) == ([], True)

    run(test())


def test_a_bug_in_the_driver_is_reported_to_it(run: Run, ports: Iterator[list[int]]) -> None:
    """A node that stops loses nothing; one that swallows a failed assertion might."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, _, _, two = await pair(cluster)
            two.refuse = AssertionError("match index above last index")
            assert first.send(TWO, TYPE, b"x")
            await until(lambda: two.failures == [two.refuse])

    run(test())


def test_a_new_connection_of_a_peer_replaces_the_old_one(
    run: Run, ports: Iterator[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Its process was restarted, and the end of the old one never reached us."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            one = Driver()
            first = await cluster.start(ONE, one, with_peers=(TWO,))
            old = await FakePeer.dial(cluster.port(ONE), FAKE)
            new = await FakePeer.dial(cluster.port(ONE), replace(FAKE, incarnation=2))
            assert b"replaced" in await old.rest()
            await until(lambda: one.events == [("lost", TWO, False)])
            await new.send(fastlog.encode_frame(TYPE, b"here"))
            await until(lambda: one.frames)
            assert first.stats(TWO).incoming == 1
            assert first.stats(TWO).incarnation == 2
            old.close()
            new.close()

    with caplog.at_level(logging.WARNING):
        run(test())
    assert "two processes" in caplog.text


def test_a_peer_that_was_replaced_is_believed_by_who_is_behind(run: Run, ports: Iterator[list[int]]) -> None:
    """Its log is longer, and this node could not get it otherwise: neither after an absence nor while it catches up."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            behind, replaced = Driver(), Driver()
            stale = await cluster.start(ONE, behind, with_peers=(), directory=1)
            other = cluster.peers[1]
            stale.set_peer(other, 2)  # what its log says
            new = await cluster.start(TWO, replaced, with_peers=(), directory=102)
            new.set_peer(cluster.peers[0], 1)
            await until(lambda: stale.connected(TWO) and new.connected(ONE), "connected")

            for is_member in (True, False):  # entries of the past
                if is_member:
                    stale.set_peer(other, 2)
                else:
                    stale.drop_peer(TWO)
                assert stale.connected(TWO)
                stale.send(TWO, TYPE, b"", [b"x"])
                await until(lambda: replaced.frames)
                replaced.frames.clear()
            assert [event for event in behind.events if event[0] == "lost"] == []
            stale.removed = {(TWO, 102): 7}  # the log has come so far, and further: it was replaced again
            stale.set_peer(other, 202)
            await until(lambda: not stale.connected(TWO), "let go")

    run(test())


def test_who_lost_its_disk_is_not_believed(run: Run, ports: Iterator[list[int]]) -> None:
    """It has no log that could tell it of us; nor is one that was removed let in again."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            known = Driver()
            us = await cluster.start(ONE, known, with_peers=(), directory=1)
            us.set_peer(cluster.peers[1], 2)
            us.set_peer(cluster.peers[2], 3)
            us.removed = {(THREE, 103): 7}
            wiped = await cluster.start(TWO, Driver(), with_peers=(ONE,), directory=102)
            removed = await cluster.start(THREE, Driver(), with_peers=(), directory=103)
            told: list[int] = []
            removed.on_removed = told.append
            removed.set_peer(cluster.peers[0], 1)
            await until(lambda: told, "told that it is no member")
            await until(lambda: "the cluster knows node-2 with" in wiped.stats(ONE).last_error, "refused")
            assert known.events == []
            assert not us.connected(TWO)
            assert not us.connected(THREE)

    run(test())


def test_an_address_in_use_is_an_error_at_start(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster, listening(cluster.port(ONE)):
            with pytest.raises(OSError):
                await cluster.start(ONE, Driver())

    run(test())


def test_nothing_is_heard_of_a_closed_transport(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, one, _, _ = await pair(cluster)
            events = list(one.events)
            await cluster.stop(first)
            assert one.events == events
            assert not first.connected(TWO)
            assert not first.send(TWO, TYPE, b"x")
            await first.close()

    run(test())
