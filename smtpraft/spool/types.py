"""What the mail queue is made of, as its users see it: ids, envelopes, recipients, outcomes, and what changed.

A message id is 12 characters of Crockford's base 32 (no I, L, O, U), fixed width, so that ids sort as text in the order
of the log. Its number is `log index << 12 | ordinal`: ordinal 0 is the message an entry accepted, the others are the
bounces that an entry of outcomes made. Unique in the cluster for as long as it lives, because log indexes are.
"""

from __future__ import annotations

import enum
from typing import Final, NewType

import msgspec

from smtpraft.errors import SmtpRaftError
from smtpraft.types import NodeId

MessageId = NewType("MessageId", str)
"""A queue id, as `250 2.0.0 Ok: queued as ID` shows it."""

MESSAGE_ID_CHARS: Final = 12
ORDINAL_BITS: Final = 12
ORDINAL_MAX: Final = (1 << ORDINAL_BITS) - 1
INDEX_MAX: Final = (1 << (5 * MESSAGE_ID_CHARS - ORDINAL_BITS)) - 1  # 2**48: ninety years at 100,000 entries a second

CHUNK_BYTES: Final = 960 * 1024
"""A longer body travels in several entries, so that none comes near 1 MiB and no heartbeat waits behind one."""

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS: Final = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
_VALUES: Final = {pair: value for value, pair in enumerate(_PAIRS)}
_LENIENT: Final = str.maketrans("ILO", "110")  # Crockford: what the eye confuses, the reader forgives


class MessageNotFound(SmtpRaftError):
    """No such message is in the queue (any more): it was delivered, bounced or deleted, or never was."""


def message_id(index: int, ordinal: int = 0) -> MessageId:
    """Return the id of message `ordinal` of the entry at `index`.

    Raises:
        ValueError: `index` is not in 1 to 2**48 - 1, or `ordinal` not in 0 to 4095.
    """
    if not 1 <= index <= INDEX_MAX:
        raise ValueError(f"log index {index} has no message id: 1 to {INDEX_MAX}")
    if not 0 <= ordinal <= ORDINAL_MAX:
        raise ValueError(f"ordinal {ordinal} has no message id: 0 to {ORDINAL_MAX}")
    return id_of_number(index << ORDINAL_BITS | ordinal)


def id_of_number(number: int) -> MessageId:
    """Return the id whose number (`index << 12 | ordinal`) is `number`. Trusted input: the machine's own numbers."""
    pairs = _PAIRS
    return MessageId(
        pairs[number >> 50]
        + pairs[number >> 40 & 1023]
        + pairs[number >> 30 & 1023]
        + pairs[number >> 20 & 1023]
        + pairs[number >> 10 & 1023]
        + pairs[number & 1023]
    )


def number_of(message: str) -> int:
    """Return the number of an id: `index << 12 | ordinal`.

    Raises:
        ValueError: `message` is no message id.
    """
    if len(message) != MESSAGE_ID_CHARS:
        raise ValueError(f"{message!r} is no message id: {MESSAGE_ID_CHARS} characters of 0-9 A-Z without I, L, O, U")
    values = _VALUES
    try:
        number = (
            values[message[:2]] << 50
            | values[message[2:4]] << 40
            | values[message[4:6]] << 30
            | values[message[6:8]] << 20
            | values[message[8:10]] << 10
            | values[message[10:]]
        )
    except KeyError as error:
        raise ValueError(f"{message!r} is no message id: {error.args[0]!r} is not made of {_ALPHABET}") from None
    if number >> ORDINAL_BITS == 0:
        raise ValueError(f"{message!r} is no message id: there is no log index 0")
    return number


def id_of_entry(index: int) -> MessageId:
    """Return the id of the message that the entry at `index` accepts."""
    return id_of_number(index << ORDINAL_BITS)


def index_of(message: MessageId) -> int:
    """Return the log index whose entry holds the message's body, or the last part of it.

    Raises:
        ValueError: `message` is no message id.
    """
    return number_of(message) >> ORDINAL_BITS


def parse_message_id(text: str) -> MessageId:
    """Return what a person typed as an id: any case, `I` and `L` for 1, `O` for 0, spaces around it.

    Raises:
        ValueError: it is no message id even so.
    """
    message = text.strip().upper().translate(_LENIENT)
    number_of(message)
    return MessageId(message)


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """Who a message is from and for, and where we had it from. `sender` is "" for the null reverse-path `<>`."""

    sender: str
    recipients: tuple[str, ...]
    smtputf8: bool = False
    body_8bitmime: bool = False
    client_host: str = ""
    """The client's address, `192.0.2.1` or `IPv6:2001:db8::1`."""
    helo: str = ""
    auth: str = ""
    """The user the client logged in as; "" = none."""


