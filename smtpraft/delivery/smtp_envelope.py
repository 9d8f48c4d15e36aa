"""The envelope of one transaction as SMTP commands, and what the replies to them mean. No I/O.

A recipient's answer stays None while the server has accepted the recipient and not yet the message: nothing but a reply
to the final dot can make that a delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from smtpraft.delivery import addresses
from smtpraft.delivery.attempt import GONE_STATUS, Answer, Transaction, Verdict, answer_of, deferred, failed
from smtpraft.delivery.smtp_wire import Extensions, Reply

MAIL: Final = "MAIL FROM"
RCPT: Final = "RCPT TO"


class EnvelopePlan:
    """`commands` (MAIL, then a RCPT for each recipient that can be asked for) and how to read the replies to them.

    No commands: every recipient has its answer without asking.
    """

    __slots__ = ("_answers", "_asked", "all_refused", "commands")

    def __init__(self, transaction: Transaction, extensions: Extensions, peer: str) -> None:
        self._answers: list[Answer | None] = [None] * len(transaction.recipients)
        self._asked: list[int] = []
        self.commands: list[bytes] = []
        self.all_refused = False
        """Did the server refuse every RCPT in so many words?"""
        refusal = self._plan(transaction, extensions, peer)
        if refusal is not None:
            self._answers = [answer or refusal for answer in self._answers]
            self.commands = []

    def _plan(self, transaction: Transaction, extensions: Extensions, peer: str) -> Answer | None:
        """Fill in the commands, or return why the message as a whole cannot be offered to this server."""
        size_bytes = transaction.size_bytes
        if 0 < extensions.size_bytes_max < size_bytes:
            text = f"message of {size_bytes} bytes is larger than the {extensions.size_bytes_max} that {peer} takes"
            return failed("5.3.4", text, MAIL)
        eight_bit = not all(block.isascii() for block in transaction.content)
        if eight_bit and not extensions.eight_bit:
            # RFC 6152 §3: convert or return. We do not convert: it would break every signature.
            return failed("5.6.3", f"message has 8-bit text, which {peer} does not take", MAIL)
        # A message is internationalised if an address or a header is (RFC 6531 §3.2), whatever its client declared.
        utf8 = transaction.smtputf8 and eight_bit and not _headers(transaction.content).isascii()
        if utf8 and not extensions.smtputf8:
            return failed("5.6.7", f"message has UTF-8 headers and {peer} does not offer SMTPUTF8", MAIL)
        sender = _path(transaction.sender, extensions, MAIL, peer) if transaction.sender else b""
        if isinstance(sender, Answer):
            return sender
        self.commands.append(b"")
        for i, recipient in enumerate(transaction.recipients):
            path = _path(recipient, extensions, RCPT, peer)
            if isinstance(path, Answer):
                self._answers[i] = path
                continue
            utf8 = utf8 or not path.isascii()
            self._asked.append(i)
            self.commands.append(b"RCPT TO:<%b>\r\n" % path)
        mail = b"MAIL FROM:<%b>" % sender
        if extensions.size:
            mail += b" SIZE=%d" % size_bytes
        if eight_bit:
            mail += b" BODY=8BITMIME"
        if utf8 or not sender.isascii():
            mail += b" SMTPUTF8"
        self.commands[0] = mail + b"\r\n"
        if not self._asked:
            self.commands = []
        return None

    def read(self, replies: Sequence[Reply], why: str) -> None:
        """Take the replies to the commands, in order; `why` says what happened if some are missing."""
        if not replies:
            self.settle(deferred(GONE_STATUS, f"{why} while waiting for the answer to {MAIL}", MAIL))
            return
        self.all_refused = len(replies) == len(self.commands) and all(reply.code >= 400 for reply in replies[1:])
        mail = answer_of(replies[0], MAIL)
        if mail.verdict is not Verdict.DELIVERED:
            self.settle(mail)
            return
        answers = [answer_of(reply, RCPT) for reply in replies[1 : len(self.commands)]]
        some = any(answer.verdict is Verdict.DELIVERED for answer in answers)
        for i, answer in zip(self._asked, answers, strict=False):
            if answer.verdict is not Verdict.DELIVERED:
                self._answers[i] = _not_now(answer) if some else answer
        if len(answers) < len(self._asked):
            self.settle(deferred(GONE_STATUS, f"{why} while waiting for the answer to {RCPT}", RCPT))

    @property
    def accepted(self) -> int:
        """How many recipients the server has accepted and not yet taken the message for."""
        return self._answers.count(None)

    def settle(self, answer: Answer) -> None:
        """Give `answer` to all who are accepted so far."""
        self._answers = [a or answer for a in self._answers]

    def settle_each(self, answers: Sequence[Answer]) -> None:
        """Give one answer to each who is accepted so far, in order (LMTP)."""
        each = iter(answers)
        self._answers = [a or next(each) for a in self._answers]

    def answers(self) -> list[Answer]:
        """Return everybody's answer, in the order of the transaction's recipients."""
        answers = [answer for answer in self._answers if answer is not None]
        assert len(answers) == len(self._answers), "a recipient was accepted and never settled"
        return answers


def _not_now(answer: Answer) -> Answer:
    """RFC 5321 §4.5.3.1.10: 452 (552 from older servers) after accepted recipients asks for another transaction."""
    too_many = {452: ("4.0.0", "4.5.3"), 552: ("5.5.3",)}
    return answer._replace(verdict=Verdict.NOT_NOW) if answer.status in too_many.get(answer.code, ()) else answer


def _path(address: str, extensions: Extensions, command: str, peer: str) -> bytes | Answer:
    """Return `address` as bytes that may stand between angle brackets, or why it may not."""
    try:
        addresses.check(address)
    except addresses.BadAddress as error:
        return failed("5.1.7" if command == MAIL else "5.1.3", str(error), command)
    if not address.isascii() and not extensions.smtputf8:
        plain = addresses.downgraded(address)
        if plain is None:
            return failed("5.6.7", f"address needs SMTPUTF8, which {peer} does not offer", command)
        address = plain
    return address.encode("utf-8")


def _headers(content: Sequence[bytes]) -> bytes:
    """Return the header section, or the first block if it does not end there."""
    first = content[0] if content else b""
    end = first.find(b"\r\n\r\n")
    return first if end < 0 else first[:end]
