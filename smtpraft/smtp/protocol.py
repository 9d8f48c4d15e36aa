"""One SMTP connection of the fast engine below its commands: bytes in and out, time limits, beginning and end.

No stream, no task, no future: what a client says is dealt with in the call that brings it, and the answer to a final
dot is written by the call that brings the commit. The rules are those of `connection`, its slower twin:

- Replies are collected and leave in one write, when all that the client has said is answered (RFC 2920 §3.2).
- A client that leaves undoes nothing: a message that was handed over is waited for, and its result logged.
- While a session is busy its client is not read from; what it says meanwhile waits in the kernel.
- No timer is set per command: the server looks at every session now and then.
- After a last reply the connection is half closed and read on for a moment; a close with unread input would be a reset,
  and a reset makes the client's kernel throw our reply away.

Content is received right into the blocks it is kept in; commands go through a buffer that all sessions share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from smtpraft.cluster import direct
from smtpraft.smtp.connection import (
    CLOSE_S,
    DATA_BYTES_PER_S_MIN,
    DATA_GRACE_S,
    LINGER_S,
    MEMORY_WAIT_S,
    STRESS_TIMEOUT_S,
    Client,
    Host,
    SessionOver,
    Transaction,
)
from smtpraft.smtp.memory import Request
from smtpraft.smtp.scan import CommandLines, ContentReader

log = logging.getLogger(__name__)


class FastConnection:
    """A buffered protocol of asyncio's, created by the listener for each connection; `fast` knows the commands."""

    session: Client

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.hostname = host.settings.hostname
        self.transport: asyncio.Transport | None = None
        self._fd = -1
        self.envelope = Transaction()
        self._host = host
        self._handler = host.handler
        self._settings = host.settings
        self._statistics = host.statistics
        self._memory = host.memory
        self._buffer = host.buffer
        self._lines = CommandLines()
        self._replies: list[bytes] = []
        self._content: ContentReader | None = None  # while it is received
        self._content_since = 0.0
        self._busy = False  # with a commit, with waiting for memory, or letting others go first
        self._handed_over = False  # a message, of which the cluster has not said anything yet
        self._reading_paused = False
        self._writing_paused = False
        self._eof = False
        self._lost = False
        self._closing = False
        self._admitted = False
        self._reserved_bytes = 0
        self._request: Request | None = None  # for more of that, while it is waited for
        self._request_timer: asyncio.TimerHandle | None = None
        self._command_s = host.settings.command_timeout_s
        self._command_stressed_s = min(self._command_s, STRESS_TIMEOUT_S)
        self._wait_for_command()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        admitted = self._host.admit(self, peer)
        if isinstance(admitted, str):
            self._lost = self._closing = True  # nothing to forget
            log.info("connection refused client=%r reply=%r", peer, admitted)
            transport.write(admitted.encode() + b"\r\n")
            transport.close()
            return
        self._admitted = True
        self._fd = direct.descriptor(transport)
        self.session = admitted
        self._wait_for_command()
        transport.write(self._host.greeting)

    def get_buffer(self, sizehint: int) -> memoryview:
        content = self._content
        return self._buffer if content is None or self._busy else content.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._closing or self._lost:
            return  # read only so that the last reply arrives
        content = self._content
        if content is not None and not self._busy:
            self._run(nbytes)
            return
        self._lines.feed(bytes(self._buffer[:nbytes]))
        if self._busy or self._writing_paused:
            self._pause_reading()  # what it says now can wait in the kernel
        else:
            self._run()

    def eof_received(self) -> bool:
        self._eof = True
        if self._closing:
            if self.transport is not None:
                self.transport.close()
        elif not self._busy and not self._lost:
            self._run()
        return True  # it may have closed only its half: commands it has sent are answered

    def connection_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.transport = None
        if self._closing:
            self._host.forget(self)
        elif not self._handed_over:
            log.debug("session over client=%s reason='connection lost'", self.session.client_host)
            self._finish("", False)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if not self._busy and not self._closing and not self._lost:
            self._run()

    # What the server asks.

    @property
    def gone(self) -> bool:
        """Has the client left?"""
        return self._lost

    @property
    def waits(self) -> bool:
        """Does it wait for its client, and for nobody else?"""
        return not self._busy

    @property
    def over(self) -> bool:
        """Has the session ended? Its connection may still have to."""
        return self._closing

    def drain(self) -> None:
        """Say 421 now if the session is idle, or as soon as the message under way is answered."""
        if self._content is None and not self._busy and not self._closing:
            self._run()

    def abort(self) -> None:
        """Cut the connection. What was handed over goes on and is waited for."""
        if self.transport is not None:
            self.transport.abort()

    def abandon(self) -> None:
        """Cut the connection and wait for nothing: the server closes."""
        self.abort()
        if not self._closing:
            if self._handed_over:
                log.warning("outcome unknown client=%s error='server closed'", self.session.client_host)
            self._finish("", False)

    def check_time(self, now: float, stressed: bool) -> None:
        """Act if the client has taken too long. Called now and then for every session: no timer is set per command."""
        overdue = now - self._waiting_since > (self._wait_max_stressed_s if stressed else self._wait_max_s)
        if self._content is not None and not overdue:
            content_s = now - self._content_since - DATA_GRACE_S
            overdue = content_s > self._content.size_bytes / DATA_BYTES_PER_S_MIN
        if not overdue:
            return
        if self._closing or self._busy or self._writing_paused:
            # It does not take our last words, or our replies; or the commit is overdue, and then only the client's
            # repeating can mend it (RFC 1047).
            self.abort()
            return
        self._statistics.timeouts += 1
        log.debug("session over client=%s reason='timeout'", self.session.client_host)
        self._finish(f"421 4.4.2 {self.hostname} Error: timeout exceeded", False)

    # What the commands use.

    def _run(self, received: int = -1, go_on: Callable[[bool], None] | None = None, has_room: bool = False) -> None:
        """Carry out what the client has said, and answer it. Nothing escapes but the session's end.

        First take so many bytes of content, if any were received; or let `go_on` hear whether there is room for it.
        """
        if self._closing:
            return
        try:
            if received >= 0:
                self._take_content(received)
            elif go_on is not None:
                go_on(has_room)
            self._go_on()
        except SessionOver as over:
            log.debug("session over client=%s reason=%r", self.session.client_host, over.reason or over.reply)
            self._finish(over.reply, over.reason == "quit")
        except Exception:
            log.exception("session failed client=%s", self.session.client_host)
            # Of a message that was handed over nothing may be said but what the cluster says.
            unknown = self.envelope.handed_over
            self._finish("" if unknown else f"421 4.3.0 {self.hostname} Error: internal error", False)

    def _go_on(self) -> None:
        raise NotImplementedError

    def _take_content(self, count: int) -> None:
        raise NotImplementedError

    def _idle(self) -> None:
        """All is answered: wait for the client, if there is something to wait for.

        Raises:
            SessionOver: there is not; or (between messages) the server drains.
        """
        if self._content is None:
            if self._host.draining:
                raise SessionOver(f"421 4.3.2 {self.hostname} Service shutting down", reason="draining")
            if self._lost:
                raise SessionOver(reason="connection lost")
        if self._eof:
            raise SessionOver(reason="end of input")
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()
        if self._replies:
            self._flush()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def _start_wait(self, wait_max_s: float) -> None:
        self._waiting_since = self.loop.time()
        self._wait_max_s = self._wait_max_stressed_s = wait_max_s

    def _wait_for_command(self) -> None:
        self._waiting_since = self.loop.time()
        self._wait_max_s = self._command_s
        self._wait_max_stressed_s = self._command_stressed_s

    def _flush(self) -> None:
        replies = self._replies
        if replies:
            if self.transport is not None and not self._lost:
                direct.write(self.transport, self._fd, replies[0] if len(replies) == 1 else b"".join(replies))
            replies.clear()

    def _reply(self, reply: str) -> None:
        """Answer with one line, without its CRLF. It leaves with the next flush."""
        self._replies.append(reply.encode() + b"\r\n")

    def _reserve(self, size_bytes: int, begun: bool) -> bool:
        """Take memory for content, if it is to be had now; else `_wait_for_room`."""
        if not self._memory.try_reserve(size_bytes, begun):
            return False
        self._reserved_bytes += size_bytes
        return True

    def _wait_for_room(self, size_bytes: int, go_on: Callable[[bool], None], begun: bool) -> None:
        """Wait, busy, for memory that `_reserve` did not get; `go_on` hears whether it came."""
        memory = self._memory
        self._busy = True
        self._pause_reading()
        self._flush()
        self._start_wait(2 * MEMORY_WAIT_S)

        def granted() -> None:
            self._reserved_bytes += size_bytes
            self._request = None
            self.loop.call_soon(over, True)  # whoever made room goes on first

        def over(is_granted: bool) -> None:
            if timer is not self._request_timer:
                return  # it was too late, or the session has ended
            timer.cancel()
            self._request_timer = None
            if self._request is not None:
                memory.withdraw(self._request)
                self._request = None
                is_granted = False
            self._busy = False
            self._run(-1, go_on, is_granted)

        self._request = memory.ask(size_bytes, granted, begun=begun)
        timer = self._request_timer = self.loop.call_later(MEMORY_WAIT_S, over, True)

    def _release(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        if self._request is not None:
            self._memory.withdraw(self._request)
            self._request = None
        if self._reserved_bytes:
            self._memory.release(self._reserved_bytes)
            self._reserved_bytes = 0

    def _finish(self, last_reply: str, polite: bool) -> None:
        if last_reply:
            self._reply(last_reply)
        self._content = None
        self._lines = CommandLines()
        self._closing = True
        self._handed_over = False
        self._release()
        if self._lost or self.transport is None:
            if self._admitted:
                self._admitted = False
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


def shared_buffer() -> memoryview:
    """Return what sessions receive commands into: it is read out before the next session may receive."""
    return memoryview(bytearray(64 * 1024))
