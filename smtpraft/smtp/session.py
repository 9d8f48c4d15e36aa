"""The commands of one SMTP session, their order and their replies (RFC 5321 §4).

Nothing escapes a hook or a command: an exception is logged and answered `451`, for a `500` would make the sender bounce
good mail. Whoever does not speak SMTP is told so a few times and then left.
"""

# ruff: noqa: N802 -- the names of the command methods are aiosmtpd's

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Final

from aiosmtpd.smtp import MISSING

from smtpraft.smtp.command import COMMAND_BYTES_MAX, CommandRefused, parse_mail, parse_rcpt
from smtpraft.smtp.connection import MEMORY_WAIT_S, STRESS_TIMEOUT_S, Connection, Host, SessionOver, Transaction
from smtpraft.smtp.faults import BareOctet, LineFault
from smtpraft.smtp.scan import CommandLines, ContentReader

log = logging.getLogger(__name__)

ERRORS_MAX: Final = 20  # Postfix: smtpd_hard_error_limit
JUNK_COMMANDS_MAX: Final = 100  # Postfix: smtpd_junk_command_limit; NOOP, RSET, EHLO, refused MAIL, without any mail
RECIPIENTS_REFUSED_MAX: Final = 1000  # Postfix: smtpd_recipient_overshoot_limit
COMMANDS_PER_TURN: Final = 32  # then the other sessions, and heartbeats, have the loop for a turn
OVERDUE_COMMIT_S: Final = 30.0  # past the commit deadline, which whoever commits should have kept
RESERVE_BYTES: Final = 64 * 1024
RESERVE_BYTES_MAX: Final = 1024 * 1024  # before the first byte has come

WEB_VERBS: Final = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"HOST:", b"USER-AGENT:"))


