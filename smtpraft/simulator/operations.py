"""The commands that simulated clients send: each carries a number of its own, so that it can be found in the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from smtpraft.spool import commands
from smtpraft.spool.keyvalues import ABSENT
from smtpraft.spool.types import (
    Envelope,
    MessageId,
    Outcome,
    RecipientState,
    Result,
    id_of_entry,
    index_of,
    number_of,
)

KEYS: Final = ("a", "b", "c")
_MARK: Final = 2**60
"""Message numbers above it name no message: an operator's command carries its own number so."""


@dataclass(slots=True)
class Wanted:
    """One command. `key` and `expected` are of the key-value map; `value` is what it puts there, None deletes."""

    command: bytes
    key: str = ""
    value: bytes | None = None
    expected: int | None = None
    foreseen: Callable[[int], object] | None = None
    """What the machine will answer, given the index of the entry; as `spool.client` says it."""
    patient: bool = False
    """Is whoever wants it content with the commit, and in no hurry for the answer? As `spool.reports` is."""


@dataclass(slots=True)
class Knowledge:
    """What all clients together know of the queue and the map, and use for what they want next."""

    messages: list[MessageId] = field(default_factory=list)
    attempts: dict[MessageId, int] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    uploads: int = 0


def want(number: int, known: Knowledge, random: Random) -> Wanted:
    """Return the next command, with `number` in it."""
    wanted = _want(number, known, random)
    wanted.patient = wanted.foreseen is None and random.random() < 0.6
    return wanted


def _want(number: int, known: Knowledge, random: Random) -> Wanted:
    draw = random.random()
    if draw < 0.35 or (draw >= 0.65 and not known.messages):
        return Wanted(_accept(number, random), foreseen=id_of_entry)
    if draw < 0.65:
        return _key(number, known, random)
    if draw < 0.85:
        return Wanted(_outcome(number, known, random))
    if draw < 0.95:
        return Wanted(_operate(number, known, random))
    known.uploads += 1
    return Wanted(commands.encode_chunk(1 + known.uploads % 3, random.randrange(2), [_body(number, random)]))


def _body(number: int, random: Random) -> bytes:
    return b"%d %s" % (number, b"." * random.choice((0, 10, 100, 400, 1500, 4000)))


def _accept(number: int, random: Random) -> bytes:
    sender = random.choice(("a@example.org", "", "é@example.org"))
    recipients = tuple(f"{name}@example.net" for name in "bcd"[: random.choice((1, 1, 2, 3))])
    return commands.encode_accept(Envelope(sender, recipients, smtputf8=not sender.isascii()), [_body(number, random)])


def _key(number: int, known: Knowledge, random: Random) -> Wanted:
    key = random.choice(KEYS)
    expected = known.revisions.get(key, ABSENT) if random.random() < 0.4 else None
    if random.random() < 0.15:
        return Wanted(commands.encode_key(commands.KEY_DELETE, key, expected, b""), key, None, expected)
    value = b"%d " % number
    return Wanted(commands.encode_key(commands.KEY_PUT, key, expected, value), key, value, expected)


def _outcome(number: int, known: Knowledge, random: Random) -> bytes:
    message = random.choice(known.messages[-20:])
    attempt = known.attempts.get(message, 0) + 1
    known.attempts[message] = attempt
    state = random.choice((RecipientState.DELIVERED, RecipientState.DEFERRED, RecipientState.FAILED))
    reply = f"{number} so it is"
    results = (Result(0, attempt, state, random.choice((0, 1000)), "4.0.0", reply),)
    bounce = b"Subject: it failed\r\n\r\n" if state is RecipientState.FAILED and random.random() < 0.7 else b""
    outcome = Outcome(message, index_of(message), results, bounce)
    return commands.encode_outcomes([commands.outcome_header(outcome)], [bounce] if bounce else [])


def _operate(number: int, known: Knowledge, random: Random) -> bytes:
    op = random.choice(commands.OPERATOR_OPS)
    return commands.encode_operator(op, [number_of(random.choice(known.messages[-20:])), _MARK + number])


def number_in(command: bytes) -> int | None:
    """Return the number of a command; None if it has none, as a deletion of a key."""
    decoded = commands.decode(command)
    assert not isinstance(decoded, commands.Refusal), decoded
    op, header, body_offset = decoded
    match header:
        case commands.OutcomesHeader():
            return int(header.outcomes[0].results[0].reply.split(" ", 1)[0])
        case commands.OperatorHeader():
            assert header.numbers is not None
            return header.numbers[-1] - _MARK
        case _ if op == commands.KEY_DELETE:
            return None
        case _:
            return int(command[body_offset:].split(b" ", 1)[0])
