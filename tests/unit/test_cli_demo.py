"""The demo's bookkeeping, without a cluster: it must see what it is there to see."""

from __future__ import annotations

import asyncio
import itertools
from unittest.mock import Mock

from smtpraft.cli.demo.book import ID_FIELD, Book, Kill, Outcome
from smtpraft.cli.demo.messages import demo_messages, sample_messages
from smtpraft.cli.demo.sink import SinkSession

TRACE = b"Received: from a\r\n\tby b;\r\n Mon\r\nReceived: c\r\n"


def content_of(attempt_id: str, text: bytes = b"Received: own\r\n\r\nhello\r\n") -> bytes:
    return ID_FIELD + attempt_id.encode() + b"\r\n" + text


def book_with(attempt_id: str, outcome: Outcome, recipients: tuple[str, ...] = ("a",)) -> Book:
    book = Book()
    book.open(attempt_id, content_of(attempt_id), recipients)
    book.close(attempt_id, outcome)
    return book


def test_an_acknowledged_message_that_does_not_arrive_is_lost() -> None:
    book = book_with("1", Outcome.ACKNOWLEDGED)
    assert (book.lost, book.undelivered) == (1, 1)
    book.arrived(["a"], TRACE + content_of("1"))
    assert (book.lost, book.undelivered, book.repeated, book.damaged) == (0, 0, 0, 0)


def test_every_recipient_must_have_it() -> None:
    book = book_with("1", Outcome.ACKNOWLEDGED, ("a", "b"))
    book.arrived(["a"], content_of("1"))
    assert book.lost == 1
    book.arrived(["b"], content_of("1"))
    assert (book.lost, book.undelivered, book.repeated) == (0, 0, 0)


def test_a_second_copy_is_a_repeat() -> None:
    book = book_with("1", Outcome.ACKNOWLEDGED)
    for _ in range(3):
        book.arrived(["a"], content_of("1"))
    assert book.repeated == 2


def test_arriving_before_the_reply_counts_too() -> None:
    book = Book()
    book.open("1", content_of("1"), ("a",))
    book.arrived(["a"], content_of("1"))
    book.close("1", Outcome.ACKNOWLEDGED)
    assert (book.lost, book.undelivered) == (0, 0)


def test_a_refused_message_that_arrives_is_told() -> None:
    book = book_with("1", Outcome.REFUSED)
    book.arrived(["a"], content_of("1"))
    assert book.refused_but_delivered == 1


def test_an_unknown_outcome_may_go_either_way() -> None:
    book = book_with("1", Outcome.UNKNOWN)
    assert (book.lost, book.refused_but_delivered) == (0, 0)
    book.arrived(["a"], content_of("1"))
    assert (book.lost, book.refused_but_delivered) == (0, 0)


def test_a_changed_byte_is_damage_and_a_foreign_message_is_strange() -> None:
    book = book_with("1", Outcome.ACKNOWLEDGED)
    book.arrived(["a"], content_of("1")[:-3] + b"\r\n")
    book.arrived(["a"], b"X-Other: 1\r\n" + content_of("1"))
    book.arrived(["a"], content_of("2"))
    book.arrived(["z"], content_of("1"))
    assert (book.damaged, book.strange, book.misrouted, book.lost) == (1, 2, 1, 1)


def test_a_failover_is_measured_by_a_message_sent_after_the_kill() -> None:
    book = Book()
    book.kills.append(Kill("n", at=100.0))
    for attempt_id, sent_at in (("1", 99.0), ("2", 101.0)):
        book.open(attempt_id, b"", ())
        book.close(attempt_id, Outcome.ACKNOWLEDGED, sent_at)
        assert (book.kills[0].seconds is None) == (sent_at < 100)


def converse(*chunks: bytes) -> tuple[bytes, list[tuple[list[str], bytes]]]:
    got: list[tuple[list[str], bytes]] = []
    session = SinkSession(lambda recipients, content: got.append((recipients, content)))
    transport = Mock(spec=asyncio.Transport)
    session.connection_made(transport)
    for chunk in chunks:
        session.data_received(chunk)
    return b"".join(call.args[0] for call in transport.write.call_args_list), got


def test_the_sink_keeps_bytes_exactly_however_they_are_cut() -> None:
    script = (
        b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n..dot\r\nx\r\n...\r\n.\r\n"
        b"MAIL FROM:<s@t>\r\nRCPT TO:<e@f>\r\nDATA\r\n.\r\nQUIT\r\n"
    )
    expected = [(["a@b", "c@d"], b".dot\r\nx\r\n..\r\n"), (["e@f"], b"")]
    for size in (1, 2, 3, 5, 7, len(script)):
        replies, got = converse(*(script[start : start + size] for start in range(0, len(script), size)))
        assert got == expected, size
        assert replies.endswith(b"354 Go on\r\n250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n")


def test_the_mail_is_the_same_for_the_same_seed_and_fit_for_smtp() -> None:
    first, again = (list(itertools.islice(demo_messages(7), 40)) for _ in range(2))
    assert first == again
    for message in [*first, *sample_messages()]:
        assert message.endswith(b"\r\n")
        lines = message.split(b"\r\n")
        assert not any(b"\r" in line or b"\n" in line or b"\0" in line or len(line) > 998 for line in lines)
    assert any(len(message) > 16_000 for message in first)