class SmtpSession(Connection):
    """One session, from greeting to QUIT."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(host, loop)
        self._lines = CommandLines()
        self._reserved_bytes = 0
        self._errors = 0
        self._junk_commands = 0
        self._recipients_refused = 0

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
        method = _METHODS.get(verb)
        if method is None:
            if verb in WEB_VERBS:  # a web client made to talk to us; what follows is not meant as mail
                self._refuse("command", "521 5.5.1 Error: this is an SMTP server")
            self._error("500 5.5.2 Error: command not recognized")
            return
        if line_bytes > COMMAND_BYTES_MAX and verb not in LONG_COMMANDS:
            self._error(f"500 5.5.2 Error: {LineFault.TOO_LONG.value}")
            return
        if argument is None:
            self._error("501 5.5.2 Error: the argument is not UTF-8")
            return
        try:
            await method(self, argument)
        except CommandRefused as refused:
            self._error(refused.reply)
        except SessionOver:
            raise
        except Exception:
            log.exception("command failed verb=%r client=%s", verb, self.session.client_host)
            if self.envelope.handed_over:
                raise SessionOver(reason="failed after the hand-over") from None
            if self._content is not None:
                raise  # somewhere within the content: what follows cannot be told from commands
            self._refuse("command", "451 4.3.0 Error: internal error, try again later")

    def _refuse(self, stage: str, reply: str) -> None:
        """Answer with a refusal: counted, and logged with its reason."""
        self._statistics.messages_rejected[stage, int(reply[:3])] += 1
        session = self.session
        log.info(
            "refused stage=%s reply=%r client=%s helo=%r sender=%r",
            stage,
            reply,
            session.client_host,
            session.host_name or "",
            self.envelope.mail_from or "",
        )
        self._reply(reply)
        if reply.startswith(("421", "521")):
            raise SessionOver(reason=reply)

    def _error(self, reply: str) -> None:
        """Answer a protocol error; too many of them end the session."""
        self._errors += 1
        self._refuse("command", reply)
        if self._errors > ERRORS_MAX:
            self._refuse("command", f"421 4.7.0 {self.hostname} Error: too many errors")

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

    def _reset_transaction(self) -> None:
        self.envelope = Transaction()

    def _count_junk(self) -> None:
        self._junk_commands += 1
        if self._junk_commands > JUNK_COMMANDS_MAX:
            self._refuse("command", f"421 4.7.0 {self.hostname} Error: too many commands without mail")

    async def smtp_EHLO(self, argument: str) -> None:
        self._hello("EHLO", argument, extended=True)

    async def smtp_HELO(self, argument: str) -> None:
        self._hello("HELO", argument, extended=False)

    def _hello(self, verb: str, argument: str, *, extended: bool) -> None:
        # RFC 5321 §4.1.4: mail must not be refused because the name does not verify. RFC 6531 §3.7.1: A-labels only.
        if not argument or not argument.isascii() or not argument.isprintable():
            raise CommandRefused(f"501 5.5.4 Syntax: {verb} hostname")
        self._count_junk()
        self._reset_transaction()
        self.session.host_name = argument
        self.session.extended_smtp = extended
        self._replies.append(self._host.ehlo_reply if extended else self._host.helo_reply)

    async def smtp_MAIL(self, argument: str) -> None:
        if not self.session.host_name:
            raise CommandRefused("503 5.5.1 Error: send EHLO or HELO first")
        if self.envelope.mail_from is not None:
            raise CommandRefused("503 5.5.1 Error: nested MAIL command")
        path, size_bytes, body_8bitmime, smtputf8, options = parse_mail(argument)
        if size_bytes > self._settings.max_message_bytes:
            self._refuse("mail", "552 5.3.4 Error: message size exceeds fixed limit")  # RFC 1870 §6.1
            self._count_junk()
            return
        status = await self._call_handler_hook("MAIL", path.address, options)
        if status is MISSING:
            status = "250 2.1.0 Ok"
        if not status.startswith("2"):
            self._refuse("mail", status)
            self._count_junk()
            return
        envelope = self.envelope
        envelope.mail_from = path.address
        envelope.mail_options = options
        envelope.smtp_utf8 = smtputf8
        envelope.body_8bitmime = body_8bitmime
        envelope.size_declared_bytes = size_bytes
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
        self._recipients_refused += 1
        self._refuse("rcpt", status)
        if self._recipients_refused > RECIPIENTS_REFUSED_MAX:
            self._refuse("rcpt", f"421 4.7.0 {self.hostname} Error: too many refused recipients")

    async def smtp_DATA(self, argument: str) -> None:
        if argument:
            raise CommandRefused("501 5.5.4 Syntax: DATA")
        envelope = self.envelope
        if not envelope.rcpt_tos:
            if envelope.recipients_refused:
                raise CommandRefused("554 5.5.1 Error: no valid recipients")  # RFC 2920 §3.1
            raise CommandRefused("503 5.5.1 Error: need RCPT command")
        # What SIZE declares is a claim: three clients that claim 50 MB and send nothing must not starve the others.
        reserve_bytes = min(max(envelope.size_declared_bytes, RESERVE_BYTES), RESERVE_BYTES_MAX)
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
            if content.size_bytes > content.size_max_bytes:
                self._refuse("data", "552 5.3.4 Error: message size exceeds fixed limit")
            else:
                self._refuse("data", "452 4.3.1 Error: insufficient memory, try again later")
            self._reset_transaction()
            return
        envelope.content_blocks = content.take_blocks()
        envelope.content_ascii = content.ascii
        envelope.size_bytes = content.size_bytes
        status = await self._call_handler_hook("DATA")
        if status is MISSING:
            status = "451 4.3.0 Error: nobody is there to take the message"
        if status.startswith("2"):
            statistics = self._statistics
            statistics.messages_received += 1
            statistics.received_by_listener[self.listener] += 1
            statistics.recipients_received += len(envelope.rcpt_tos)
            statistics.bytes_received += content.size_bytes
            statistics.message_bytes.observe(content.size_bytes)
            statistics.ack_seconds.observe(self.loop.time() - dot_at)
            statistics.clients_gone += self._lost
            self._errors = self._junk_commands = self._recipients_refused = 0
            self._reply(status)
        else:
            self._refuse("data", status)
        self._reset_transaction()

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

    async def smtp_RSET(self, argument: str) -> None:
        if argument:
            raise CommandRefused("501 5.5.4 Syntax: RSET")
        self._count_junk()
        self._reset_transaction()
        self._reply("250 2.0.0 Ok")

    async def smtp_NOOP(self, argument: str) -> None:
        self._count_junk()
        self._reply("250 2.0.0 Ok")

    async def smtp_VRFY(self, argument: str) -> None:
        if not argument:
            raise CommandRefused("501 5.5.4 Syntax: VRFY address")
        self._count_junk()
        self._reply("252 2.5.0 Cannot verify, but will take mail for whom this server serves")  # RFC 5321 §7.3

    async def smtp_EXPN(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: EXPN not implemented")

    async def smtp_HELP(self, argument: str) -> None:
        self._count_junk()
        self._reply("214 2.0.0 Commands: EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")

    async def smtp_QUIT(self, argument: str) -> None:
        self._reply("221 2.0.0 Bye")
        raise SessionOver(reason="quit")

    # Not offered: aiosmtpd's own must not be reached.

    async def smtp_AUTH(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: AUTH not available")

    async def smtp_STARTTLS(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: STARTTLS not available")


_METHODS: Final = {
    name.removeprefix("smtp_").encode(): method
    for name, method in vars(SmtpSession).items()
    if name.startswith("smtp_")
}
LONG_COMMANDS: Final = frozenset((b"MAIL", b"RCPT"))
