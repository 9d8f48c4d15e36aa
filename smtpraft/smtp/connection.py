"""One SMTP connection below its commands: bytes in and out, time limits, the beginning and the end.

It stands in for the stream reader and the timers of aiosmtpd's `SMTP`, which do one write per reply line, one timer per
command, and cancel whatever runs when the client hangs up.

- Replies are collected and leave in one write, when all that the client has said is answered (RFC 2920 §3.2).
- Nobody cancels a session when its client leaves: a message that was handed over is waited for, and its result logged.
- While a session is busy its client is not read from; what it says meanwhile waits in the kernel.
- No timer is set per command: the server looks at every session now and then.
- After a last reply the connection is half closed and read on for a moment; a close with unread input would be a reset,
  and a reset makes the client's kernel throw our reply away.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from smtpraft.config import SmtpSettings
from smtpraft.smtp.memory import MemoryBudget
from smtpraft.smtp.policy import IpAddress, address_literal
from smtpraft.smtp.scan import ContentReader
from smtpraft.smtp.statistics import SmtpStatistics

if TYPE_CHECKING:
    from smtpraft.smtp.handler import MailHandler

log = logging.getLogger(__name__)

STRESS_TIMEOUT_S: Final = 10.0  # Postfix: smtpd_timeout under stress; for clients that are silent while slots run out
DATA_GRACE_S: Final = 600.0
DATA_BYTES_PER_S_MIN: Final = 100  # over a whole DATA, once the grace is over; Postfix has 500 under stress
MEMORY_WAIT_S: Final = 10.0  # RFC 5321 §4.5.3.2.4: a client gives 354 two minutes
LINGER_S: Final = 2.0
CLOSE_S: Final = 10.0  # for a client that does not take what we have written


class SessionOver(Exception):
    """Raised in a session to end it: with this last reply, or, if empty, without a word."""

    def __init__(self, reply: str = "", *, reason: str = "") -> None:
        super().__init__(reply, reason)
        self.reply = reply
        self.reason = reason


class Client(Session):
    """aiosmtpd's Session, with what policy knows about the client."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: IpAddress | None, may_relay: bool) -> None:
        super().__init__(loop)
        self.client_host = address_literal(address)
        """`192.0.2.1` or `IPv6:2001:db8::1`."""
        self.may_relay = may_relay


class Transaction(Envelope):
    """aiosmtpd's Envelope. `mail_from` is None before MAIL and "" for the null reverse-path."""

    def __init__(self) -> None:
        super().__init__()
        self.size_declared_bytes = 0
        self.body_8bitmime = False
        self.recipients_seen: set[tuple[str, str]] = set()
        self.recipients_refused = False
        self.content_blocks: list[bytes] = []
        """Set before the DATA hook is called; the hook may empty it."""
        self.content_ascii = True
        self.handed_over = False
        """May the message be committed? Then nothing may be said but what the cluster says."""
        self.size_bytes = 0


class AnySession(Protocol):
    """What the server needs of a session, whatever engine it is of."""

    loop: asyncio.AbstractEventLoop

    def drain(self) -> None:
        """Say 421 now if the session is idle, or as soon as the message under way is answered."""

    def abort(self) -> None:
        """Cut the connection. What was handed over goes on and is waited for."""

    def abandon(self) -> None:
        """Cut the connection and wait for nothing: the server closes."""

    def check_time(self, now: float, stressed: bool) -> None:
        """Act if the client has taken too long."""


class Host(Protocol):
    """What a session needs of the server it belongs to."""

    settings: SmtpSettings
    statistics: SmtpStatistics
    memory: MemoryBudget
    draining: bool
    handler: MailHandler
    hooks: dict[str, Any]
    greeting: bytes
    ehlo_reply: bytes
    helo_reply: bytes
    buffer: memoryview
    """What sessions of the fast engine receive commands into, one after the other."""

    def admit(self, session: AnySession, peer: Any) -> Client | str:
        """Take the connection in, or return the reply that turns it away."""

    def forget(self, session: AnySession) -> None:
        """The session is over and its connection closed."""


