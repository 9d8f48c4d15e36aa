"""A server, a cluster that does as it is bid, and clients that say exactly what they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from smtpraft.config import SmtpSettings
from smtpraft.smtp import SmtpServer
from smtpraft.spool.types import Envelope, MessageId

WAIT_S = 20.0  # for what must come; a shared machine may be slow


class Client:
    """A TCP client: bytes out, bytes in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        """Send `data`."""
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> bytes:
        """Return one reply, all its lines."""
        reply = b""
        async with asyncio.timeout(WAIT_S):
            while True:
                line = await self.reader.readline()
                reply += line
                if line[3:4] != b"-":
                    return reply

    async def ask(self, *commands: bytes) -> int:
        """Send each command when the one before is answered; return the last code."""
        code = 0
        for command in commands:
            await self.say(command + b"\r\n")
            code = int((await self.hear())[:3])
        return code

    async def hear_all(self) -> bytes:
        """Return everything up to the end of the connection; b"" also if it was reset."""
        heard = b""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    data = await self.reader.read(65536)
                except ConnectionResetError:
                    return heard
                if not data:
                    return heard
                heard += data

    async def greet(self) -> None:
        """Greeting and EHLO."""
        assert (await self.hear()).startswith(b"220 ")
        assert await self.ask(b"EHLO client.example") == 250

    async def begin_data(self) -> None:
        """Everything up to the 354."""
        await self.greet()
        assert await self.ask(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA") == 354

    def vanish(self, *, reset: bool) -> None:
        """Close, or reset as a machine that was switched off and on does."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort() if reset else self.writer.close()


class Room:
    """One server and what its cluster was given."""

    def __init__(self, **settings: Any) -> None:
        self.settings = SmtpSettings(listen=["127.0.0.1:0"], hostname="mx.test", **settings)
        self.accepted: list[tuple[Envelope, bytes]] = []
        self.answer: Callable[[], str | BaseException] = lambda: f"ID{len(self.accepted)}"
        self.is_ready = True
        self.handed_over = 0
        self._commits: set[asyncio.Task[None]] = set()
        self._clients: list[Client] = []
        self._gate = asyncio.Event()
        self._gate.set()
        self.server = SmtpServer(self.settings, submit=self.submit, ready=lambda: self.is_ready)

    def shut_gate(self) -> None:
        """Let no commit through from now on."""
        self._gate.clear()

    def open_gate(self) -> None:
        """Let them all through."""
        self._gate.set()

    def submit(
        self,
        envelope: Envelope,
        content: Sequence[bytes],
        *,
        deadline_s: float,
        done: Callable[[MessageId | None, Exception | None], None],
    ) -> None:
        async def commit() -> None:
            await self._gate.wait()
            self.accepted.append((envelope, b"".join(content)))
            answer = self.answer()
            done(None, answer) if isinstance(answer, Exception) else done(MessageId(str(answer)), None)

        self.handed_over += 1
        task = asyncio.get_running_loop().create_task(commit(), name="room-commit")
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)

    async def connect(self, limit: int = 1 << 20) -> Client:
        host, port = self.server.addresses[0]
        client = Client(*await asyncio.open_connection(host, port, limit=limit))
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Close the clients and the server."""
        self.open_gate()
        for client in self._clients:
            client.writer.transport.abort()
        await self.server.close()
        await self.until(lambda: self.server.statistics.connections == 0)
        for client in self._clients:
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what must come to be."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 -- there is no event to wait for
                await asyncio.sleep(0.002)

    def contents(self) -> list[bytes]:
        """What was accepted, without our `Received:` line."""
        return [content.partition(b"+0000\r\n")[2] for _, content in self.accepted]


class StartRoom(Protocol):
    """The fixture `start_room`."""

    async def __call__(self, **settings: Any) -> Room: ...
