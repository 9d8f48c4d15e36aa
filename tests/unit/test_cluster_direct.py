"""Writing to a socket at once: order, what the kernel does not take, and connections that are over."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import uvloop

from smtpraft.cluster import direct

LOOPS: Final = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
BIG: Final = bytes(range(256)) * 64 * 1024  # 16 MiB, more than any kernel takes at once


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """Yield a transport and the socket at its other end, which nobody reads."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    try:
        yield transport, theirs
    finally:
        transport.abort()
        theirs.close()


def run(loop: str, test: object) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test)  # type: ignore[arg-type]


async def received(sock: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(20):
        while len(data) < size:
            data += await loop.sock_recv(sock, 1 << 20)
    return bytes(data)


@pytest.mark.parametrize("loop", LOOPS)
def test_it_leaves_at_once(loop: str) -> None:
    async def test() -> None:
        async with pair() as (transport, other):
            fd = direct.descriptor(transport)
            assert fd >= 0
            direct.write(transport, fd, b"one ")
            assert other.recv(100) == b"one "
            direct.write_parts(transport, fd, [b"two ", memoryview(b"three")], 9)
            assert other.recv(100) == b"two three"

    run(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_what_the_kernel_does_not_take_follows_in_order(loop: str) -> None:
    async def test() -> None:
        async with pair() as (transport, other):
            fd = direct.descriptor(transport)
            direct.write_parts(transport, fd, [b"<", BIG, b">"], len(BIG) + 2)
            assert transport.get_write_buffer_size()
            direct.write(transport, fd, b"after")
            direct.write(transport, fd, BIG)
            assert await received(other, 2 * len(BIG) + 7) == b"<" + BIG + b">after" + BIG

    run(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_written_to_the_descriptor_of_a_transport_that_closes(loop: str) -> None:
    """It may be another connection's by then."""

    async def test() -> None:
        async with pair() as (transport, _):
            fd = direct.descriptor(transport)
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            transport.abort()
            await asyncio.sleep(0.01)
            os.dup2(writing, fd)
            try:
                direct.write(transport, fd, b"250 for somebody else")
                direct.write_parts(transport, fd, [b"250 ", b"too"], 7)
                with pytest.raises(BlockingIOError):
                    os.read(reading, 100)
            finally:
                for each in (reading, writing, fd):
                    os.close(each)

    run(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_broken_connection_is_the_transports_to_find_out(loop: str) -> None:
    async def test() -> None:
        lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        class Told(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                lost.set_result(exc)

        ours, theirs = socket.socketpair()
        transport, _ = await asyncio.get_running_loop().create_connection(Told, sock=ours)
        fd = direct.descriptor(transport)
        theirs.close()
        direct.write(transport, fd, b"x")
        async with asyncio.timeout(10):
            await lost

    run(loop, test())


def test_without_a_socket_the_transport_writes() -> None:
    class Plain(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.written = b""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written += data

        def get_write_buffer_size(self) -> int:
            return 0

        def is_closing(self) -> bool:
            return False

    transport = Plain()
    fd = direct.descriptor(transport)
    assert fd == -1
    direct.write(transport, fd, b"a")
    direct.write_parts(transport, fd, [b"b", b"c"], 2)
    assert transport.written == b"abc"