class Connection(SMTP):
    """aiosmtpd's `SMTP` with its Session, Envelope and hooks, and our own way of moving bytes.

    Created by the listener for each connection; lives until both its task and its transport have ended.
    """

    session: Client
    envelope: Transaction
    transport: asyncio.Transport | None
    listener = ""
    """Which of `smtp.listen` the client came to."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        # Not super().__init__: it inspects every member of the handler and of itself, for each connection.
        self.loop = loop
        self.hostname = host.settings.hostname
        self.event_handler = host.handler
        self.enable_SMTPUTF8 = True
        self.transport = None
        self._handle_hooks = host.hooks
        self._host = host
        self._settings = host.settings
        self._statistics = host.statistics
        self._received = b""
        self._replies: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._eof = False
        self._lost = False
        self._closing = False
        self._timed_out = False
        self._waiting_since = loop.time()
        self._wait_max_s = host.settings.command_timeout_s
        self._wait_max_stressed_s = STRESS_TIMEOUT_S
        self._content: ContentReader | None = None  # while it is received
        self._content_since = 0.0
        self._handler_coroutine: asyncio.Task[None] | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        admitted = self._host.admit(self, peer)
        if isinstance(admitted, str):
            self._lost = True  # nothing to forget
            log.info("connection refused client=%r reply=%r", peer, admitted)
            transport.write(admitted.encode() + b"\r\n")
            transport.close()
            return
        self.session = admitted
        self.envelope = Transaction()
        self._handler_coroutine = self.loop.create_task(self._handle_client(), name="smtp-session")

    def data_received(self, data: bytes) -> None:
        if self._closing or self._lost:
            return  # read only so that the last reply arrives
        self._received = self._received + data if self._received else data
        if self._waiter is None:
            self._pause_reading()  # busy: what it says now can wait in the kernel
        else:
            self._wake()

    def eof_received(self) -> bool:
        self._eof = True
        self._wake()
        if self._closing and self.transport is not None:
            self.transport.close()
        return True  # it may have closed only its half: commands it has sent are answered

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.transport = None
        self._wake()
        if self._handler_coroutine is None or self._handler_coroutine.done():
            self._host.forget(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake()

    # What the server and the hooks ask.

    @property
    def gone(self) -> bool:
        """Has the client left?"""
        return self._lost

    @property
    def waits(self) -> bool:
        """Does it wait for its client, and for nobody else?"""
        return self._waiter is not None

    @property
    def over(self) -> bool:
        """Has the session ended? Its connection may still have to."""
        return self._closing

    def drain(self) -> None:
        """Say 421 now if the session is idle, or as soon as the message under way is answered."""
        if self._content is None:
            self._wake()

    def abort(self) -> None:
        """Cut the connection. What was handed over goes on and is waited for."""
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """Cut the connection and wait for nothing: the server closes."""
        self.abort()
        if self._handler_coroutine is not None:
            self._handler_coroutine.cancel()

    def check_time(self, now: float, stressed: bool) -> None:
        """Act if the client has taken too long. Called now and then for every session: no timer is set per command."""
        overdue = now - self._waiting_since > (self._wait_max_stressed_s if stressed else self._wait_max_s)
        if self._content is not None and not overdue:
            content_s = now - self._content_since - DATA_GRACE_S
            overdue = content_s > self._content.size_bytes / DATA_BYTES_PER_S_MIN
        if not overdue:
            return
        if self._closing or self._waiter is None or self._writing_paused:
            # It does not take our last words, or our replies; or the commit is overdue, and then only the client's
            # repeating can mend it (RFC 1047).
            self.abort()
            return
        self._timed_out = True
        self._wake()

    # Input and output.

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def _start_wait(self, wait_max_s: float, wait_max_stressed_s: float | None = None) -> None:
        self._waiting_since = self.loop.time()
        self._wait_max_s = wait_max_s
        self._wait_max_stressed_s = wait_max_s if wait_max_stressed_s is None else wait_max_stressed_s

    async def _read(self) -> bytes:
        """Return what the client says next. If that must be waited for, all it has said so far is answered first.

        Raises:
            SessionOver: it has gone, or has been silent for too long, or (between messages) the server drains.
        """
        while True:
            if self._lost:
                raise SessionOver(reason="connection lost")
            if self._timed_out:
                self._statistics.timeouts += 1
                raise SessionOver(f"421 4.4.2 {self.hostname} Error: timeout exceeded", reason="timeout")
            if self._host.draining and self._content is None:
                raise SessionOver(f"421 4.3.2 {self.hostname} Service shutting down", reason="draining")
            if self._received and not self._writing_paused:
                data = self._received
                self._received = b""
                return data
            if self._eof and not self._received:
                raise SessionOver(reason="end of input")
            if self._reading_paused and not self._received:
                self._reading_paused = False
                assert self.transport is not None
                self.transport.resume_reading()
            self._flush()
            self._waiter = self.loop.create_future()
            await self._waiter

    def _flush(self) -> None:
        if self._replies:
            if self.transport is not None and not self._lost:
                self.transport.write(b"".join(self._replies))
            self._replies.clear()

    def _reply(self, reply: str) -> None:
        """Answer with one line, without its CRLF. It leaves with the next flush."""
        self._replies.append(reply.encode() + b"\r\n")

    async def push(self, status: str | bytes) -> None:
        """The same, for hooks."""
        self._replies.append((status.encode() if isinstance(status, str) else status) + b"\r\n")

    def _finish(self, last_reply: str, polite: bool) -> None:
        if last_reply:
            self._reply(last_reply)
        self._content = None
        self._received = b""
        self._closing = True
        self._handler_coroutine = None
        if self._lost or self.transport is None:
            self._host.forget(self)
            return
        spoke = bool(self._replies)
        self._flush()
        if polite or not spoke or self._eof or self.transport.is_closing():
            self._start_wait(CLOSE_S)
            self.transport.close()
            return
        self._start_wait(LINGER_S)
        self.transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
