"""Frames between nodes, and peers that die, stall and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from smtpraft import fastlog
from smtpraft.cluster import connection as connection_module
from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.handshake import Channel
from smtpraft.types import NodeId

from .members import (
    FAKE,
    ONE,
    PATIENCE_S,
    TWO,
    TYPE,
    Cluster,
    Driver,
    FakePeer,
    Run,
    accept_both,
    cluster_of,
    listening,
    pair,
    until,
)

# --- exchanging frames ----------------------------------------------------------------------------------------------


def test_frames_arrive_whole_and_in_order(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, one, second, two = await pair(cluster)
            large = os.urandom(3_000_000)
            sent = [(TYPE, b"head %d" % number, b"tail" * number) for number in range(500)]
            for type, head, tail in sent:
                assert first.send(TWO, type, head, [tail[:7], memoryview(tail)[7:]])
            assert first.send(TWO, TYPE, b"large", [memoryview(large)])
            assert second.send(ONE, TYPE, b"", ())
            await until(lambda: len(two.frames) == 501 and len(one.frames) == 1, "all frames")
            assert two.frames == [*((ONE, *frame) for frame in sent), (ONE, TYPE, b"large", large)]
            assert one.frames == [(TWO, TYPE, b"", b"")]
            stats = first.stats(TWO)
            assert (stats.connected, stats.incoming, stats.incarnation) == (True, 2, 1)
            assert (stats.sent_frames, stats.unsent_frames, stats.reconnects) == (501, 0, 0)
            assert stats.sent_bytes > 3_000_000
            assert second.stats(ONE).received_frames == 501
            assert second.stats(ONE).received_bytes > 3_000_000
            assert (one.failures, two.failures) == ([], [])

    run(test())


def test_all_frames_of_one_read_come_at_once(run: Run, ports: Iterator[list[int]]) -> None:
    """So that a driver can answer them with one disk write and one frame."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            driver = Driver()
            batches: list[int] = []
            driver.frames_received = lambda peer, frames: batches.append(len(frames))  # type: ignore[method-assign]
            await cluster.start(ONE, driver, with_peers=(TWO,))
            peer = await FakePeer.dial(cluster.port(ONE), FAKE)
            await peer.send(fastlog.encode_frame(TYPE, b"x") * 40)
            await until(lambda: sum(batches) == 40)
            assert batches == [40]
            peer.close()

    run(test())


