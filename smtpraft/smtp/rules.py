"""What both engines of the SMTP session have in common: limits, refusals, and the commands that wait for nothing.

An engine is a session class on this and on its own connection: `fast` with plain methods and callbacks, `session` with
aiosmtpd's coroutines and hooks. What RFC 5321 says of a command is here whenever it can be said without waiting.
"""

# ruff: noqa: N802 -- the names of the command methods are aiosmtpd's

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from smtpraft.config import SmtpSettings
from smtpraft.smtp.command import COMMAND_BYTES_MAX, CommandRefused, MailArguments, parse_mail
from smtpraft.smtp.connection import Client, Host, SessionOver, Transaction
from smtpraft.smtp.faults import LineFault
from smtpraft.smtp.scan import ContentReader
from smtpraft.smtp.statistics import SmtpStatistics

log = logging.getLogger(__name__)

ERRORS_MAX: Final = 20  # Postfix: smtpd_hard_error_limit
JUNK_COMMANDS_MAX: Final = 100  # Postfix: smtpd_junk_command_limit; NOOP, RSET, EHLO, refused MAIL, without any mail
RECIPIENTS_REFUSED_MAX: Final = 1000  # Postfix: smtpd_recipient_overshoot_limit
COMMANDS_PER_TURN: Final = 32  # then the other sessions, and heartbeats, have the loop for a turn
OVERDUE_COMMIT_S: Final = 30.0  # past the commit deadline, which whoever commits should have kept
RESERVE_BYTES: Final = 64 * 1024
RESERVE_BYTES_MAX: Final = 1024 * 1024  # before the first byte has come

WEB_VERBS: Final = frozenset((b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"HOST:", b"USER-AGENT:"))
LONG_COMMANDS: Final = frozenset((b"MAIL", b"RCPT"))


