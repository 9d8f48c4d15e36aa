"""One SMTP session, step by step, for what a well-behaved client does not do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import Final, Self

from smtpraft.cli.demo.book import ID_FIELD, Outcome
from smtpraft.cli.demo.nodes import DemoNode

from .journal import Journal

REPLY_S: Final = 20.0  # a real client waits minutes: a session that makes a test wait so long hangs
RECIPIENT: Final = "somebody@demo.example"


class Talk:
    """`async with Talk(node, journal) as talk`: greeting and EHLO are over. `reply` says "" when the server left."""

    def __init__(self, node: DemoNode, journal: Journal) -> None:
        self._node = node
        self._journal = journal
        self._messages = 0
        self._number = journal.new_sender(node.id)
        self._sent_at = 0.0
        self.attempt = ""
        """The message under way, or the last one."""

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._node.smtp_port)
        await self.reply()
        await self.say("EHLO client.demo.example")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def say(self, line: str) -> str:
        """Send a command; return the last line of the reply."""
        self.write(line.encode() + b"\r\n")
        return await self.reply()

    async def reply(self, timeout_s: float = REPLY_S) -> str:
        """Return the last line of the next reply, "" if the connection ended instead.

        Raises:
            TimeoutError: neither happened: it hangs.
        """
        async with asyncio.timeout(timeout_s):
            try:
                while True:
                    line = await self.reader.readuntil(b"\r\n")
                    if line[3:4] != b"-":
                        return line.decode().rstrip()
            except (asyncio.IncompleteReadError, ConnectionError):
                return ""

    async def begin(self, text: bytes = b"Subject: by hand\r\n\r\nhello\r\n") -> bytes:
        """Go as far as the 354; return the content, with its id. It is in the journal from now on."""
        content = self.open(text)
        for line in (f"MAIL FROM:<{self._number}@demo.example>", f"RCPT TO:<{RECIPIENT}>", "DATA"):
            reply = await self.say(line)
            assert reply.startswith(("2", "3")), f"{line}: {reply!r}"
        return content

    def open(self, text: bytes = b"Subject: by hand\r\n\r\nhello\r\n") -> bytes:
        """Note that a message is about to be sent; return its content."""
        self._messages += 1
        self.attempt = f"{self._messages}-{self._number}-1"
        content = ID_FIELD + self.attempt.encode() + b"\r\n" + text
        self._journal.open(self.attempt, content, (RECIPIENT,))
        return content

    async def end(self, timeout_s: float = REPLY_S) -> str:
        """Send the final dot; return the reply, which is noted. `text` must have ended with CRLF."""
        self.write(b".\r\n")
        self._sent_at = time.monotonic()
        return await self.answered(timeout_s)

    async def answered(self, timeout_s: float = REPLY_S) -> str:
        """Return the reply to the final dot, noted."""
        reply = await self.reply(timeout_s)
        self.close(outcome_of(reply))
        return reply

    def close(self, outcome: Outcome) -> None:
        """Note how the message ended."""
        self._journal.close(self.attempt, outcome, self._sent_at)

    async def send(self, text: bytes = b"Subject: by hand\r\n\r\nhello\r\n") -> str:
        """Send one message; return the reply to its final dot."""
        self.write(await self.begin(text))
        return await self.end()

    def hang_up(self, *, reset: bool = False) -> None:
        """Close now: with a FIN after all that was written, or with a RST instead of it."""
        if reset:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.writer.close()


def outcome_of(reply: str) -> Outcome:
    """Return what a reply to the final dot means; "" is a connection that was closed."""
    if not reply:
        return Outcome.UNKNOWN
    return Outcome.ACKNOWLEDGED if reply.startswith("2") else Outcome.REFUSED