class RecipientState(enum.StrEnum):
    """Where one recipient of a message stands. The last three are final: nothing leads out of them."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"

    final: bool

    def __init__(self, name: str) -> None:
        self.final = name not in ("queued", "deferred")  # no property: each recipient is asked again and again


class Recipient(msgspec.Struct, frozen=True, gc=False):
    """One recipient of a queued message. `ordinal` is its place in the envelope, and its name in an `Outcome`."""

    ordinal: int
    address: str
    state: RecipientState = RecipientState.QUEUED
    attempts: int = 0
    next_attempt_ms: int = 0
    """Machine time (`SpoolClient.now_ms`) before which it is not tried again; 0 = at once."""
    last_attempt_ms: int = 0
    """Machine time at which the last result was recorded; 0 = never tried."""
    last_status: str = ""
    """The enhanced status code of the last reply, `4.4.1`; "" = none."""
    last_reply: str = ""


class BodyPart(msgspec.Struct, frozen=True, gc=False):
    """Where a part of a body is: `length` bytes at `offset` of the command in the entry `number >> 12`.

    `number` is also the key of the copy that the spool keeps once the log has forgotten that entry.
    """

    number: int
    offset: int
    length: int


class MessageInfo(msgspec.Struct, frozen=True, gc=False):
    """A queued message, complete but for its bytes: enough to deliver it without another query."""

    id: MessageId
    owner: NodeId
    """The only node that may deliver it."""
    epoch: int
    """Which ownership this is: a result that names another epoch changes nothing."""
    sender: str
    recipients: tuple[Recipient, ...]
    """All of them, those that are final too."""
    size_bytes: int
    accepted_ms: int
    """Machine time of acceptance: milliseconds since 1970 by the leader's clock, never going back."""
    held: bool
    is_bounce: bool
    smtputf8: bool
    body_8bitmime: bool
    accepted_by: NodeId
    client_host: str
    helo: str
    auth: str
    parts: tuple[BodyPart, ...]

    @property
    def open_recipients(self) -> tuple[Recipient, ...]:
        """Those still to be delivered to."""
        recipients = self.recipients
        if len(recipients) == 1:  # nearly all messages
            return () if recipients[0].state.final else recipients
        return tuple([recipient for recipient in recipients if not recipient.state.final])

    @property
    def next_attempt_ms(self) -> int:
        """Machine time of the earliest next attempt; 0 = at once."""
        return min((recipient.next_attempt_ms for recipient in self.open_recipients), default=0)

    @property
    def state(self) -> str:
        """`held`, `queued` (a recipient may be tried at once) or `deferred` (all of them wait for another attempt)."""
        if self.held:
            return "held"
        return "deferred" if self.next_attempt_ms else "queued"


class Result(msgspec.Struct, frozen=True, gc=False):
    """What became of one attempt at one recipient. Made by `delivered`, `deferred`, `failed` and `expired` below.

    `attempt` is the number of the attempt, from 1. It makes a report that is repeated after an unknown outcome
    harmless: a result whose attempt is already recorded changes nothing.
    """

    ordinal: int
    attempt: int
    state: RecipientState
    delay_ms: int = 0
    """Deferred only: not before so many milliseconds after the result is recorded."""
    status: str = ""
    reply: str = ""


def delivered(recipient: Recipient, reply: str = "", status: str = "2.0.0") -> Result:
    """The destination took responsibility for `recipient`."""
    return Result(recipient.ordinal, recipient.attempts + 1, RecipientState.DELIVERED, 0, status, reply)


def deferred(recipient: Recipient, delay_ms: int, reply: str, status: str = "4.0.0") -> Result:
    """It did not work this time; the next attempt is due `delay_ms` after this is recorded."""
    return Result(recipient.ordinal, recipient.attempts + 1, RecipientState.DEFERRED, delay_ms, status, reply)


def failed(recipient: Recipient, reply: str, status: str = "5.0.0") -> Result:
    """It will never work. The outcome carries the bounce."""
    return Result(recipient.ordinal, recipient.attempts + 1, RecipientState.FAILED, 0, status, reply)


def expired(recipient: Recipient, reply: str = "", status: str = "4.4.7") -> Result:
    """It was tried for long enough (RFC 3463: 4.4.7, delivery time expired). The outcome carries the bounce."""
    return Result(recipient.ordinal, recipient.attempts + 1, RecipientState.EXPIRED, 0, status, reply)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What one session made of one message: results for some of its recipients, all or nothing.

    It counts only if `epoch` is the message's epoch, the reporter its owner, and every recipient named still open with
    this attempt unrecorded. `bounce` is the finished notification (headers and body, CRLF lines) about the failed and
    expired recipients here; it is queued to the message's sender exactly if the failure counts, in the same
    transaction, and never if that sender is null (RFC 5321 §6.1). Empty: the failure is recorded and nobody is told.
    """

    message: MessageId
    epoch: int
    results: tuple[Result, ...]
    bounce: bytes = b""
    bounce_smtputf8: bool = False


class EndedMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that left the queue: the tracing record of one of the last 10,000."""

    id: MessageId
    how: str
    """`done` (every recipient is final) or `deleted` (by an operator)."""
    accepted_ms: int
    ended_ms: int
    ended_index: int
    node: NodeId
    """The node that reported the last outcome, or that the operator spoke to."""
    sender: str
    size_bytes: int
    is_bounce: bool
    recipients: tuple[Recipient, ...]


WHENEVER_MS: Final = (1 << 63) - 1
"""Later than any time: due by then is everything."""


class Changes(msgspec.Struct, frozen=True, gc=False):
    """What one applied batch means for the delivery on this node: all of it is about messages that are or were its own.

    Order of application: if `resync` is set, forget everything and read `SpoolClient.owned` again: too much changed to
    tell one by one (a take-over of thousands, above all), and the lists are empty then. A message may be in several
    lists; `done`, `deleted` and `moved_away` win.
    """

    applied_index: int
    accepted: tuple[MessageInfo, ...] = ()
    """New here and to be delivered, our own bounces included."""
    moved_here: tuple[MessageInfo, ...] = ()
    """Taken over from a node that went down, each with its new epoch."""
    moved_away: tuple[MessageId, ...] = ()
    """Not ours any more: this node was found down. A result for one of them would change nothing."""
    deferred: tuple[MessageInfo, ...] = ()
    """Results were recorded and recipients are left; each with its new schedule."""
    held: tuple[MessageId, ...] = ()
    released: tuple[MessageInfo, ...] = ()
    flushed: tuple[MessageInfo, ...] = ()
    """An operator wants these tried now: all their waits are over."""
    deleted: tuple[MessageId, ...] = ()
    done: tuple[MessageId, ...] = ()
    resync: bool = False