class SessionRules:
    """A part of a session class, before its connection."""

    session: Client
    envelope: Any
    hostname: str
    listener: str
    """Which of `smtp.listen` the client came to."""

    _host: Host
    _settings: SmtpSettings
    _statistics: SmtpStatistics
    _replies: list[bytes]
    _content: ContentReader | None
    _lost: bool
    _reply: Callable[[str], None]
    _methods: dict[bytes, Callable[..., Any]]
    _errors = 0
    _junk_commands = 0
    _recipients_refused = 0

    def _method(self, verb: bytes, argument: str | None, line_bytes: int) -> Callable[..., Any] | None:
        """Return what carries out a command; None if it was answered with an error."""
        method = self._methods.get(verb)
        if method is None:
            if verb in WEB_VERBS:  # a web client made to talk to us; what follows is not meant as mail
                self._refuse("command", "521 5.5.1 Error: this is an SMTP server")
            self._error("500 5.5.2 Error: command not recognized")
        elif line_bytes > COMMAND_BYTES_MAX and verb not in LONG_COMMANDS:
            self._error(f"500 5.5.2 Error: {LineFault.TOO_LONG.value}")
        elif argument is None:
            self._error("501 5.5.2 Error: the argument is not UTF-8")
        else:
            return method
        return None

    def _failed(self, verb: bytes, error: Exception) -> None:
        """A command raised what it should not have.

        Raises:
            SessionOver: nothing can be said.
            Exception: the same again, where what follows cannot be told from commands.
        """
        log.error("command failed verb=%r client=%s", verb, self.session.client_host, exc_info=error)
        if self.envelope.handed_over:
            raise SessionOver(reason="failed after the hand-over")
        if self._content is not None:
            raise error
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

    def _count_junk(self) -> None:
        self._junk_commands += 1
        if self._junk_commands > JUNK_COMMANDS_MAX:
            self._refuse("command", f"421 4.7.0 {self.hostname} Error: too many commands without mail")

    def _mail_arguments(self, argument: str) -> MailArguments | None:
        """Return what MAIL says; None if it was refused for the size it declares.

        Raises:
            CommandRefused: it is out of place, or cannot be read.
        """
        if not self.session.host_name:
            raise CommandRefused("503 5.5.1 Error: send EHLO or HELO first")
        if self.envelope.mail_from is not None:
            raise CommandRefused("503 5.5.1 Error: nested MAIL command")
        arguments = parse_mail(argument)
        if arguments.size_bytes > self._settings.max_message_bytes:
            self._refuse("mail", "552 5.3.4 Error: message size exceeds fixed limit")  # RFC 1870 §6.1
            self._count_junk()
            return None
        return arguments

    def _begin_transaction(self, arguments: MailArguments) -> None:
        envelope = self.envelope
        envelope.mail_from = arguments.path.address
        envelope.mail_options = arguments.options
        envelope.smtp_utf8 = arguments.smtputf8
        envelope.body_8bitmime = arguments.body_8bitmime
        envelope.size_declared_bytes = arguments.size_bytes

    def _recipient_refused(self, reply: str) -> None:
        self._recipients_refused += 1
        self._refuse("rcpt", reply)
        if self._recipients_refused > RECIPIENTS_REFUSED_MAX:
            self._refuse("rcpt", f"421 4.7.0 {self.hostname} Error: too many refused recipients")

    def _check_data(self, argument: str) -> int:
        """Return how much room to reserve before content is asked for, in bytes.

        Raises:
            CommandRefused: DATA is out of place.
        """
        if argument:
            raise CommandRefused("501 5.5.4 Syntax: DATA")
        envelope = self.envelope
        if not envelope.rcpt_tos:
            if envelope.recipients_refused:
                raise CommandRefused("554 5.5.1 Error: no valid recipients")  # RFC 2920 §3.1
            raise CommandRefused("503 5.5.1 Error: need RCPT command")
        # What SIZE declares is a claim: three clients that claim 50 MB and send nothing must not starve the others.
        reserve_bytes: int = min(max(envelope.size_declared_bytes, RESERVE_BYTES), RESERVE_BYTES_MAX)
        return reserve_bytes

    def _refuse_forgotten(self, content: ContentReader) -> None:
        """Answer the final dot of content that was not kept."""
        self.envelope = Transaction()
        if content.size_bytes > content.size_max_bytes:
            self._refuse("data", "552 5.3.4 Error: message size exceeds fixed limit")
        else:
            self._refuse("data", "452 4.3.1 Error: insufficient memory, try again later")

    def _answer(self, envelope: Any, reply: str, waited_s: float) -> None:
        """Answer the final dot with what the cluster says."""
        if reply.startswith("2"):
            statistics = self._statistics
            statistics.messages_received += 1
            statistics.received_by_listener[self.listener] += 1
            statistics.recipients_received += len(envelope.rcpt_tos)
            statistics.bytes_received += envelope.size_bytes
            statistics.message_bytes.observe(envelope.size_bytes)
            statistics.ack_seconds.observe(waited_s)
            statistics.clients_gone += self._lost
            self._errors = self._junk_commands = self._recipients_refused = 0
            self._reply(reply)
        else:
            self._refuse("data", reply)
        self.envelope = Transaction()

    # Commands that wait for nothing (RFC 5321 §4.1.1).

    def smtp_EHLO(self, argument: str) -> None:
        self._hello("EHLO", argument, extended=True)

    def smtp_HELO(self, argument: str) -> None:
        self._hello("HELO", argument, extended=False)

    def _hello(self, verb: str, argument: str, *, extended: bool) -> None:
        # RFC 5321 §4.1.4: mail must not be refused because the name does not verify. RFC 6531 §3.7.1: A-labels only.
        if not argument or not argument.isascii() or not argument.isprintable():
            raise CommandRefused(f"501 5.5.4 Syntax: {verb} hostname")
        self._count_junk()
        self.envelope = Transaction()
        self.session.host_name = argument
        self.session.extended_smtp = extended
        self._replies.append(self._host.ehlo_reply if extended else self._host.helo_reply)

    def smtp_RSET(self, argument: str) -> None:
        if argument:
            raise CommandRefused("501 5.5.4 Syntax: RSET")
        self._count_junk()
        self.envelope = Transaction()
        self._reply("250 2.0.0 Ok")

    def smtp_NOOP(self, argument: str) -> None:
        self._count_junk()
        self._reply("250 2.0.0 Ok")

    def smtp_VRFY(self, argument: str) -> None:
        if not argument:
            raise CommandRefused("501 5.5.4 Syntax: VRFY address")
        self._count_junk()
        self._reply("252 2.5.0 Cannot verify, but will take mail for whom this server serves")  # RFC 5321 §7.3

    def smtp_EXPN(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: EXPN not implemented")

    def smtp_HELP(self, argument: str) -> None:
        self._count_junk()
        self._reply("214 2.0.0 Commands: EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT")

    def smtp_QUIT(self, argument: str) -> None:
        if argument:
            raise CommandRefused("501 5.5.4 Syntax: QUIT")  # RFC 5321 §4.1.1
        self._reply("221 2.0.0 Bye")
        raise SessionOver(reason="quit")

    def smtp_AUTH(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: AUTH not available")

    def smtp_STARTTLS(self, argument: str) -> None:
        raise CommandRefused("502 5.5.1 Error: STARTTLS not available")


def methods_of(*classes: type) -> dict[bytes, Callable[..., Any]]:
    """Return what carries out each command, by its verb; later classes go before earlier ones."""
    return {
        name.removeprefix("smtp_").encode(): method
        for each in classes
        for name, method in vars(each).items()
        if name.startswith("smtp_")
    }
