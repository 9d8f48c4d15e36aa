"""Nodes that talk over real sockets, and a peer that says whatever a test wants it to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.handshake import Acceptor, Channel, Dialler, Identity
from smtpraft.cluster.transport import Transport
from smtpraft.types import NodeId

ONE, TWO, THREE = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
CLUSTER = b"a cluster's id.."
SECRET = b"a secret of 24 bytes ..."
PATIENCE_S = 20.0  # for what must happen; the machine may be busy
TYPE = 3  # any type that is not the transport's own

Run = Callable[[Coroutine[Any, Any, None]], None]


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
