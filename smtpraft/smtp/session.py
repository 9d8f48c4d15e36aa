"""The commands of one SMTP session, their order and their replies (RFC 5321 §4).

Nothing escapes a hook or a command: an exception is logged and answered `451`, for a `500` would make the sender bounce
good mail. Whoever does not speak SMTP is told so a few times and then left.
"""

# ruff: noqa: N802 -- the names of the command methods are aiosmtpd's

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from aiosmtpd.smtp import MISSING

from smtpraft.smtp.command import CommandRefused, parse_rcpt
from smtpraft.smtp.connection import MEMORY_WAIT_S, STRESS_TIMEOUT_S, Connection, Host, SessionOver
from smtpraft.smtp.faults import BareOctet, LineFault
from smtpraft.smtp.rules import COMMANDS_PER_TURN, OVERDUE_COMMIT_S, RESERVE_BYTES, SessionRules, methods_of
from smtpraft.smtp.scan import CommandLines, ContentReader

log = logging.getLogger(__name__)


class SmtpSession(SessionRules, Connection):  # type: ignore[misc]  # aiosmtpd has coroutines for all commands
    """One session, from greeting to QUIT."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(host, loop)
        self._lines = CommandLines()
        self._reserved_bytes = 0

    async def _handle_client(self) -> None:
        last_reply = ""
        polite = False
        try:
            self._replies.append(self._host.greeting)
            command_s = self._settings.command_timeout_s
            self._start_wait(command_s, min(command_s, STRESS_TIMEOUT_S))
            while True:
                self._lines.feed(await self._read())
                # The time counts from the last complete command: a line that comes letter by letter gains none.
                if await self._run_commands():
                    self._start_wait(command_s, min(command_s, STRESS_TIMEOUT_S))
        except SessionOver as over:
            last_reply = over.reply
            polite = over.reason == "quit"
            log.debug("session over client=%s reason=%r", self.session.client_host, over.reason or over.reply)
        except Exception:
            log.exception("session failed client=%s", self.session.client_host)
            last_reply = f"421 4.3.0 {self.hostname} Error: internal error"
        finally:
            self._finish(last_reply, polite)

    async def _run_commands(self) -> bool:
        """Carry out every complete command that was received. Return whether there was any."""
        for count in itertools.count(1):
            line = self._lines.next_command()
            if line is None:
                return count > 1
            if self._host.draining:
                raise SessionOver(f"421 4.3.2 {self.hostname} Service shutting down", reason="draining")
            if isinstance(line, LineFault):
                self._error(f"500 5.5.2 Error: {line.value}")
            else:
                await self._run_command(*line)
            if count % COMMANDS_PER_TURN == 0:
                await asyncio.sleep(0)
        raise AssertionError("unreachable")

    async def _run_command(self, verb: bytes, argument: str | None, line_bytes: int) -> None:
        method = self._method(verb, argument, line_bytes)
        if method is None:
            return
        try:
            waiting = method(self, argument)
            if waiting is not None:
                await waiting
        except CommandRefused as refused:
            self._error(refused.reply)
        except SessionOver:
            raise
        except Exception as error:
            self._failed(verb, error)

    async def _call_handler_hook(self, command: str, *arguments: Any) -> Any:
        """Return the hook's reply, or MISSING if there is none. No exception but SessionOver comes out.

        A 451 for a hook that failed is right only while the message cannot be committed (RFC 5321 §4.2.5).
        """
        hook = self._handle_hooks.get(command)
        if hook is None:
            return MISSING
        try:
            return await hook(self, self.session, self.envelope, *arguments)
        except SessionOver:
            raise
        except Exception:
            log.exception("hook failed hook=%s client=%s", command, self.session.client_host)
            if self.envelope.handed_over:
                raise SessionOver(reason="failed after the hand-over") from None
            return "451 4.3.0 Error: internal error, try again later"

    # The commands (RFC 5321 §4.1.1).

    async def smtp_MAIL(self, argument: str) -> None:
        arguments = self._mail_arguments(argument)
        if arguments is None:
            return
        status = await self._call_handler_hook("MAIL", arguments.path.address, arguments.options)
        if status is MISSING:
            status = "250 2.1.0 Ok"
        if not status.startswith("2"):
            self._refuse("mail", status)
            self._count_junk()
            return
        self._begin_transaction(arguments)
        self._reply(status)

    async def smtp_RCPT(self, argument: str) -> None:
        envelope = self.envelope
        if envelope.mail_from is None:
            raise CommandRefused("503 5.5.1 Error: need MAIL command")
        envelope.recipients_refused = True
        path = parse_rcpt(argument, envelope.smtp_utf8)
        status: Any
        key = (path.local_part, path.domain.lower())
        if key in envelope.recipients_seen:
            self._reply("250 2.1.5 Ok")
            return
        if len(envelope.recipients_seen) >= self._settings.max_recipients:
            status = "452 4.5.3 Error: too many recipients"  # RFC 5321 §4.5.3.1.10
        else:
            status = await self._call_handler_hook("RCPT", path.address, [])
        if status is MISSING:
            envelope.rcpt_tos.append(path.address)
            status = "250 2.1.5 Ok"
        if status.startswith("2"):
            envelope.recipients_seen.add(key)
            self._reply(status)
            return
        self._recipient_refused(status)

    async def smtp_DATA(self, argument: str) -> None:
        reserve_bytes = self._check_data(argument)
        try:
            if not await self._reserve(reserve_bytes, begun=False):
                self._refuse("data", "452 4.3.1 Error: insufficient memory, try again later")
                self._count_junk()
                return
            self._reply("354 End data with <CR><LF>.<CR><LF>")
            self._content_since = self.loop.time()
            self._content = content = ContentReader(self._settings.max_message_bytes)
            await self._receive_content(content)
            self._content = None
            self._flush()  # the replies of this group do not wait for the commit
            self._start_wait(self._settings.commit_timeout_s + OVERDUE_COMMIT_S)
            await self._take_message(content)
        finally:
            self._release()

    async def _receive_content(self, content: ContentReader) -> None:
        """Read on to the final dot. The timer runs for each block anew (RFC 5321 §4.5.3.2.5)."""
        data = self._lines.take_rest()
        while True:
            if not content.forgotten:
                # What is past the limit is not kept, so it needs no room.
                missing = min(content.size_bytes + len(data), content.size_max_bytes) - self._reserved_bytes
                step = max(missing, min(RESERVE_BYTES, content.size_max_bytes - self._reserved_bytes))
                if missing > 0 and not await self._reserve(step, begun=True):
                    content.forget()
            try:
                complete = content.feed(data)
            except BareOctet:
                self._refuse("data", "521 5.5.2 Error: bare CR, LF or NUL in the message")
                raise
            if content.forgotten:
                self._release()  # others may use it while the rest goes by
            if complete:
                self._lines.feed(content.rest)
                return
            self._start_wait(self._settings.data_timeout_s)
            data = await self._read()

    async def _take_message(self, content: ContentReader) -> None:
        """Hand the message over and answer the final dot."""
        dot_at = self._waiting_since
        envelope = self.envelope
        if content.forgotten:
            self._refuse_forgotten(content)
            return
        envelope.content_blocks = content.take_blocks()
        envelope.content_ascii = content.ascii
        envelope.size_bytes = content.size_bytes
        status = await self._call_handler_hook("DATA")
        if status is MISSING:
            status = "451 4.3.0 Error: nobody is there to take the message"
        self._answer(envelope, status, self.loop.time() - dot_at)

    async def _reserve(self, size_bytes: int, *, begun: bool) -> bool:
        """Take memory for content; wait for it, not reading from the client meanwhile."""
        memory = self._host.memory
        if not memory.try_reserve(size_bytes, begun=begun):
            self._flush()
            self._start_wait(MEMORY_WAIT_S + OVERDUE_COMMIT_S)
            if not await memory.reserve(size_bytes, MEMORY_WAIT_S, begun=begun):
                return False
        self._reserved_bytes += size_bytes
        return True

    def _release(self) -> None:
        if self._reserved_bytes:
            self._host.memory.release(self._reserved_bytes)
            self._reserved_bytes = 0


SmtpSession._methods = methods_of(SessionRules, SmtpSession)
