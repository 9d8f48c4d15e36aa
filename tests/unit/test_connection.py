"""When a connection counts as dead: by a clock and a transport that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from smtpraft import fastlog
from smtpraft.cluster.connection import FRAME_PING, FRAME_PONG, ROUND_TRIPS_KEPT, Connection
from smtpraft.cluster.handshake import Acceptor, Channel, Dialler, Established, Identity
from smtpraft.types import NodeId

LIMIT_S = 3.0
ONE = Identity(NodeId("node-1"), bytes(16), 1, None)
TWO = Identity(NodeId("node-2"), bytes(16), 1, None)


class Loop:
    """As much of an event loop as a connection needs."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(self.now + delay_s, callback, (), cast("asyncio.AbstractEventLoop", self))

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None: ...


class Wire:
    """A transport: what is written stays in the buffer until `drain`."""

    def __init__(self) -> None:
        self.taken = b""
        self.buffer = b""
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def write(self, data: bytes) -> None:
        self.buffer += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.buffer += b"".join(pieces)

    def drain(self, size: int = 1 << 30) -> bytes:
        self.taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return self.taken

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


class Owner:
    """A transport that only counts."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes, bytes]] = []

    def established(self, connection: Connection, who: Established) -> bool:
        return True

    def frames_received(self, connection: Connection, frames: list[tuple[int, bytes, bytes]]) -> None:
        self.frames += frames

    def lost(self, connection: Connection) -> None: ...

    def told_removed(self, connection: Connection, index: int) -> None:
        raise AssertionError("nobody was removed")

    def failed(self, error: Exception) -> None:
        raise error


class End:
    """One end of a connection, and what it needs."""

    def __init__(self, loop: Loop, handshake: Dialler | Acceptor) -> None:
        self.wire = Wire()
        self.owner = Owner()
        self.connection = Connection(
            self.owner,
            handshake,
            loop=cast("asyncio.AbstractEventLoop", loop),
            frame_bytes_max=1 << 20,
            buffered_bytes_max=1 << 20,
            silence_limit_s=LIMIT_S,
        )
        self.connection.connection_made(cast("asyncio.BaseTransport", self.wire))


def connect(loop: Loop) -> tuple[End, End]:
    dialler, acceptor = End(loop, Dialler(ONE, TWO.node, Channel.BULK)), End(loop, Acceptor(TWO, {ONE.node: 0}))
    while dialler.connection.who is None:
        acceptor.connection.data_received(dialler.wire.drain())
        dialler.connection.data_received(acceptor.wire.drain())
    return dialler, acceptor


def is_dead(end: End) -> bool:
    assert end.wire.aborted == bool(end.connection.failure)
    return end.wire.aborted


def watch(loop: Loop, *ends: End, seconds: float, each: Callable[[], object] = lambda: None) -> None:
    """Let the watch go round every half second."""
    for _ in range(round(seconds * 2)):
        loop.now += 0.5
        for end in ends:
            end.connection.watch(loop.now, was_asleep=False)
        each()


def test_pings_and_pongs_keep_a_connection_alive() -> None:
    loop = Loop()
    dialler, acceptor = connect(loop)

    def talk() -> None:
        acceptor.connection.data_received(dialler.wire.drain())
        dialler.connection.data_received(acceptor.wire.drain())

    watch(loop, dialler, acceptor, seconds=60, each=talk)
    assert not is_dead(dialler)
    assert not is_dead(acceptor)
    assert len(dialler.connection.round_trips_s) == ROUND_TRIPS_KEPT
    assert acceptor.owner.frames == []  # they are nobody else's business


def test_there_is_one_ping_under_way_at_most() -> None:
    loop = Loop()
    dialler, _ = connect(loop)
    watch(loop, dialler, seconds=2.5)
    frames = fastlog.FrameDecoder(1000).feed(dialler.wire.drain())
    assert [frame[0] for frame in frames] == [FRAME_PING]


def test_without_a_pong_it_is_dead_after_the_limit() -> None:
    loop = Loop()
    dialler, _ = connect(loop)
    watch(loop, dialler, seconds=LIMIT_S - 0.5, each=dialler.wire.drain)
    assert not is_dead(dialler)
    watch(loop, dialler, seconds=0.5)
    assert is_dead(dialler)
    assert dialler.connection.failure == "no sign of life for 3.0 s"
    assert not dialler.connection.by_peer
    assert not dialler.connection.send(3, b"", ())


def test_bulk_in_front_of_the_ping_counts_while_it_moves() -> None:
    loop = Loop()
    dialler, _ = connect(loop)
    dialler.wire.drain()
    assert dialler.connection.send(3, b"", [bytes(100_000)])
    watch(loop, dialler, seconds=10, each=lambda: dialler.wire.drain(3000))
    assert not is_dead(dialler)
    watch(loop, dialler, seconds=LIMIT_S + 0.5)
    assert is_dead(dialler)


def test_frames_sent_after_the_ping_prove_nothing() -> None:
    """A kernel takes bytes for a dead peer too, for as long as it has room for them."""
    loop = Loop()
    dialler, _ = connect(loop)

    def send() -> None:
        dialler.connection.send(3, b"", [bytes(100)])
        dialler.wire.drain()

    watch(loop, dialler, seconds=LIMIT_S + 0.5, each=send)
    assert is_dead(dialler)


def test_our_own_sleep_is_not_the_peers_silence() -> None:
    loop = Loop()
    dialler, acceptor = connect(loop)
    loop.now += 3600
    for end in (dialler, acceptor):
        end.connection.watch(loop.now, was_asleep=True)
        assert not is_dead(end)
    watch(loop, dialler, seconds=LIMIT_S - 0.5)
    assert not is_dead(dialler)
    watch(loop, dialler, seconds=0.5)
    assert is_dead(dialler)


def test_the_receiving_end_waits_longer() -> None:
    """The sender knows better: it sees what is acknowledged."""
    loop = Loop()
    _, acceptor = connect(loop)
    watch(loop, acceptor, seconds=3 * LIMIT_S - 0.5)
    assert not is_dead(acceptor)
    watch(loop, acceptor, seconds=0.5)
    assert is_dead(acceptor)


def test_a_flood_of_pings_fills_no_buffer() -> None:
    loop = Loop()
    _, acceptor = connect(loop)
    acceptor.wire.drain()
    acceptor.connection.data_received(fastlog.encode_frame(FRAME_PING, b"") * 100_000)
    assert len(acceptor.wire.buffer) < 70_000
    assert not is_dead(acceptor)


def test_a_pong_that_nobody_asked_for_is_garbage() -> None:
    loop = Loop()
    dialler, _ = connect(loop)
    dialler.connection.data_received(fastlog.encode_frame(FRAME_PONG, b""))
    assert "out of place" in dialler.connection.failure
