"""An SMTP client that writes down every reply: the demo's customers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from smtpraft.cli.demo.book import ID_FIELD, Book, Outcome

REPLY_TIMEOUT_S: Final = 60.0  # a real client waits ten minutes (RFC 5321 §4.5.3.2.6); a demo has two
CONNECT_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.2
RECONNECT_S: Final = 0.05
TRICKLE_S: Final = 0.25


class Supply:
    """Messages to send: `count` of them, and more for as long as `wants_more`; at full speed up to `released`."""

    def __init__(self, messages: Iterator[bytes], count: int) -> None:
        self._messages = messages
        self._count = count
        self._again: deque[tuple[int, bytes]] = deque()
        self._under_way = 0
        self.released = count
        self.taken = 0
        self.wants_more = False

    @property
    def pace_s(self) -> float:
        """How long a session waits before it takes a message."""
        return TRICKLE_S if self.taken >= self.released and not self._again else 0.0

    def take(self) -> tuple[int, bytes] | None:
        """Return the next message and its number, None when there is nothing to send (now)."""
        if self._again:
            self._under_way += 1
            return self._again.popleft()
        if self.taken >= self._count and not self.wants_more:
            return None
        self.taken += 1
        self._under_way += 1
        return self.taken, next(self._messages)

    def put_back(self, number: int, content: bytes) -> None:
        """Send this one again, as a new attempt."""
        self._under_way -= 1
        self._again.append((number, content))

    def done(self) -> None:
        """One message has its 250, or was refused for good."""
        self._under_way -= 1

    @property
    def finished(self) -> bool:
        """Is everything sent that has to be?"""
        return not self._again and not self._under_way and self.taken >= self._count and not self.wants_more


class _Refused(Exception):
    def __init__(self, reply: str) -> None:
        super().__init__(reply)
        self.reply = reply


class Sender:
    """One session at a time with one node; when it breaks, a session with the next node."""

    def __init__(
        self,
        number: int,
        ports: Sequence[int],
        supply: Supply,
        book: Book,
        trouble: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """`trouble` hears of every refusal and of every session that broke."""
        self._number = number
        self._ports = ports
        self._choice = number
        self._supply = supply
        self._book = book
        self._trouble = trouble
        self._tries = 0
        self._waits_since: float | None = None

    async def run(self) -> None:
        """Send until everything is sent."""
        while not self._supply.finished:
            try:
                await self._session(self._ports[self._choice % len(self._ports)])
            except (OSError, EOFError, TimeoutError, _Refused) as error:
                self._trouble(error)
                self._choice += 1
                await asyncio.sleep(RECONNECT_S)

    async def _session(self, port: int) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await self._expect("2")
            await self._command("EHLO client.demo.example", "2")
            while not self._supply.finished:
                if pace_s := self._supply.pace_s:
                    await asyncio.sleep(pace_s)
                item = self._supply.take()
                if item is None:
                    await asyncio.sleep(RETRY_S)  # others still wait for replies; one of theirs may come back to us
                else:
                    await self._send(*item)
            await self._command("QUIT", "2")
        finally:
            self._writer.close()

    async def _send(self, number: int, message: bytes) -> None:
        self._tries += 1
        attempt_id = f"{number}-{self._number}-{self._tries}"
        content = ID_FIELD + attempt_id.encode() + b"\r\n" + message
        recipients = tuple(f"user{number % 7 + extra}@demo.example" for extra in range(1 + (number % 5 == 0)))
        self._book.open(attempt_id, content, recipients)
        outcome = Outcome.BROKEN_OFF
        try:
            body = "" if content.isascii() else " BODY=8BITMIME"
            commands = [f"MAIL FROM:<sender{self._number}@demo.example>{body}"]
            commands += [f"RCPT TO:<{recipient}>" for recipient in recipients]
            self._writer.write("".join(f"{command}\r\n" for command in [*commands, "DATA"]).encode())
            replies = [await self._reply() for _ in range(len(commands) + 1)]
            refusals = [reply for reply in replies if not reply.startswith(("2", "3"))]
            if refusals and replies[-1].startswith("3"):
                raise EOFError("some were refused, and it waits for content: only hanging up says no")
            if refusals:
                raise _Refused(refusals[0])
            outcome = Outcome.UNKNOWN
            stuffed = content.replace(b"\r\n.", b"\r\n..")
            self._writer.write(stuffed + b".\r\n")
            await self._writer.drain()
            sent_at = time.monotonic()
            reply = await self._reply()
            outcome = Outcome.ACKNOWLEDGED if reply.startswith("2") else Outcome.REFUSED
            self._book.close(attempt_id, outcome, sent_at)
            if outcome is Outcome.REFUSED:
                raise _Refused(reply)
            self._supply.done()
        except BaseException as error:
            if self._book.attempts[attempt_id].outcome is Outcome.OPEN:
                self._book.close(attempt_id, Outcome.REFUSED if isinstance(error, _Refused) else outcome)
            if isinstance(error, _Refused):
                await self._refused(error, number, message)
            else:
                self._supply.put_back(number, message)
                raise

    async def _refused(self, error: _Refused, number: int, message: bytes) -> None:
        self._book.replies_refusing[error.reply] += 1
        if error.reply.startswith("5"):
            self._supply.done()
        else:
            self._supply.put_back(number, message)
        if error.reply.startswith("421"):
            raise error
        self._trouble(error)
        await asyncio.sleep(RETRY_S)
        await self._command("RSET", "2")

    async def _command(self, line: str, expected: str) -> None:
        self._writer.write(f"{line}\r\n".encode())
        await self._expect(expected)

    async def _expect(self, expected: str) -> None:
        reply = await self._reply()
        if not reply.startswith(expected):
            raise _Refused(reply)

    async def _reply(self) -> str:
        """Return the last line of a reply. A pause goes on over a lost connection, until somebody says something."""
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while True:
                line = await self._reader.readuntil(b"\r\n")
                if line[3:4] != b"-":
                    break
        self._book.longest_pause_s = max(self._book.longest_pause_s, time.monotonic() - self._waits_since)
        self._waits_since = None
        return line.decode("utf-8", "replace").rstrip()
