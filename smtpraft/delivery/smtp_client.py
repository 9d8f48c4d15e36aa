"""A connection to an SMTP or LMTP server, kept for as many messages as it likes.

What it promises: the bytes that make the server take responsibility, the final dot, are handed to the kernel right
after `may_send` has said yes, in one system call with at most the last piece of the text; what the kernel leaves behind
of that piece leaves this process first, and then `may_send` is asked again. A process that was paused anywhere before
that asks again when it wakes. An address is written only if it can be nothing but an address; a bare CR, LF or NUL
never leaves.

What it does not do: TLS, AUTH, name servers' MX, DSN parameters.

    [RSET] MAIL RCPT... DATA  ──▶          one write if the server offers PIPELINING (RFC 2920), else one by one
                              ◀── replies
    text, dots stuffed        ──▶          in pieces, each flushed
    .                         ──▶          with the last of them
                              ◀── one reply (SMTP), or one for each accepted recipient (LMTP, RFC 2033 §4.2)
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Final, cast

from smtpraft.cluster import direct
from smtpraft.delivery.attempt import (
    CONNECT_STATUS,
    GONE_STATUS,
    LOOKUP_STATUS,
    Abandoned,
    Answer,
    DestinationFailed,
    Transaction,
    Verdict,
    answer_of,
    deferred,
)
from smtpraft.delivery.routes import Destination, Transport
from smtpraft.delivery.smtp_envelope import EnvelopePlan
from smtpraft.delivery.smtp_wire import FINAL_DOT, DotStuffer, Extensions, MalformedReply, Reply, ReplyParser

log = logging.getLogger(__name__)

RECIPIENTS_PER_TRANSACTION: Final = 100  # RFC 5321 §4.5.3.1.8: every server takes that many
PIECE_BYTES: Final = 64 * 1024  # what the block timeout is for: a slow but steady link is not cut
TURN_BYTES: Final = 1024 * 1024  # after so much without a pause the loop gets a turn: heartbeats come first
FULL_POLL_S: Final = 0.01  # the kernel takes everything but the dot: no transport says when there is room for it
REPLIES_AHEAD_MAX: Final = 1000  # a server that talks without being asked is not buffered without end


@dataclass(frozen=True, slots=True)
class Timeouts:
    """RFC 5321 §4.5.3.2, each in its proportion to the time for a command (300 s)."""

    connect_s: float
    command_s: float

    @property
    def data_s(self) -> float:
        """DATA to 354: 2 minutes."""
        return self.command_s * 2 / 5

    @property
    def block_s(self) -> float:
        """One piece of text to be taken: 3 minutes."""
        return self.command_s * 3 / 5

    @property
    def dot_s(self) -> float:
        """Final dot to reply: 10 minutes. To give up early is to send twice (RFC 1047)."""
        return self.command_s * 2


class SmtpConnection(asyncio.Protocol):
    """One session, for one coroutine at a time: `open`, then `send` as often as `usable`, then `quit` or `abort`."""

    def __init__(self, *, lmtp: bool, timeouts: Timeouts) -> None:
        self._lmtp = lmtp
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wanted = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._paused = False
        self._broken = ""
        self._in_transaction = False
        self.extensions = Extensions()
        self.peer = ""
        self.messages = 0
        """Transactions begun here."""
        self.transmitted = False
        """Was the last transaction's final dot handed over? From there on silence may mean acceptance."""
        self.answered = False
        """Did the server answer anything in the last transaction?"""
        self.lost: asyncio.Future[None] | None = None
        """Set it while nobody uses the connection: it is completed when the server speaks or leaves."""

    # --- Opening and closing

    @classmethod
    async def open(cls, destination: Destination, *, hostname: str, timeouts: Timeouts) -> SmtpConnection:
        """Connect and say hello as `hostname`.

        Raises:
            DestinationFailed: no connection, no greeting, or no answer to our name. Always temporary: a server that
                does not want to talk to us has said nothing about the mail (Postfix: smtp_skip_5xx_greeting).
        """
        connection = cls(lmtp=destination.transport is Transport.LMTP, timeouts=timeouts)
        await connection._connect(destination)
        connection.peer = connection._peer_name(destination)
        try:
            await connection._greet(hostname.encode("ascii"))
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _connect(self, destination: Destination) -> None:
        """Connect to the first address of the destination that answers (RFC 5321 §5.1: all are tried)."""
        site, timeout_s = destination.site, self._timeouts.connect_s
        if destination.path:
            error = await _tried(self._loop.create_unix_connection(lambda: self, destination.path), timeout_s)
        else:
            try:
                async with asyncio.timeout(timeout_s):
                    found = await self._loop.getaddrinfo(destination.host, destination.port, type=socket.SOCK_STREAM)
            except (OSError, TimeoutError) as lookup:
                text = f"cannot find the address of {site}: {_reason(lookup)}"
                raise DestinationFailed(deferred(LOOKUP_STATUS, text, "connect")) from None
            error = "it has no address"
            for _, _, _, _, address in found:
                error = await _tried(self._loop.create_connection(lambda: self, *address[:2]), timeout_s)
                if not error:
                    break
        if error:
            raise DestinationFailed(deferred(CONNECT_STATUS, f"connect to {site}: {error}", "connect"))

    def _peer_name(self, destination: Destination) -> str:
        assert self._transport is not None
        name = self._transport.get_extra_info("peername")
        if not isinstance(name, tuple) or len(name) < 2:
            return destination.path
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    async def _greet(self, hostname: bytes) -> None:
        reply = await self._hello("connect", b"")
        if reply.code != 220:
            raise self._refused(reply, "connect")
        hello = "LHLO" if self._lmtp else "EHLO"
        reply = await self._hello(hello, hello.encode() + b" " + hostname + b"\r\n")
        if reply.code == 250:
            self.extensions = Extensions.parse(reply)
            return
        if self._lmtp or reply.code < 500:
            raise self._refused(reply, hello)
        reply = await self._hello("HELO", b"HELO " + hostname + b"\r\n")  # RFC 5321 §3.2: before extensions
        if reply.code != 250:
            raise self._refused(reply, "HELO")

    async def _hello(self, command: str, data: bytes) -> Reply:
        self._write(data)
        replies = await self._answers(1, self._timeouts.command_s)
        if not replies:
            text = f"{self.peer}: {self._why} while waiting for the answer to {command}"
            raise DestinationFailed(deferred(GONE_STATUS, text, command))
        return replies[0]

    def _refused(self, reply: Reply, command: str) -> DestinationFailed:
        text = f"{self.peer} refused to talk to us: {reply.code} {reply.text}"
        return DestinationFailed(Answer(Verdict.DEFERRED, reply.code, "4.3.2", text, command))

    @property
    def usable(self) -> bool:
        """May another transaction be begun here?"""
        return not self._broken and not self._replies

    def quit(self) -> None:
        """Say goodbye and close, without waiting for an answer that nobody needs."""
        self._write(b"QUIT\r\n")
        self._close("closed")

    def abort(self) -> None:
        """Drop the connection: what was not yet handed to the kernel is not sent."""
        self._broken = self._broken or "closed"
        if self._transport is not None:
            self._transport.abort()

    def _close(self, why: str) -> None:
        self._broken = self._broken or why
        if self._transport is not None:
            self._transport.close()

    # --- One transaction

    async def send(self, transaction: Transaction) -> list[Answer]:
        """Try to deliver; return one answer a recipient, in order. Up to 100 recipients at a time.

        Never raises for what the far side does: a lost connection is an answer too. `usable` tells whether to go on.

        Raises:
            Abandoned: `may_send` said no; the connection is dropped and the final dot was not written.
        """
        assert 0 < len(transaction.recipients) <= RECIPIENTS_PER_TRANSACTION
        self.messages += 1
        self.transmitted = False
        self.answered = False
        plan = EnvelopePlan(transaction, self.extensions, self.peer)
        if plan.commands:
            try:
                await self._transact(plan, transaction)
            except BaseException:
                self.abort()
                raise
        return plan.answers()

    async def _transact(self, plan: EnvelopePlan, transaction: Transaction) -> None:
        """Settle every recipient of the plan."""
        _check(transaction)
        if self.extensions.pipelining:
            data = await self._envelope_at_once(plan)
        else:
            data = await self._envelope_stepwise(plan, transaction)
        if data is None:
            plan.settle(deferred(GONE_STATUS, f"{self.peer}: {self._why} while waiting for the answer to DATA", "DATA"))
        elif data.code != 354:
            answer = answer_of(data, "DATA")
            if answer.verdict is Verdict.DELIVERED:
                answer = deferred("4.5.0", f"unexpected reply to DATA: {data.code} {data.text}", "DATA")
            plan.settle(answer)
        elif plan.accepted:
            _check(transaction)
            await self._text(plan, transaction)
        elif plan.all_refused:
            await self._lone_dot()
        else:
            self.abort()  # it may think somebody is accepted: a dot would be an empty message to them

    async def _envelope_at_once(self, plan: EnvelopePlan) -> Reply | None:
        """Send everything up to DATA in one write; return the reply to DATA, if there is one."""
        commands = [*plan.commands, b"DATA\r\n"]
        reset = self._in_transaction
        self._in_transaction = True
        self._write((b"RSET\r\n" if reset else b"") + b"".join(commands))
        replies = await self._answers(len(commands) + reset, self._timeouts.command_s)
        if reset:
            replies = replies[1:]
        plan.read(replies[: len(plan.commands)], self._why)
        return replies[-1] if len(replies) == len(commands) else None

    async def _envelope_stepwise(self, plan: EnvelopePlan, transaction: Transaction) -> Reply | None:
        """Send one command at a time, and DATA only if somebody is accepted; return the reply to DATA, if any."""
        if self._in_transaction:
            await self._command(b"RSET\r\n", self._timeouts.command_s)
        self._in_transaction = True
        replies: list[Reply] = []
        for command in plan.commands:
            _check(transaction)
            reply = await self._command(command, self._timeouts.command_s)
            if reply is None:
                break
            replies.append(reply)
            if reply.code == 421 or not 200 <= replies[0].code < 300:
                break  # the session is over, or MAIL was refused: the rest need not be asked
        plan.read(replies, self._why)
        if not plan.accepted:
            return None
        _check(transaction)
        return await self._command(b"DATA\r\n", self._timeouts.data_s)

    async def _lone_dot(self) -> None:
        """RFC 2920 §3.1: a 354 with nobody accepted. A dot ends it, and there is no message for anyone."""
        self._write(FINAL_DOT)
        await self._answers(1, self._timeouts.dot_s)

    async def _text(self, plan: EnvelopePlan, transaction: Transaction) -> None:
        """Send the text and the final dot, and settle those accepted by the replies."""
        stuffer = DotStuffer()
        since_turn = 0
        last: bytes | memoryview = b""  # it leaves with the dot
        for piece in _pieces(stuffer, transaction):
            if last:
                self._write(last)
                since_turn += len(last)
                if since_turn >= TURN_BYTES:
                    since_turn = 0
                    await asyncio.sleep(0)
                    _check(transaction)
                if self._paused:
                    await self._flushed(self._timeouts.block_s)
                    _check(transaction)
                if self._is_cut_short():
                    break
            last = piece
        if stuffer.replaced:
            log.warning("message held a bare CR, LF or NUL, sent as a space sender=%r", transaction.sender)
        if not await self._end_text(last, transaction):
            plan.settle(self._interrupted())
            return
        wanted = plan.accepted if self._lmtp else 1
        replies = await self._answers(wanted, self._timeouts.dot_s)
        answers = [answer_of(reply, "end of data") for reply in replies]
        if len(answers) == wanted:
            self._in_transaction = False
        else:
            text = f"{self.peer}: {self._why} while waiting for the answer to the message"
            answers += [deferred(GONE_STATUS, text, "end of data")] * (wanted - len(answers))
        if self._lmtp:
            plan.settle_each(answers)
        else:
            plan.settle(answers[0])

    async def _end_text(self, last: bytes | memoryview, transaction: Transaction) -> bool:
        """Send the last piece of the text and the final dot. Return False, and no dot, if the server speaks or leaves.

        In one system call if the kernel takes both: a segment, and a wake-up of the server, less for each message. What
        it does not take of the text is left to the transport; of the dot nothing is: between the last question whether
        to send and each byte of it there is one system call, and never a queue.
        """
        rest = b"".join((last, FINAL_DOT))
        until = self._loop.time() + self._timeouts.block_s
        while self._transport is not None and not self._is_cut_short():
            _check(transaction)
            rest = rest[direct.write_now(self._transport, self._fd, rest) :]
            text = rest[: -len(FINAL_DOT)]
            if text:
                rest = rest[len(text) :]
                self._write(text)
                if self._paused:
                    await self._flushed(self._timeouts.block_s)
            elif rest and self._fd >= 0:  # the kernel is full of what came before
                if self._loop.time() >= until:
                    self._break("timed out")
                await asyncio.sleep(FULL_POLL_S)
            else:
                self.transmitted = True
                self._write(rest)  # if only the transport may write
                return True
        return False

    def _is_cut_short(self) -> bool:
        """Has the server spoken or left before it had the whole message?"""
        return bool(self._broken or self._replies)

    def _interrupted(self) -> Answer:
        """The server spoke, or left, before it had the whole message: it cannot have taken it."""
        answer = deferred(GONE_STATUS, f"{self.peer}: {self._why} while sending the message", "DATA")
        if self._replies and self._replies[0].code >= 400:
            answer = answer_of(self._replies[0], "DATA")
        self.abort()
        return answer

    # --- Bytes in and out

    def _write(self, data: bytes | memoryview) -> None:
        if data and self._transport is not None and not self._broken:
            self._transport.write(data)

    async def _command(self, data: bytes, timeout_s: float) -> Reply | None:
        self._write(data)
        replies = await self._answers(1, timeout_s)
        return replies[0] if replies else None

    async def _answers(self, count: int, timeout_s: float) -> list[Reply]:
        """Wait for `count` replies; return fewer if the session ends or the time is over."""
        self._deadline = self._loop.time() + timeout_s
        self._wanted = count
        while not self._complete():
            await self._wait()
        replies = [self._replies.popleft() for _ in range(min(count, len(self._replies)))]
        if replies:
            self.answered = True
            if replies[-1].code == 421:  # RFC 5321 §3.8: the server closes
                self._close("connection closed by the server (421)")
        return replies

    def _complete(self) -> bool:
        if self._broken or len(self._replies) >= self._wanted:
            return True
        return bool(self._replies) and self._replies[-1].code == 421

    async def _flushed(self, timeout_s: float) -> None:
        """Wait until the kernel has taken everything, or the server speaks or leaves."""
        self._deadline = self._loop.time() + timeout_s
        self._wanted = 1
        while self._paused and not self._complete():
            await self._wait()

    async def _wait(self) -> None:
        """Wait for something to happen; at the deadline the connection is broken."""
        # One timer serves many waits: it looks at the deadline when it fires, and is set anew only to fire earlier.
        if self._timer is None or self._deadline < self._timer_at:
            self._set_timer(self._deadline)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline:
            self._set_timer(self._deadline)
            return
        self._break("timed out")
        self.abort()

    @property
    def _why(self) -> str:
        return self._broken or "lost connection"

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter if self._waiter is not None else self.lost
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fd = direct.descriptor(transport)
        # No buffer of ours: `write` goes to the kernel at once, and we hear when it could not take all.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.extend(self._parser.feed(data))
        except MalformedReply as error:
            self._break(f"protocol error, {error}")
            self.abort()
            return
        if len(self._replies) > REPLIES_AHEAD_MAX:
            self._break("protocol error, replies to nothing")
            self.abort()
        elif self._replies and (self._waiter is None or self._complete()):
            self._wake()

    def eof_received(self) -> bool:
        self._break("lost connection")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._break("lost connection")
        self._paused = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()


async def _tried(connecting: Coroutine[None, None, object], timeout_s: float) -> str:
    """Return why connecting failed, or ""."""
    try:
        async with asyncio.timeout(timeout_s):
            await connecting
    except (OSError, TimeoutError) as error:
        return _reason(error)
    return ""


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, socket.gaierror) or not error.errno:
        return "timed out" if isinstance(error, TimeoutError) else str(error.strerror or error)
    return os.strerror(error.errno)


def _check(transaction: Transaction) -> None:
    if not transaction.may_send():
        raise Abandoned


def _pieces(stuffer: DotStuffer, transaction: Transaction) -> Iterator[bytes | memoryview]:
    """Yield the text as it leaves; no piece is empty."""
    for block in transaction.content:
        data = stuffer.block(block)
        if len(data) > PIECE_BYTES:
            view = memoryview(data)
            for start in range(0, len(view), PIECE_BYTES):
                yield view[start : start + PIECE_BYTES]
        elif data:
            yield data
    if end := stuffer.end():
        yield end
