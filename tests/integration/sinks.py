"""Servers that mail goes to in tests: SMTP and LMTP sinks that answer as they are told and keep what they got."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

OK: Final = ""
"""The sink's own answer."""

HANG: Final = "hang"
DISCONNECT: Final = "disconnect"
"""Close without an answer."""

EXTENSIONS: Final = ("PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")

Rule = Callable[[str, str], str]
"""(stage, what was said) -> a reply, `OK`, `HANG` or `DISCONNECT`; several replies are joined by CRLF.

Stages: connect, hello (EHLO, LHLO), helo, mail, rcpt, data, text (the first bytes of it), dot (once for each recipient
in LMTP, with the recipient), rset, quit.
"""


@dataclass(slots=True)
class Received:
    """One message that the sink took responsibility for."""

    sender: str
    recipients: list[str]
    content: bytes
    """Without the stuffed dots."""
    mail_parameters: str
    session: int


@dataclass(slots=True)
class Session:
    """One connection, byte for byte."""

    number: int
    got: bytearray = field(default_factory=bytearray)
    commands: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Sink:
    """`async with Sink(...) as sink`: a server on a free loopback port, or on a Unix socket at `path`."""

    def __init__(
        self,
        rule: Rule = lambda stage, said: OK,
        *,
        lmtp: bool = False,
        extensions: tuple[str, ...] = EXTENSIONS,
        path: str = "",
        port: int = 0,
        delay_s: dict[str, float] | None = None,
        read_pause_s: float = 0.0,
        receive_bytes: int = 0,
    ) -> None:
        self.rule = rule
        self.extensions = extensions
        self.delay_s = delay_s or {}
        self.read_pause_s = read_pause_s
        self.receive_bytes = receive_bytes
        """How much the kernel may hold for us, 0: as it likes. It counts before the first `read_pause_s`."""
        self.received: list[Received] = []
        self.sessions: list[Session] = []
        self.open_sessions = 0
        self.most_sessions = 0
        self.port = port
        self._lmtp = lmtp
        self._path = path
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        if self._path:
            return f"lmtp+unix://{self._path}"
        return f"{'lmtp' if self._lmtp else 'smtp'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        if self._path:
            self._server: asyncio.Server = await asyncio.start_unix_server(self._serve, self._path, limit=1 << 30)
        else:
            # The protocol is named so that asyncio switches Nagle's algorithm off in what is accepted here.
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            if self.receive_bytes:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
            self._server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 30)
            self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_received(self, count: int, timeout_s: float = 10.0) -> list[Received]:
        """Return the messages once there are `count`."""
        await self.wait(lambda: len(self.received) >= count, timeout_s)
        return self.received

    async def wait(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return when `condition` is true; it is asked whenever something has happened here."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        session = Session(len(self.sessions))
        self.sessions.append(session)
        self.open_sessions += 1
        self.most_sessions = max(self.most_sessions, self.open_sessions)
        try:
            await _Conversation(self, session, reader, writer, lmtp=self._lmtp).run()
        except (_Over, asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            session.got += reader._buffer  # type: ignore[attr-defined]  # what arrived and was not a whole line
            self._tasks.discard(task)
            self.open_sessions -= 1
            session.over.set()
            self.changed()
            writer.close()

    def changed(self) -> None:
        self._changed.set()


class _Over(Exception):
    """This conversation ends here."""


class _Conversation:
    def __init__(
        self, sink: Sink, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lmtp: bool
    ) -> None:
        self._sink = sink
        self._session = session
        self._reader = reader
        self._writer = writer
        self._lmtp = lmtp
        self._sender: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []

    async def run(self) -> None:
        await self._answer("connect", "", "220 sink ESMTP")
        while True:
            line = await self._reader.readuntil(b"\n")
            self._session.got += line
            command = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
            self._session.commands.append(command)
            await self._command(command)
            self._sink.changed()

    async def _command(self, command: str) -> None:
        verb, _, rest = command.partition(" ")
        match verb.upper():
            case "EHLO" | "LHLO":
                lines = ["sink", *self._sink.extensions]
                reply = "\r\n".join([*(f"250-{text}" for text in lines[:-1]), f"250 {lines[-1]}"])
                await self._answer("hello", rest, reply)
            case "HELO":
                await self._answer("helo", rest, "250 sink")
            case "MAIL":
                if self._sender is not None:
                    await self._write("503 5.5.1 nested MAIL")
                    return
                address, _, parameters = rest.removeprefix("FROM:<").partition(">")
                if await self._answer("mail", address, "250 2.1.0 Ok"):
                    self._sender, self._parameters, self._recipients = address, parameters.strip(), []
            case "RCPT":
                if self._sender is None:
                    await self._write("503 5.5.1 need MAIL")
                    return
                address = rest.removeprefix("TO:<").removesuffix(">")
                if await self._answer("rcpt", address, "250 2.1.5 Ok"):
                    self._recipients.append(address)
            case "DATA":
                await self._data()
            case "RSET":
                self._sender, self._recipients = None, []
                await self._answer("rset", "", "250 2.0.0 Ok")
            case "QUIT":
                await self._answer("quit", "", "221 2.0.0 Bye")
                raise _Over
            case _:
                await self._write("500 5.5.2 what?")

    async def _data(self) -> None:
        if self._sender is None or not self._recipients:
            await self._write("554 5.5.1 no valid recipients")
            return
        if not await self._answer("data", "", "354 go ahead"):
            return
        await self._answer("text", "", "")
        if self._sink.read_pause_s:
            await asyncio.sleep(self._sink.read_pause_s)
        text = bytearray()
        while not (text.endswith(b"\r\n.\r\n") or text == b".\r\n"):
            line = await self._reader.readuntil(b"\n")
            self._session.got += line
            text += line
        content = bytes(text[:-3]).replace(b"\r\n..", b"\r\n.")
        content = content[1:] if content.startswith(b"..") else content
        sender, recipients, self._sender = self._sender, self._recipients, None
        assert sender is not None
        if not self._lmtp:
            await self._answer("dot", "", "250 2.0.0 Ok: queued", partial(self._take, sender, recipients, content))
            return
        for recipient in recipients:
            await self._answer("dot", recipient, "250 2.0.0 Ok", partial(self._take, sender, [recipient], content))

    def _take(self, sender: str, recipients: list[str], content: bytes) -> None:
        self._sink.received.append(Received(sender, recipients, content, self._parameters, self._session.number))
        self._sink.changed()

    async def _answer(self, stage: str, said: str, reply: str, take: Callable[[], None] | None = None) -> bool:
        """Say what the rule says, or `reply`; return whether that was friendly. `take` is called before it then."""
        if delay_s := self._sink.delay_s.get(stage, 0.0):
            await asyncio.sleep(delay_s)
        told = self._sink.rule(stage, said)
        if told == DISCONNECT:
            raise _Over
        if told == HANG:
            await asyncio.sleep(3600)
        friendly = told == OK or told[0] in "23"
        if friendly and take is not None:
            take()
        await self._write(told or reply)
        return friendly

    async def _write(self, reply: str) -> None:
        if reply:
            self._writer.write(reply.encode() + b"\r\n")
            await self._writer.drain()
