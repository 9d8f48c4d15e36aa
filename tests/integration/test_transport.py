"""Nodes that talk over real sockets: on asyncio and on uvloop, with peers that die, stall, lie and babble."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvloop

from smtpraft import fastlog
from smtpraft.cluster import connection as connection_module
from smtpraft.cluster import transport as transport_module
from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.handshake import Acceptor, Channel, Dialler, Identity
from smtpraft.cluster.transport import Transport
from smtpraft.fastlog import CorruptFrame
from smtpraft.types import NodeId

ONE, TWO, THREE = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
CLUSTER = b"a cluster's id.."
SECRET = b"a secret of 24 bytes ..."
PATIENCE_S = 20.0  # for what must happen; the machine may be busy
TYPE = 3  # any type that is not the transport's own

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def runner(test: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            failures: list[dict[str, Any]] = []
            loop.get_loop().set_exception_handler(lambda _, context: failures.append(context))
            loop.run(test)
            left = [task.get_name() for task in asyncio.all_tasks(loop.get_loop())]
        assert failures == []
        assert left == []

    return runner


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Ports that are free, and not of the ephemeral range, so that nobody's dialling takes them meanwhile."""
    found: list[int] = []
    start = 10_000 + os.getpid() % 2000 * 10
    for port in range(start, start + 5000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == 3:
            break
    return iter([found])


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition, not for a time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - some conditions are counters
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"never happened: {what or condition.__name__}")


class Driver:
    """A Receiver that remembers."""

    def __init__(self) -> None:
        self.frames: list[tuple[NodeId, int, bytes, bytes]] = []
        self.events: list[tuple[str, NodeId] | tuple[str, NodeId, bool]] = []
        self.refuse: Exception | None = None
        self.failures: list[Exception] = []

    def frames_received(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.frames += [(peer, *frame) for frame in frames]

    def peer_connected(self, peer: NodeId) -> None:
        self.events.append(("connected", peer))

    def peer_lost(self, peer: NodeId, reset: bool) -> None:
        self.events.append(("lost", peer, reset))


class Cluster:
    """Makes nodes, and ends them."""

    def __init__(self, ports: list[int]) -> None:
        self.peers = [Peer(node, "127.0.0.1", port) for node, port in zip((ONE, TWO, THREE), ports, strict=True)]
        self.open: list[Transport] = []

    def port(self, node: NodeId) -> int:
        return next(peer.port for peer in self.peers if peer.id == node)

    async def start(
        self, node: NodeId, driver: Driver, *, with_peers: tuple[NodeId, ...] | None = None, **options: Any
    ) -> Transport:
        others = [peer for peer in self.peers if peer.id != node and (with_peers is None or peer.id in with_peers)]
        settings: dict[str, Any] = {
            "node_id": node,
            "cluster_id": CLUSTER,
            "secret": SECRET,
            "listen": ("127.0.0.1", self.port(node)),
            "peers": others,
            "receiver": driver,
            "incarnation": 1,
            "on_failure": driver.failures.append,
        }
        transport = Transport(**(settings | options))
        await transport.start()
        self.open.append(transport)
        return transport

    async def stop(self, transport: Transport) -> None:
        self.open.remove(transport)
        await transport.close()


@asynccontextmanager
async def cluster_of(ports: Iterator[list[int]]) -> AsyncIterator[Cluster]:
    cluster = Cluster(next(ports))
    try:
        yield cluster
    finally:
        for transport in cluster.open:
            await transport.close()


async def pair(cluster: Cluster, **options: Any) -> tuple[Transport, Driver, Transport, Driver]:
    """Two nodes, connected both ways."""
    one, two = Driver(), Driver()
    first = await cluster.start(ONE, one, with_peers=(TWO,), **options)
    second = await cluster.start(TWO, two, with_peers=(ONE,), **options)
    await until(lambda: first.connected(TWO) and second.connected(ONE), "connected")
    return first, one, second, two


class FakePeer:
    """The other end of one connection, by hand: speaks the handshake, then whatever the test wants."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    async def dial(
        cls, port: int, identity: Identity, wanted: NodeId = ONE, channel: Channel = Channel.BULK
    ) -> FakePeer:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        peer = cls(sock)
        await peer.shake(Dialler(identity, wanted, channel))
        return peer

    async def shake(self, end: Dialler | Acceptor) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.sock, end.start())
        async with asyncio.timeout(PATIENCE_S):
            while end.established is None:
                data = await loop.sock_recv(self.sock, 4096)
                if not data:
                    raise ConnectionError("closed during the handshake")
                await loop.sock_sendall(self.sock, end.receive(data))

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def rest(self) -> bytes:
        """Everything until the end of the connection, however it ends."""
        received = b""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                except ConnectionError:
                    return received
                if not data:
                    return received
                received += data

    def close(self) -> None:
        self.sock.close()


@asynccontextmanager
async def listening(port: int, *, receive_buffer_bytes: int | None = None) -> AsyncIterator[socket.socket]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer_bytes is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        server.setblocking(False)
        server.bind(("127.0.0.1", port))
        server.listen()
        yield server


async def accept_both(server: socket.socket, identity: Identity, caller: NodeId = ONE) -> dict[Channel, FakePeer]:
    """Accept the two connections of a node that dials."""
    peers: dict[Channel, FakePeer] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(peers) < 2:
            sock, _ = await asyncio.get_running_loop().sock_accept(server)
            peer, end = FakePeer(sock), Acceptor(identity, {caller: 0})
            await peer.shake(end)
            assert end.established is not None
            peers[end.established.channel] = peer
    return peers


FAKE = Identity(TWO, CLUSTER, 1, SECRET)


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


# --- refusing -------------------------------------------------------------------------------------------------------


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
