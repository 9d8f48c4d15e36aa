"""A session against a transport that writes down what it is told, and a cluster that does as it is bid: no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from smtpraft.config import SmtpSettings
from smtpraft.smtp.server import SmtpServer
from smtpraft.spool.types import Envelope, MessageId


class FakeTransport(asyncio.Transport):
    """Remembers what was written and asked; delivers nothing."""

    def __init__(self, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer})
        self.writes: list[bytes] = []
        self._reading = True
        self.half_closed = False
        self.closed = False
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        assert not self.half_closed
        self.writes.append(bytes(data))

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        assert self._reading
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._reading
        self._reading = True


class Peer:
    """A client's end of a session, and the cluster behind it."""

    engine = "fast"
    """Of the sessions; the fixture `engine` runs a test once for each."""

    def __init__(self, *, ready: bool = True, host: str = "127.0.0.1", **settings: Any) -> None:
        self.settings = SmtpSettings(hostname="mx.test", engine=self.engine, **settings)
        self.accepted: list[tuple[Envelope, bytes]] = []
        self.answer: Callable[[], Any] = lambda: MessageId(f"ID{len(self.accepted)}")
        self.gate: asyncio.Future[None] | None = None
        self.ready = ready
        self.full = False
        self.server = SmtpServer(
            self.settings,
            submit=self.submit,
            ready=lambda: self.ready,
            full=lambda: self.full,
            clock=lambda: 0.0,
            instance="t",
        )
        self.loop = asyncio.get_running_loop()
        self.transport = FakeTransport((host, 1025))
        self.session = self.server.session(self.loop)
        self.session.connection_made(self.transport)

    def submit(
        self,
        envelope: Envelope,
        content: Sequence[bytes],
        *,
        deadline_s: float,
        done: Callable[[MessageId | None, Exception | None], None],
    ) -> None:
        assert deadline_s == self.settings.commit_timeout_s

        def commit(_: object = None) -> None:
            self.accepted.append((envelope, b"".join(content)))
            answer = self.answer()
            if isinstance(answer, Exception):
                done(None, answer)
            else:
                assert isinstance(answer, str)
                done(MessageId(answer), None)

        if self.gate is None:
            commit()
        else:
            self.gate.add_done_callback(commit)

    def hear(self, data: bytes) -> None:
        """The transport has received `data`."""
        if isinstance(self.session, asyncio.BufferedProtocol):
            while data:
                room = self.session.get_buffer(-1)
                part = data[: len(room)]
                room[: len(part)] = part
                self.session.buffer_updated(len(part))
                data = data[len(part) :]
        else:
            self.session.data_received(data)

    async def settle(self) -> None:
        """Let the session go on until it waits for its client, or for the cluster."""
        for _ in range(10_000):
            await asyncio.sleep(0)
            if self.session.waits or self.session.over:
                return
            if self.gate is not None and not self.gate.done() and not self.transport.is_reading():
                return
        raise AssertionError("the session neither reads nor ends")

    async def say(self, data: bytes) -> bytes:
        """Send `data`; return what is answered."""
        await self.settle()
        heard = len(self.transport.writes)
        self.hear(data)
        await self.settle()
        return b"".join(self.transport.writes[heard:])

    async def wait_committing(self) -> None:
        """Let the session come to the cluster's gate."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, in real time, for what a timer of the session brings about."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 -- there is no event to wait for
                await asyncio.sleep(0.001)

    async def finish(self) -> None:
        """The client hangs up."""
        if not self.transport.closed or not self.session.over:
            self.session.eof_received()
            await self.settle()
        self.session.connection_lost(None)
        assert self.server.statistics.connections == 0
        assert self.server.memory.used_bytes == 0

    @property
    def output(self) -> bytes:
        return b"".join(self.transport.writes)


def codes(output: bytes) -> list[int]:
    assert output == b"" or output.endswith(b"\r\n")
    return [int(line[:3]) for line in output.split(b"\r\n")[:-1] if line[3:4] == b" "]


MAIL = b"MAIL FROM:<a@b>\r\n"
RCPT = b"RCPT TO:<c@d>\r\n"
