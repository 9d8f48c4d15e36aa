"""What happens to mail: who may send it, and the hand-over to the cluster. Plain methods, and aiosmtpd's hooks.

The reply to the final dot is a promise (RFC 5321 §4.2.5): 2yz, the message is on the disks of a majority; 4yz or 5yz,
it is never delivered. When neither can be promised nothing is said and the connection is closed, which a client takes
for "try again": a repeat is better than a loss.
"""

# ruff: noqa: N802 -- the names of the hooks are aiosmtpd's

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final, Protocol

from smtpraft.config import SmtpSettings
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.smtp.connection import Client, Connection, SessionOver, Transaction
from smtpraft.smtp.policy import RelayPolicy
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.smtp.trace import DateLine, count_received, received_line
from smtpraft.spool.messagelog import RECEPTION, MessageEvent, tell
from smtpraft.spool.types import Envelope, MessageId

log = logging.getLogger(__name__)


class SubmitMail(Protocol):
    """Where accepted mail goes: `SpoolClient.submit`."""

    def __call__(
        self,
        envelope: Envelope,
        content: Sequence[bytes],
        *,
        deadline_s: float,
        done: Callable[[MessageId | None, Exception | None], None],
    ) -> None:
        """Queue a message; `done` is called once, on the loop, perhaps before this returns.

        With the queue id once it is committed, or with NotReplicated (it is not queued and never will be),
        OutcomeUnknown (it may be) or Stopped (the node stops; nothing was handed to the cluster).
        """


FULL: Final = "452 4.3.1 Error: insufficient system storage, try again later"


class Server(Protocol):
    """What the handler needs of a session."""

    @property
    def gone(self) -> bool:
        """Has the client left?"""