def test_heartbeats_pass_while_bulk_is_stuffed(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster, listening(cluster.port(TWO)) as server:
            first = await cluster.start(ONE, Driver(), with_peers=(TWO,))
            peers = await accept_both(server, FAKE)
            await until(lambda: first.connected(TWO))
            while first.send(TWO, TYPE, b"", [bytes(1_000_000)]):
                pass
            assert first.stats(TWO).buffered_bytes > 32_000_000
            beat = fastlog.encode_frame(fastlog.FRAME_HEARTBEAT, b"now")
            assert first.send_control(TWO, beat)
            received = b""
            async with asyncio.timeout(PATIENCE_S):
                while not received.endswith(beat):
                    received += await asyncio.get_running_loop().sock_recv(peers[Channel.CONTROL].sock, 4096)
            for peer in peers.values():
                peer.close()

    run(test())


def test_a_stalled_reader_costs_no_more_than_the_bound(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster, listening(cluster.port(TWO)) as server:
            bound = 4_000_000
            first = await cluster.start(ONE, Driver(), with_peers=(TWO,), max_buffered_bytes=bound)
            peers = await accept_both(server, FAKE)
            await until(lambda: first.connected(TWO))
            refused = 0
            for _ in range(300):
                if not first.send(TWO, TYPE, b"", [bytes(100_000)]):
                    refused += 1
                    await asyncio.sleep(0)  # let the kernel take what it will
                assert first.stats(TWO).buffered_bytes <= bound
            assert refused > 100
            assert first.stats(TWO).unsent_frames == refused
            assert not first.send(TWO, TYPE, b"", [bytes(bound)])
            # Control has a bound of its own.
            beats = 0
            beat = fastlog.encode_frame(fastlog.FRAME_HEARTBEAT, bytes(64))
            while first.send_control(TWO, beat) and beats < 1_000_000:
                beats += 1
                if beats % 100 == 0:
                    await asyncio.sleep(0)
            assert beats < 1_000_000
            for peer in peers.values():
                peer.close()

    run(test())


def test_to_send_to_nobody_is_refused(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first = await cluster.start(ONE, Driver(), with_peers=(TWO,))
            assert not first.send(TWO, TYPE, b"x")
            assert not first.send_control(TWO, fastlog.encode_frame(TYPE, b"x"))
            assert not first.send(NodeId("stranger"), TYPE, b"x")
            assert not first.send_control(NodeId("stranger"), fastlog.encode_frame(TYPE, b"x"))
            assert not first.connected(TWO)
            assert not first.connected(NodeId("stranger"))
            assert first.stats(TWO).unsent_frames == 2
            with pytest.raises(KeyError):
                first.stats(NodeId("stranger"))

    run(test())


def test_a_frame_that_no_peer_would_take_is_not_sent(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, _, second, two = await pair(cluster, max_frame_bytes=1000)
            with pytest.raises(ValueError, match="at most 1000"):
                first.send(TWO, TYPE, b"x", [bytes(1000)])
            assert first.send(TWO, TYPE, b"", [bytes(1000)])
            await until(lambda: two.frames)
            assert second.connected(ONE)

    run(test())


# --- losing and finding peers ---------------------------------------------------------------------------------------


def test_a_restarted_peer_is_back_at_once(run: Run, ports: Iterator[list[int]]) -> None:
    """However long it was away: what it dials wakes what waits to dial it."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, one, second, _ = await pair(cluster)
            await cluster.stop(second)
            await until(lambda: one.events.count(("lost", TWO, True)) == 4, "four connections lost")
            assert not first.connected(TWO)
            failures = first.stats(TWO).failures
            await until(lambda: first.stats(TWO).failures > failures + 12, "a long back-off")
            two = Driver()
            loop = asyncio.get_running_loop()
            restarted_at = loop.time()
            second = await cluster.start(TWO, two, with_peers=(ONE,), incarnation=2)
            await until(lambda: first.connected(TWO) and second.connected(ONE), "connected again")
            assert loop.time() - restarted_at < 0.5
            assert one.events[-1] == ("connected", TWO)
            assert first.stats(TWO).incarnation == 2
            assert first.stats(TWO).reconnects == 2
            assert first.send(TWO, TYPE, b"again")
            await until(lambda: two.frames)

    run(test())


def test_what_was_sent_before_the_end_arrives(run: Run, ports: Iterator[list[int]]) -> None:
    """A leader that stops says so last: TIMEOUT_NOW must not die with it."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            first, _, _, two = await pair(cluster)
            for _ in range(20):
                assert first.send(TWO, TYPE, b"", [bytes(500_000)])
            assert first.send(TWO, TYPE, b"last words")
            await cluster.stop(first)
            await until(lambda: two.frames and two.frames[-1][2] == b"last words")
            assert len(two.frames) == 21

    run(test())


CHILD = """
import asyncio, sys
from smtpraft.cluster.transport import Peer, Transport
class Driver:
    def frames_received(self, peer, frames): pass
    def peer_connected(self, peer): print("connected", flush=True)
    def peer_lost(self, peer, reset): pass
async def main(own, other):
    transport = Transport(node_id="node-2", cluster_id=b"a cluster's id..", secret=b"a secret of 24 bytes ...",
        listen=("127.0.0.1", own), peers=[Peer("node-1", "127.0.0.1", other)], receiver=Driver(), incarnation=7)
    await transport.start()
    await asyncio.Event().wait()
asyncio.run(main(*map(int, sys.argv[1:])))
"""


@asynccontextmanager
async def child(cluster: Cluster) -> AsyncIterator[asyncio.subprocess.Process]:
    """Node 2 in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(cluster.port(TWO)), str(cluster.port(ONE)), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_killed_peer_is_known_to_be_dead_at_once(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster, child(cluster) as process:
            one = Driver()
            first = await cluster.start(ONE, one, with_peers=(TWO,))
            await until(lambda: first.connected(TWO) and first.stats(TWO).incoming == 2)
            assert first.stats(TWO).incarnation == 7
            loop = asyncio.get_running_loop()
            killed_at = loop.time()
            process.kill()
            await until(lambda: ("lost", TWO, True) in one.events)
            assert loop.time() - killed_at < 0.1
            await until(lambda: one.events.count(("lost", TWO, True)) == 4)

    run(test())


def test_a_peer_that_falls_silent_is_given_up_and_found_again(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster, child(cluster) as process:
            one = Driver()
            first = await cluster.start(ONE, one, with_peers=(TWO,), silence_limit_s=0.6, handshake_timeout_s=0.5)
            await until(lambda: first.connected(TWO) and first.stats(TWO).round_trips_s)
            process.send_signal(signal.SIGSTOP)
            await until(lambda: one.events.count(("lost", TWO, False)) >= 2, "both connections given up")
            assert not first.connected(TWO)
            assert "no handshake" not in first.stats(TWO).last_error
            await until(lambda: "no handshake within 0.5 s" in first.stats(TWO).last_error, "it does not answer")
            process.send_signal(signal.SIGCONT)
            await until(lambda: first.connected(TWO), "connected again")

    run(test())


def test_a_slow_reader_is_not_a_dead_one(run: Run, ports: Iterator[list[int]]) -> None:
    """Its pong is far behind bulk, but it takes some, time and again."""

    async def test() -> None:
        async with (
            cluster_of(ports) as cluster,
            listening(cluster.port(TWO), receive_buffer_bytes=20_000) as server,
        ):
            one = Driver()
            first = await cluster.start(ONE, one, with_peers=(TWO,), silence_limit_s=0.5)
            peers = await accept_both(server, FAKE)
            await until(lambda: first.connected(TWO))
            await asyncio.sleep(0)
            bulk, control = peers[Channel.BULK], peers[Channel.CONTROL]
            echo = asyncio.create_task(answer_pings(control), name="control")
            while first.send(TWO, TYPE, b"", [bytes(1_000_000)]):
                pass
            loop = asyncio.get_running_loop()
            received, started_at = 0, loop.time()
            while loop.time() - started_at < 2.5:
                received += len(await loop.sock_recv(bulk.sock, 50_000))
                await asyncio.sleep(0.02)  # the reader's pace, not a wait for anything
            assert first.connected(TWO)
            assert one.events == [("connected", TWO)]
            # Now it stops altogether.
            await until(lambda: one.events[-1] == ("lost", TWO, False))
            echo.cancel()
            await asyncio.gather(echo, return_exceptions=True)
            for peer in peers.values():
                peer.close()

    run(test())


async def answer_pings(peer: FakePeer) -> None:
    decoder = fastlog.FrameDecoder(1000)
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(peer.sock, 4096):
        for type, _, _ in decoder.feed(data):
            if type == connection_module.FRAME_PING:
                await peer.send(fastlog.encode_frame(connection_module.FRAME_PONG, b""))


def test_an_attempt_that_hangs_is_given_up_when_the_peer_calls(run: Run, ports: Iterator[list[int]]) -> None:
    """A healed partition: our SYN was lost, and the kernel would repeat it a second later."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            loop = asyncio.get_running_loop()
            with socket.socket() as full, contextlib.ExitStack() as crowd:
                full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                full.bind(("127.0.0.1", cluster.port(TWO)))
                full.listen(0)
                for _ in range(3):  # a full backlog drops what comes
                    waiting = crowd.enter_context(socket.socket())
                    waiting.setblocking(False)
                    waiting.connect_ex(("127.0.0.1", cluster.port(TWO)))
                first = await cluster.start(ONE, Driver(), with_peers=(TWO,))
                attempts = first._links[TWO].attempts
                await until(
                    lambda: (
                        len(attempts) == 2
                        and all((attempt.when() or 0) < loop.time() + 1.8 for attempt in attempts.values())
                    ),
                    "both dials hang",
                )
            dialled_at = loop.time()
            second = await cluster.start(TWO, Driver(), with_peers=(ONE,))
            await until(lambda: first.connected(TWO) and second.connected(ONE))
            assert loop.time() - dialled_at < 0.4

    run(test())


def test_nodes_talk_over_ipv6(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            cluster.peers = [Peer(peer.id, "::1", peer.port) for peer in cluster.peers]
            try:
                first = await cluster.start(ONE, Driver(), with_peers=(TWO,), listen=("::1", cluster.port(ONE)))
            except OSError:
                pytest.skip("no IPv6 here")
            second = await cluster.start(TWO, Driver(), with_peers=(ONE,), listen=("::1", cluster.port(TWO)))
            await until(lambda: first.connected(TWO) and second.connected(ONE))

    run(test())


def test_nodes_dial_from_the_address_they_listen_on(run: Run, ports: Iterator[list[int]]) -> None:
    """So that a firewall rule between two addresses is a partition between two nodes."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            with socket.create_server(("127.0.0.1", cluster.port(TWO))) as server:
                server.setblocking(False)
                await cluster.start(ONE, Driver(), with_peers=(TWO,), listen=("127.0.0.31", cluster.port(ONE)))
                sock, address = await asyncio.get_running_loop().sock_accept(server)
                sock.close()
                assert address[0] == "127.0.0.31"

    run(test())


def test_a_name_is_looked_up_and_all_its_addresses_tried(run: Run, ports: Iterator[list[int]]) -> None:
    async def test() -> None:
        async with cluster_of(ports) as cluster:
            cluster.peers = [Peer(peer.id, "localhost", peer.port) for peer in cluster.peers]
            await pair(cluster)

    run(test())


def test_a_port_that_leads_back_to_oneself_is_no_peer(run: Run, ports: Iterator[list[int]]) -> None:
    """A node that lists its own address under another id."""

    async def test() -> None:
        async with cluster_of(ports) as cluster:
            cluster.peers[1] = replace(cluster.peers[1], port=cluster.port(ONE))
            first = await cluster.start(ONE, Driver(), with_peers=(TWO,))
            await until(lambda: "node-1 dialled itself" in first.stats(TWO).last_error)
            assert not first.connected(TWO)

    run(test())
