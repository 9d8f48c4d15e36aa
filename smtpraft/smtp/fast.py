"""The commands of one SMTP session, their order and their replies (RFC 5321 §4): the fast engine.

The same as `session`, without coroutines: each command is a plain method, and what must be waited for (a commit, room
in memory) calls back. Nothing escapes: an exception is logged and answered `451`, for a `500` would make the sender
bounce good mail; once a message was handed over, nothing is said but what the cluster says of it.
"""

# ruff: noqa: N802 -- the names of the command methods are aiosmtpd's

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from smtpraft.smtp.command import COMMAND_BYTES_MAX, CommandRefused, parse_rcpt
from smtpraft.smtp.connection import SessionOver, Transaction
from smtpraft.smtp.faults import BareOctet, LineFault
from smtpraft.smtp.protocol import FastConnection
from smtpraft.smtp.rules import (
    COMMANDS_PER_TURN,
    OVERDUE_COMMIT_S,
    RESERVE_BYTES,
    SessionRules,
    methods_of,
)
from smtpraft.smtp.scan import ContentReader

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class CommandSession(FastConnection, SessionRules):
    """One session, from greeting to QUIT; `FastSession` is what a transport connects to."""

    def _go_on(self) -> None:
        """Carry out every complete command that was received, until something must be waited for."""
        next_command = self._lines.next_command
        count = 0
        while not (self._busy or self._writing_paused) and self._content is None:
            if count == COMMANDS_PER_TURN and self._lines.waiting_bytes:
                self._busy = True  # the other sessions, and heartbeats, have the loop for a turn
                self.loop.call_soon(self._after_others)
                return
            command = next_command()
            if command is None:
                break
            if self._host.draining:
                raise SessionOver(f"421 4.3.2 {self.hostname} Service shutting down", reason="draining")
            count += 1
            if isinstance(command, LineFault):
                self._error(f"500 5.5.2 Error: {command.value}")
            else:
                verb, argument, line_bytes = command
                self._run_command(verb, argument, line_bytes)
        if self._busy:
            return
        # The time counts from the last complete command: a line that comes letter by letter gains none.
        if count and self._content is None:
            self._wait_for_command()
        if self._content is not None or not self._writing_paused:  # content is read on: it draws one reply, no more
            self._idle()

    def _after_others(self) -> None:
        self._busy = False
        if self._lost:
            if not self._closing:
                self._finish("", False)
        elif self._writing_paused:
            self._wait_for_command()  # until it takes its replies
        else:
            self._run()

    def _run_command(self, verb: bytes, argument: str | None, line_bytes: int) -> None:
        method = self._methods.get(verb)
        if method is None or argument is None or line_bytes > COMMAND_BYTES_MAX:
            method = self._method(verb, argument, line_bytes)
            if method is None:
                return
        try:
            method(self, argument)
        except CommandRefused as refused:
            self._error(refused.reply)
        except SessionOver:
            raise
        except Exception as error:
            self._failed(verb, error)

    # The commands (RFC 5321 §4.1.1).

    def smtp_MAIL(self, argument: str) -> None:
        arguments = self._mail_arguments(argument)
        if arguments is None:
            return
        refusal = self._handler.mail_refusal()
        if refusal:
            self._refuse("mail", refusal)
            self._count_junk()
            return
        self._begin_transaction(arguments)
        self._replies.append(b"250 2.1.0 Ok\r\n")

    def smtp_RCPT(self, argument: str) -> None:
        envelope = self.envelope
        if envelope.mail_from is None:
            raise CommandRefused("503 5.5.1 Error: need MAIL command")
        envelope.recipients_refused = True
        path = parse_rcpt(argument, envelope.smtp_utf8)
        key = (path.local_part, path.domain.lower())
        seen = envelope.recipients_seen
        if key not in seen:
            if len(seen) >= self._settings.max_recipients:
                refusal = "452 4.5.3 Error: too many recipients"  # RFC 5321 §4.5.3.1.10
            else:
                refusal = self._handler.take_recipient(self.session, envelope, path.address)
            if refusal:
                self._recipient_refused(refusal)
                return
            seen.add(key)
        self._replies.append(b"250 2.1.5 Ok\r\n")

    def smtp_DATA(self, argument: str) -> None:
        reserve_bytes = self._check_data(argument)
        if self._reserve(reserve_bytes, False):
            self._begin_content(True)
        else:
            self._wait_for_room(reserve_bytes, self._begin_content, False)

    def _begin_content(self, has_room: bool) -> None:
        if not has_room:
            self._refuse("data", "452 4.3.1 Error: insufficient memory, try again later")
            self._count_junk()
            return
        self._replies.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        self._content_since = self.loop.time()
        self._start_wait(self._settings.data_timeout_s)
        self._content = content = ContentReader(self._settings.max_message_bytes)
        if self._lines.waiting_bytes:
            self._took_content(content, self._scanned(content.feed, self._lines.take_rest()))

    def _take_content(self, count: int) -> None:
        content = self._content
        assert content is not None
        self._took_content(content, self._scanned(content.filled, count))

    def _scanned(self, scan: Callable[[_T], bool], what: _T) -> bool:
        """Let the scanner see what came; return whether the content is complete."""
        try:
            return scan(what)
        except BareOctet:
            self._refuse("data", "521 5.5.2 Error: bare CR, LF or NUL in the message")
            raise

    def _took_content(self, content: ContentReader, complete: bool) -> None:
        """Account for what came. The timer runs for each block anew (RFC 5321 §4.5.3.2.5)."""
        if not content.forgotten:
            missing = content.size_bytes - self._reserved_bytes
            if missing > 0:
                step = max(missing, min(RESERVE_BYTES, content.size_max_bytes - self._reserved_bytes))
                if not self._reserve(step, True):
                    self._wait_for_more(content, complete, step)
                    return
        self._kept_content(content, complete)

    def _wait_for_more(self, content: ContentReader, complete: bool, size_bytes: int) -> None:
        """What came of the content finds no room yet."""

        def go_on(has_room: bool) -> None:
            if not has_room:
                content.forget()
            self._kept_content(content, complete)

        self._wait_for_room(size_bytes, go_on, True)

    def _kept_content(self, content: ContentReader, complete: bool) -> None:
        if content.forgotten:
            self._release()  # others may use it while the rest goes by
        if complete:
            if content.rest:
                self._lines.feed(content.rest + self._lines.take_rest())
            self._content = None
            self._take_message(content)
            return
        self._start_wait(self._settings.data_timeout_s)
        if self._lines.waiting_bytes:  # it came while there was no room
            self._took_content(content, self._scanned(content.feed, self._lines.take_rest()))

    def _take_message(self, content: ContentReader) -> None:
        """Hand the message over; the final dot is answered when the cluster has answered."""
        envelope = self.envelope
        if content.forgotten:
            self._release()
            self._refuse_forgotten(content)
            return
        envelope.content_blocks = content.take_blocks()
        envelope.content_ascii = content.ascii
        envelope.size_bytes = content.size_bytes
        self._flush()  # the replies of this group do not wait for the commit
        self._start_wait(self._settings.commit_timeout_s + OVERDUE_COMMIT_S)
        dot_at = monotonic()
        self._busy = self._handed_over = True
        at_once: list[str] = []
        handing_over = True

        def answered(reply: str) -> None:
            if handing_over:
                at_once.append(reply)
            elif self._handed_over and envelope is self.envelope:  # else the session was abandoned meanwhile
                self._answer_later(envelope, reply, dot_at)

        try:
            self._handler.commit(self, self.session, envelope, answered)
        except Exception:
            log.exception("hand-over failed client=%s", self.session.client_host)
            # A 451 is right only while the message cannot be committed (RFC 5321 §4.2.5).
            at_once.append("" if envelope.handed_over else "451 4.3.0 Error: internal error, try again later")
        handing_over = False
        if at_once:
            self._busy = self._handed_over = False
            self._answer_message(envelope, at_once[0], dot_at)

    def _answer_later(self, envelope: Transaction, reply: str, dot_at: float) -> None:
        """Answer the final dot in the middle of the cluster's work: now, but if the client has said more, with that."""
        self._busy = self._handed_over = False
        try:
            self._answer_message(envelope, reply, dot_at)
            if self._lines.waiting_bytes or self._reading_paused or self._eof or self._host.draining or self._lost:
                self._busy = True
                self.loop.call_soon(self._after_others)
            else:
                self._flush()
                self._wait_for_command()
        except SessionOver as over:
            log.debug("session over client=%s reason=%r", self.session.client_host, over.reason or over.reply)
            self._finish(over.reply, False)
        except Exception:
            log.exception("session failed client=%s", self.session.client_host)
            self._finish("", False)

    def _answer_message(self, envelope: Transaction, reply: str, dot_at: float) -> None:
        """Answer the final dot with `reply`; "": nobody knows, and nothing is said."""
        self._release()
        if not reply:
            raise SessionOver(reason="outcome unknown")
        self._answer(envelope, reply, monotonic() - dot_at)


class FastSession(CommandSession, asyncio.BufferedProtocol):
    """The session as a protocol: a class of Python's own, which asyncio looks for, and others may derive from."""

    listener = ""


FastSession._methods = methods_of(SessionRules, CommandSession, FastSession)