class MailHandler:
    """The decisions of one server, for both engines: plain methods, and the same as hooks."""

    def __init__(
        self,
        settings: SmtpSettings,
        *,
        policy: RelayPolicy,
        submit: SubmitMail,
        ready: Callable[[], bool],
        full: Callable[[], bool],
        statistics: SmtpStatistics,
        clock: Callable[[], float],
        instance: str,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._submit = submit
        self._ready = ready
        self._full = full
        self._statistics = statistics
        self._clock = clock
        self._instance = instance
        self._transactions = itertools.count(1)
        self._dates = DateLine()

    def mail_refusal(self) -> str:
        """Return why no message can be taken now, "" if it can. Cheaper for both sides than to refuse the content."""
        if self._full():
            return FULL  # RFC 5321 §4.2.3: 452 says that storage is short, and that the client may try again later
        if not self._ready():
            return "451 4.3.0 Error: no majority of the cluster is in reach, try again later"
        return ""

    def take_recipient(self, session: Client, envelope: Transaction, address: str) -> str:
        """Add one recipient to the envelope, or return the refusal; "": taken."""
        _, at, domain = address.rpartition("@")
        if not at:
            address = self._policy.postmaster
            if address in envelope.rcpt_tos:
                return ""
        elif not session.may_relay and not self._policy.is_local(domain):
            return "550 5.7.1 Error: relaying denied"
        envelope.rcpt_tos.append(address)
        return ""

    def commit(self, server: Server, session: Client, envelope: Transaction, answered: Callable[[str], None]) -> None:
        """Commit the message; `answered` is called once, perhaps before this returns, with the reply to the final dot.

        "": nobody knows whether it is committed, and nothing may be said.
        """
        if count_received(envelope.content_blocks) > self._settings.max_received_headers:
            answered("554 5.4.6 Error: too many hops")
            return
        if self._full():
            answered(FULL)
            return
        transaction_id = f"{self._instance}-{next(self._transactions):x}"
        content = self._with_trace(session, envelope, transaction_id)
        mail = Envelope(
            sender=envelope.mail_from or "",
            recipients=tuple(envelope.rcpt_tos),
            smtputf8=envelope.smtp_utf8,
            body_8bitmime=envelope.body_8bitmime or not envelope.content_ascii,
            client_host=session.client_host,
            helo=session.host_name or "",
        )
        started = monotonic()
        size_bytes = envelope.size_bytes
        envelope.handed_over = True

        def done(message: MessageId | None, error: Exception | None) -> None:
            if message is not None:
                waited_ms = round((monotonic() - started) * 1000, 1)
                answered(f"250 2.0.0 Ok: queued as {message}")
                if log.isEnabledFor(logging.INFO):  # the client need not wait for it
                    self._log_reception(message, transaction_id, mail, size_bytes, waited_ms, server.gone)
                return
            try:
                reply = self._failed(transaction_id, mail, error)
            except Exception:
                log.exception("outcome unknown trace=%s client=%s", transaction_id, mail.client_host)
                reply = ""
            answered(reply)

        self._submit(mail, content, deadline_s=self._settings.commit_timeout_s, done=done)

    def _log_reception(
        self, message: MessageId, trace: str, mail: Envelope, size_bytes: int, waited_ms: float, gone: bool
    ) -> None:
        count = len(mail.recipients)
        left = "true" if gone else "false"
        values = (message, trace, mail.client_host, mail.helo, mail.sender, count, size_bytes, waited_ms, left)
        try:
            tell(log, MessageEvent(RECEPTION, values))
        except Exception:
            log.exception("a reception was not logged id=%s", message)

    def _failed(self, transaction_id: str, mail: Envelope, error: Exception | None) -> str:
        """Return the reply to a message that the cluster has not taken, or may not have."""
        match error:
            case NotReplicated():
                log.warning("not replicated trace=%s client=%s error=%r", transaction_id, mail.client_host, error)
                if self._full():
                    return FULL
                return "451 4.3.0 Error: the message could not be replicated, try again later"
            case Stopped():
                return f"421 4.3.2 {self._settings.hostname} Service shutting down"
            case OutcomeUnknown():
                log.warning("outcome unknown trace=%s client=%s error=%r", transaction_id, mail.client_host, error)
            case _:
                # We cannot tell how far it got.
                log.error("outcome unknown trace=%s client=%s", transaction_id, mail.client_host, exc_info=error)
        self._statistics.outcomes_unknown += 1
        return ""

    # The same as hooks of aiosmtpd's, for the engine of that name.

    async def handle_MAIL(
        self, server: Connection, session: Client, envelope: Transaction, address: str, options: list[str]
    ) -> str:
        """Take or refuse a message."""
        return self.mail_refusal() or "250 2.1.0 Ok"

    async def handle_RCPT(
        self, server: Connection, session: Client, envelope: Transaction, address: str, options: list[str]
    ) -> str:
        """Take or refuse one recipient."""
        return self.take_recipient(session, envelope, address) or "250 2.1.5 Ok"

    async def handle_DATA(self, server: Connection, session: Client, envelope: Transaction) -> str:
        """Commit the message and say so.

        Raises:
            SessionOver: nobody knows whether it is committed.
        """
        replied: asyncio.Future[str] = server.loop.create_future()

        def answered(reply: str) -> None:
            if not replied.done():
                replied.set_result(reply)

        self.commit(server, session, envelope, answered)
        try:
            reply = await replied
        except asyncio.CancelledError:
            log.warning("outcome unknown client=%s error='server closed'", session.client_host)
            raise
        if not reply:
            raise SessionOver(reason="outcome unknown")
        return reply

    def _with_trace(self, session: Client, envelope: Transaction, transaction_id: str) -> list[bytes]:
        """Return the content with our `Received:` line before it; empties `envelope.content_blocks`."""
        protocol = "ESMTP" if session.extended_smtp else "SMTP"
        if envelope.smtp_utf8:
            protocol = "UTF8SMTP"  # RFC 6531 §4.3
        line = received_line(
            helo=session.host_name or "",
            client_host=session.client_host,
            hostname=self._settings.hostname,
            protocol=protocol,
            transaction_id=transaction_id,
            recipient=envelope.rcpt_tos[0] if len(envelope.rcpt_tos) == 1 else "",
            date=self._dates.at(self._clock()),
        )
        blocks = envelope.content_blocks
        envelope.content_blocks = []
        if blocks and blocks[0][:1] in (b" ", b"\t"):
            line += b"\r\n"  # no header: its first line would be read as the continuation of ours
        return [line, *blocks]
