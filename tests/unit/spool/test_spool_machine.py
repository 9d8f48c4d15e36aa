"""What the queue does with acceptance, outcomes, operators and nodes that come and go."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtpraft.cluster.machine import Applied, Item
from smtpraft.spool import commands
from smtpraft.spool.commands import Refusal
from smtpraft.spool.types import (
    BodyPart,
    Changes,
    Envelope,
    MessageId,
    Outcome,
    Recipient,
    RecipientState,
    deferred,
    delivered,
    expired,
    failed,
    index_of,
    message_id,
    number_of,
)
from smtpraft.types import NodeId

from .journal import ENVELOPE, NULL_SENDER, START_MS, TWO, A, B, Bench, C, recounted

BOUNCE = b"Subject: it came back\r\n\r\nsorry\r\n"


def first(bench: Bench, message: MessageId) -> Recipient:
    return bench.there(message).recipients[0]


def check_counters(bench: Bench, path: Path) -> None:
    counts = bench.machine.counts()
    assert recounted(str(path), A).items() <= counts.items()


# Acceptance


def test_an_accepted_message_is_queued_as_it_came(bench: Bench) -> None:
    envelope = Envelope("alice@example.org", ("bob@example.net",), True, True, "192.0.2.1", "mail.example.org", "alice")
    message = bench.accept(envelope, b"Subject: x\r\n\r\nbody\r\n")
    info = bench.there(message)
    assert index_of(message) == 1
    assert (info.id, info.owner, info.epoch, info.accepted_by) == (message, A, 1, A)
    assert (info.sender, info.smtputf8, info.body_8bitmime) == ("alice@example.org", True, True)
    assert (info.client_host, info.helo, info.auth) == ("192.0.2.1", "mail.example.org", "alice")
    assert info.recipients == (Recipient(0, "bob@example.net"),)
    assert (info.size_bytes, info.accepted_ms) == (20, START_MS + 1000)
    assert (info.held, info.is_bounce, info.state) == (False, False, "queued")
    (part,) = info.parts
    assert bench.journal.read_entry(1)[part.offset : part.offset + part.length] == b"Subject: x\r\n\r\nbody\r\n"


def test_ids_follow_the_log(bench: Bench) -> None:
    messages = [bench.accept() for _ in range(5)]
    assert messages == [message_id(index) for index in range(1, 6)]
    assert [info.id for info in bench.queue()] == messages


def test_addresses_may_hold_any_letters(bench: Bench) -> None:
    envelope = Envelope("δοκιμή@παράδειγμα.δοκιμή", ("用户@例子.广告", '"a b"@example.org', "x\x00y@example.org"), True)
    info = bench.there(bench.accept(envelope))
    assert info.sender == envelope.sender
    assert tuple(recipient.address for recipient in info.recipients) == envelope.recipients


def test_a_message_for_nobody_is_refused(bench: Bench) -> None:
    data = commands._encode(commands.ACCEPT, commands.AcceptHeader("a@example.org", [], 0, "", "", ""))
    assert bench.do(data) is Refusal.NO_RECIPIENTS
    assert bench.queue() == []


def test_an_empty_message_has_an_empty_part(bench: Bench) -> None:
    info = bench.there(bench.accept(body=b""))
    assert info.size_bytes == 0
    assert [part.length for part in info.parts] == [0]


# Outcomes


def test_a_delivered_message_leaves_the_queue_and_the_history_tells(bench: Bench) -> None:
    message = bench.accept()
    assert bench.outcome(message, delivered(first(bench, message), "250 2.0.0 Ok"))
    assert bench.get(message) is None
    ended = bench.machine.reader.ended(number_of(message))
    assert ended is not None
    assert (ended.id, ended.how, ended.node, ended.sender) == (message, "done", A, "alice@example.org")
    assert (ended.ended_index, ended.ended_ms, ended.accepted_ms) == (2, START_MS + 2000, START_MS + 1000)
    (recipient,) = ended.recipients
    assert (recipient.state, recipient.last_reply) == (RecipientState.DELIVERED, "250 2.0.0 Ok")


def test_a_deferred_recipient_waits_from_when_it_is_recorded(bench: Bench) -> None:
    message = bench.accept()
    assert bench.outcome(message, deferred(first(bench, message), 60_000, "451 later", "4.3.0"))
    info = bench.there(message)
    assert info.recipients[0] == Recipient(
        0,
        "bob@example.net",
        RecipientState.DEFERRED,
        attempts=1,
        next_attempt_ms=START_MS + 62_000,
        last_attempt_ms=START_MS + 2000,
        last_status="4.3.0",
        last_reply="451 later",
    )
    assert (info.state, info.next_attempt_ms) == ("deferred", START_MS + 62_000)
    assert bench.machine.reader.due(A, START_MS + 61_999, 10) == []
    assert bench.machine.reader.due(A, START_MS + 62_000, 10) == [info]
    assert bench.machine.reader.due(B, START_MS + 62_000, 10) == []


def test_each_recipient_ends_by_itself(bench: Bench) -> None:
    message = bench.accept(TWO)
    bob, carol = bench.there(message).recipients
    assert bench.outcome(message, delivered(bob))
    info = bench.there(message)
    assert [recipient.state for recipient in info.recipients] == [RecipientState.DELIVERED, RecipientState.QUEUED]
    assert info.open_recipients == (carol,)
    assert info.state == "queued"
    assert bench.outcome(message, delivered(carol))
    assert bench.get(message) is None


def test_a_failure_is_bounced_once(bench: Bench) -> None:
    """Q8: the bounce is in the transaction that records the failure, or not at all."""
    message = bench.accept()
    outcome = Outcome(message, index_of(message), (failed(first(bench, message), "550 no such user", "5.1.1"),), BOUNCE)
    assert bench.report(outcome) == (True,)
    assert bench.report(outcome) == (False,)
    (bounce,) = bench.queue()
    assert bounce.id == message_id(2, 1)
    assert (bounce.sender, bounce.is_bounce, bounce.owner, bounce.epoch) == ("", True, A, 2)
    assert [recipient.address for recipient in bounce.recipients] == ["alice@example.org"]
    (part,) = bounce.parts
    assert bench.journal.read_entry(2)[part.offset : part.offset + part.length] == BOUNCE


def test_several_bounces_of_one_command_are_told_apart(bench: Bench) -> None:
    messages = [bench.accept(Envelope(f"s{n}@example.org", ("bob@example.net",))) for n in range(3)]
    outcomes = [
        Outcome(
            message, index_of(message), (failed(first(bench, message), "550"),), b"bounce %d" % n if n != 1 else b""
        )
        for n, message in enumerate(messages)
    ]
    assert bench.report(*outcomes) == (True, True, True)
    bounces = bench.queue()
    assert [bounce.id for bounce in bounces] == [message_id(4, 1), message_id(4, 2)]
    assert [bounce.recipients[0].address for bounce in bounces] == ["s0@example.org", "s2@example.org"]
    entry = bench.journal.read_entry(4)
    bodies = [entry[part.offset : part.offset + part.length] for bounce in bounces for part in bounce.parts]
    assert bodies == [b"bounce 0", b"bounce 2"]


def test_a_message_with_the_null_sender_never_bounces(bench: Bench) -> None:
    """RFC 5321 §6.1: never an error message about an error message. It ends, and the history has it."""
    message = bench.accept(NULL_SENDER)
    assert bench.outcome(message, failed(first(bench, message), "550 no such user"), bounce=BOUNCE)
    assert bench.queue() == []
    ended = bench.machine.reader.ended(number_of(message))
    assert ended is not None
    assert ended.recipients[0].state is RecipientState.FAILED


def test_a_bounce_never_bounces(bench: Bench) -> None:
    message = bench.accept()
    bench.outcome(message, failed(first(bench, message), "550"), bounce=BOUNCE)
    (bounce,) = bench.queue()
    assert bench.outcome(bounce.id, failed(bounce.recipients[0], "550"), bounce=BOUNCE)
    assert bench.queue() == []
    assert bench.machine.counts()["bounces"] == 1


def test_expiry_ends_a_recipient_and_is_no_attempt(bench: Bench) -> None:
    message = bench.accept()
    bench.outcome(message, deferred(first(bench, message), 1, "451"))
    assert bench.outcome(message, expired(first(bench, message), "451"), bounce=BOUNCE)
    ended = bench.machine.reader.ended(number_of(message))
    assert ended is not None
    assert (ended.recipients[0].state, ended.recipients[0].attempts) == (RecipientState.EXPIRED, 1)
    assert [info.is_bounce for info in bench.queue()] == [True]


def test_a_delivery_carries_no_bounce(bench: Bench) -> None:
    message = bench.accept()
    assert bench.outcome(message, delivered(first(bench, message)), bounce=BOUNCE)
    assert bench.queue() == []


def test_a_result_from_who_does_not_own_the_message_changes_nothing(bench: Bench) -> None:
    message = bench.accept(node=A)
    assert not bench.outcome(message, failed(first(bench, message), "550"), bounce=BOUNCE, node=B)
    assert [info.id for info in bench.queue()] == [message]


def test_a_result_of_an_older_epoch_changes_nothing(bench: Bench) -> None:
    """Q4: epochs only grow, and a late writer is fenced, though it is the owner once more."""
    message = bench.accept(node=A)
    recipient = first(bench, message)
    late = Outcome(message, bench.there(message).epoch, (failed(recipient, "550"),), BOUNCE)
    bench.down(A, B)
    assert bench.report(late, node=A) == (False,)
    bench.up(A)
    bench.down(B, A)
    assert bench.there(message).owner == A
    assert bench.there(message).epoch == 5
    assert bench.report(late, node=A) == (False,)
    assert bench.outcome(message, delivered(recipient), node=A)


def test_a_repeated_report_counts_once(bench: Bench) -> None:
    """The first try's outcome was unknown; its second changes neither attempts nor schedule."""
    message = bench.accept()
    outcome = Outcome(message, index_of(message), (deferred(first(bench, message), 60_000, "451"),))
    assert bench.report(outcome) == (True,)
    before = bench.there(message)
    assert bench.report(outcome) == (False,)
    assert bench.there(message) == before


def test_an_outcome_is_all_or_nothing(bench: Bench) -> None:
    message = bench.accept(TWO)
    bob, carol = bench.there(message).recipients
    assert bench.outcome(message, delivered(bob))
    before = bench.there(message)
    assert not bench.outcome(message, delivered(bob), delivered(carol))
    assert not bench.outcome(message, delivered(carol), delivered(carol))
    assert not bench.outcome(message, delivered(Recipient(2, "x")))
    assert bench.there(message) == before


def test_an_outcome_for_no_message_changes_nothing(bench: Bench) -> None:
    assert bench.report(Outcome(message_id(99), 99, (delivered(Recipient(0, "x")),))) == (False,)


def test_bounces_that_do_not_add_up_are_refused(bench: Bench) -> None:
    message = bench.accept()
    header = commands.outcome_header(Outcome(message, 1, (failed(first(bench, message), "550"),), BOUNCE))
    assert bench.do(commands.encode_outcomes([header], [BOUNCE, b"x"])) is Refusal.MALFORMED
    assert bench.do(commands.encode_outcomes([header], [])) is Refusal.MALFORMED
    assert [info.id for info in bench.queue()] == [message]


# Operators


def operate(bench: Bench, op: int, *messages: MessageId) -> object:
    return bench.do(commands.encode_operator(op, [number_of(message) for message in messages]))


def test_a_held_message_waits_until_it_is_released(bench: Bench) -> None:
    one, two = bench.accept(), bench.accept()
    assert operate(bench, commands.HOLD, one, message_id(99)) == (1, 0)
    assert operate(bench, commands.HOLD, one, one) == (0, 0)
    assert [info.state for info in bench.queue()] == ["held", "queued"]
    assert operate(bench, commands.RELEASE, one, two) == (1, 0)
    assert [info.state for info in bench.queue()] == ["queued", "queued"]


def test_a_held_message_is_never_due_and_not_flushed(bench: Bench) -> None:
    message = bench.accept()
    bench.outcome(message, deferred(first(bench, message), 60_000, "451"))
    operate(bench, commands.HOLD, message)
    assert bench.machine.reader.due(A, 2**62, 10) == []
    assert operate(bench, commands.FLUSH, message) == (0, 0)
    assert bench.there(message).next_attempt_ms == START_MS + 62_000


def test_the_result_of_an_attempt_counts_though_the_message_was_held_meanwhile(bench: Bench) -> None:
    message = bench.accept()
    recipient = first(bench, message)
    operate(bench, commands.HOLD, message)
    assert bench.outcome(message, delivered(recipient))
    assert bench.get(message) is None


def test_a_flushed_message_may_be_tried_now(bench: Bench) -> None:
    message = bench.accept(TWO)
    bob, carol = bench.there(message).recipients
    bench.outcome(message, deferred(bob, 60_000, "451"), deferred(carol, 90_000, "451"))
    assert bench.there(message).state == "deferred"
    assert operate(bench, commands.FLUSH, message) == (1, 0)
    info = bench.there(message)
    assert (info.state, info.next_attempt_ms) == ("queued", 0)
    assert [recipient.attempts for recipient in info.recipients] == [1, 1]
    assert operate(bench, commands.FLUSH, message) == (0, 0)


def test_a_deleted_message_is_gone_and_nobody_is_told(bench: Bench) -> None:
    message = bench.accept()
    recipient = first(bench, message)
    assert operate(bench, commands.DELETE, message) == (1, 0)
    assert operate(bench, commands.DELETE, message) == (0, 0)
    assert bench.queue() == []
    assert not bench.outcome(message, failed(recipient, "550"), bounce=BOUNCE)
    ended = bench.machine.reader.ended(number_of(message))
    assert ended is not None
    assert ended.how == "deleted"


def test_all_are_operated_on_in_bounded_steps(bench: Bench) -> None:
    messages = [bench.accept() for _ in range(5)]
    to = number_of(messages[3])
    assert bench.do(commands.encode_operator(commands.HOLD, None, 0, to, 3)) == (3, number_of(messages[2]))
    assert bench.do(commands.encode_operator(commands.HOLD, None, number_of(messages[2]), to, 3)) == (1, 0)
    assert [info.held for info in bench.queue()] == [True, True, True, True, False]


# Nodes


def test_the_queue_of_a_node_that_went_down_is_shared_evenly(bench: Bench) -> None:
    for number in range(10):
        bench.accept(node=(A, B)[number % 2])
    bench.down(A, B, C)
    owners = [info.owner for info in bench.queue()]
    assert owners[::2] == [B, C, B, C, B]  # the messages of a
    assert owners[1::2] == [B] * 5
    assert {info.epoch for info in bench.queue()[::2]} == {11}
    assert bench.machine.owners() == {B: 8, C: 2}
    assert bench.machine.counts()["moved"] == 5


def test_held_and_deferred_messages_move_too(bench: Bench) -> None:
    message = bench.accept()
    bench.outcome(message, deferred(first(bench, message), 60_000, "451"))
    operate(bench, commands.HOLD, message)
    before = bench.there(message)
    bench.down(A, B)
    after = bench.there(message)
    assert (after.owner, after.held, after.recipients) == (B, True, before.recipients)


def test_messages_keep_their_owner_while_nobody_can_take_them(bench: Bench) -> None:
    bench.up(A)
    message = bench.accept()
    bench.down(A)
    assert (bench.there(message).owner, bench.there(message).epoch) == (A, 2)
    bench.up(A)
    assert (bench.there(message).owner, bench.there(message).epoch) == (A, 2)


def test_the_next_node_up_takes_what_nobody_could_take(bench: Bench) -> None:
    """L3: or a message would wait for a node that never comes back."""
    bench.up(A)
    message = bench.accept()
    bench.down(A)
    bench.up(B)
    assert (bench.there(message).owner, bench.there(message).epoch) == (B, 4)
    bench.up(A)
    assert bench.there(message).owner == B


def test_a_node_is_not_its_own_heir(bench: Bench) -> None:
    message = bench.accept()
    bench.down(A, A, B)
    assert bench.there(message).owner == B


# What delivery is told


@pytest.fixture
def told(bench: Bench) -> list[Changes]:
    told: list[Changes] = []
    bench.machine.on_changes = told.append
    return told


def test_delivery_is_told_all_it_needs(bench: Bench, told: list[Changes]) -> None:
    message = bench.accept(TWO)
    assert told.pop() == Changes(1, accepted=(bench.there(message),))
    bob, carol = bench.there(message).recipients
    bench.outcome(message, deferred(bob, 60_000, "451"))
    assert told.pop() == Changes(2, deferred=(bench.there(message),))
    operate(bench, commands.HOLD, message)
    assert told.pop() == Changes(3, held=(message,))
    operate(bench, commands.RELEASE, message)
    assert told.pop() == Changes(4, released=(bench.there(message),))
    operate(bench, commands.FLUSH, message)
    assert told.pop() == Changes(5, flushed=(bench.there(message),))
    bob = bench.there(message).recipients[0]
    bench.outcome(message, failed(bob, "550"), delivered(carol), bounce=BOUNCE)
    (bounce,) = bench.queue()
    assert told.pop() == Changes(6, accepted=(bounce,), done=(message,))
    operate(bench, commands.DELETE, bounce.id)
    assert told.pop() == Changes(7, deleted=(bounce.id,))
    assert told == []


def test_delivery_is_told_what_moves(bench: Bench, told: list[Changes]) -> None:
    theirs, ours = bench.accept(node=B), bench.accept(node=A)
    told.clear()
    bench.down(B, A, C)
    assert told.pop() == Changes(3, moved_here=(bench.there(theirs),))
    bench.down(A, C)
    assert told.pop() == Changes(4, moved_away=(theirs, ours))


def test_what_moves_away_and_comes_back_in_one_batch_is_delivered(bench: Bench, told: list[Changes]) -> None:
    message = bench.accept(node=A)
    gone = bench.accept(node=A)
    told.clear()
    journal = bench.journal
    # A node that catches up may see in one batch that it was found down, came back, and took over in its turn.
    bench.machine.apply([journal.down(A, B, C), journal.up(A), journal.down(B, A)], b"")
    back, other = (message, gone) if bench.there(message).owner == A else (gone, message)
    assert bench.there(other).owner == C
    assert told.pop() == Changes(5, moved_here=(bench.there(back),), moved_away=(other,))


def test_what_others_own_is_not_told(bench: Bench, told: list[Changes]) -> None:
    message = bench.accept(node=B)
    operate(bench, commands.HOLD, message)
    bench.outcome(message, delivered(first(bench, message)), node=B)
    bench.machine.apply([bench.journal.skipped()], b"")
    assert told == []


def test_too_much_to_tell_is_read_again(bench: Bench, told: list[Changes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpraft.spool.touched.CHANGES_MAX", 2)
    monkeypatch.setattr("smtpraft.spool.queue.CHANGES_MAX", 2)
    messages = [bench.accept(node=B) for _ in range(3)]
    bench.down(B, A)
    assert told.pop() == Changes(4, resync=True)
    assert [info.id for info in bench.machine.reader.owned(A, 0, 10)[0]] == messages
    operate(bench, commands.HOLD, *messages)
    assert told.pop() == Changes(5, resync=True)
    bench.down(A, B)
    assert told.pop() == Changes(6, resync=True)


def test_a_message_that_came_and_went_in_one_batch_is_told_as_done(bench: Bench, told: list[Changes]) -> None:
    journal = bench.journal
    accept = commands.encode_accept(ENVELOPE, [b"x"])
    done = commands.encode_outcomes(
        [commands.outcome_header(Outcome(message_id(1), 1, (delivered(Recipient(0, "")),)))], []
    )
    assert bench.machine.apply([journal.command(accept), journal.command(done)], b"") == [message_id(1), (True,)]
    assert told.pop() == Changes(2, done=(message_id(1),))
    assert bench.queue() == []
    assert bench.machine.reader.ended(number_of(message_id(1))) is not None


# Time, counters, history


def test_the_machines_time_never_goes_back(bench: Bench) -> None:
    bench.accept()
    bench.journal.stamp = START_MS - 50_000
    assert bench.there(bench.accept()).accepted_ms == START_MS + 1000


def test_the_time_between_two_stamps_is_counted_here(tmp_path: Path) -> None:
    now = [100.0]
    bench = Bench(str(tmp_path / "spool.db"))
    bench.machine._monotonic = lambda: now[0]
    bench.accept()
    assert bench.machine.now_ms() == START_MS + 1000
    now[0] += 2.5
    assert bench.machine.now_ms() == START_MS + 3500
    bench.machine.close()


def test_the_counters_are_what_a_scan_would_find(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    one, two, three = bench.accept(TWO), bench.accept(node=B), bench.accept()
    check_counters(bench, path)
    bob, carol = bench.there(one).recipients
    bench.outcome(one, deferred(bob, 60_000, "451"), failed(carol, "550"), bounce=BOUNCE)
    check_counters(bench, path)
    operate(bench, commands.HOLD, two)
    bench.down(A, B)
    check_counters(bench, path)
    bench.up(A)
    bench.down(B, A)
    operate(bench, commands.DELETE, three)
    check_counters(bench, path)
    counts = bench.machine.counts()
    assert {name: counts[name] for name in ("accepted", "bounces", "deleted", "failed", "deferrals", "ended")} == {
        "accepted": 3,
        "bounces": 1,
        "deleted": 1,
        "failed": 1,
        "deferrals": 1,
        "ended": 1,
    }


def test_the_history_keeps_the_last_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpraft.spool.queue.HISTORY_MESSAGES", 3)
    messages = [bench.accept() for _ in range(5)]
    for message in messages:
        bench.outcome(message, delivered(first(bench, message)))
    known = [bench.machine.reader.ended(number_of(message)) is not None for message in messages]
    assert known == [False, False, True, True, True]


def test_the_history_of_a_crowd_tells_failures_first(bench: Bench) -> None:
    message = bench.accept(Envelope("a@example.org", tuple(f"r{n}@example.net" for n in range(50))))
    recipients = bench.there(message).recipients
    results = [delivered(recipient) for recipient in recipients[:45]] + [failed(r, "550") for r in recipients[45:]]
    assert bench.outcome(message, *results)
    ended = bench.machine.reader.ended(number_of(message))
    assert ended is not None
    assert [recipient.ordinal for recipient in ended.recipients] == [*range(45, 50), *range(15)]


def test_pages_are_in_order_and_complete(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtpraft.spool.reader.PAGE_MESSAGES", 3)
    messages = [bench.accept(node=(A, B)[number % 2]) for number in range(11)]
    reader = bench.machine.reader
    assert [info.id for info in reader.page(0, 100)] == messages
    assert [info.id for info in reader.page(0, 7)] == messages[:7]
    assert [info.id for info in reader.page(number_of(messages[6]), 100)] == messages[7:]
    page, after = reader.owned(B, 0, 4)
    assert [info.id for info in page] == messages[1:7:2], "one page"
    assert after == number_of(messages[5])


def test_what_cannot_be_delivered_now_is_passed_over_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue may be full of mail on hold, or that waits: to read all that at a start would cost a core for minutes."""
    monkeypatch.setattr("smtpraft.spool.reader.LOOK_MESSAGES", 4)
    messages = [bench.accept(node=B if number == 1 else A) for number in range(10)]
    operate(bench, commands.HOLD, messages[2])
    bench.outcome(messages[3], deferred(first(bench, messages[3]), 5000, "451"))
    bench.outcome(messages[8], deferred(first(bench, messages[8]), 1000, "451"))
    now_ms = bench.machine.now_ms()
    after: int | None = 0
    pages: list[list[str]] = []
    while after is not None:
        page, after = bench.machine.reader.owned(A, after, 100, now_ms + 2000)
        pages.append([info.id for info in page])
    assert pages == [[messages[0]], messages[4:8], messages[8:10], []]


def test_what_is_due_is_complete_and_soonest_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when many are due at the same millisecond, as after an outage of their destination."""
    monkeypatch.setattr("smtpraft.spool.reader.PAGE_MESSAGES", 3)
    messages = [bench.accept() for _ in range(11)]
    bench.journal.stamp = START_MS
    for number, message in enumerate(messages):
        bench.journal.stamp = START_MS
        bench.outcome(message, deferred(first(bench, message), 5000 if number < 7 else 1000, "451"))
    reader = bench.machine.reader
    assert [info.id for info in reader.due(A, 2**62, 100)] == messages[7:] + messages[:7]
    assert [info.id for info in reader.due(A, 2**62, 6)] == messages[7:] + messages[:2]


def test_queries_use_their_indexes(bench: Bench) -> None:
    connection = bench.machine._store._connection
    assert connection is not None
    due = (
        "EXPLAIN QUERY PLAN SELECT id FROM messages WHERE owner = ? AND due_ms > 0 AND due_ms <= ?"
        " AND (due_ms, id) > (?, ?) AND held = 0 ORDER BY due_ms, id LIMIT ?"
    )
    plan = [str(row[3]) for row in connection.execute(due, ("a", 1, 0, 0, 1))]
    assert len(plan) == 1, "no sorting"
    assert "messages_due" in plan[0]


def test_a_queue_of_a_hundred_thousand_is_listed_in_pages(bench: Bench) -> None:
    data = commands.encode_accept(ENVELOPE, [b"x"])
    for _ in range(10):
        items: list[Item] = [bench.journal.command(data, NodeId("abc"[n % 3])) for n in range(10_000)]
        bench.machine.apply(items, b"")
    after, count = 0, 0
    while page := bench.machine.reader.page(after, 20_000):
        assert number_of(page[0].id) > after
        after, count = number_of(page[-1].id), count + len(page)
    assert count == 100_000
    assert bench.machine.counts()["messages"] == 100_000
    assert len(bench.machine._queue._messages) <= 20_000, "memory does not grow with the queue"
    bench.down(C, A, B)
    assert bench.machine.owners() == {A: 33_340 + 16_665, B: 33_330 + 16_665}


def test_a_fresh_machine_has_applied_nothing(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "spool.db"))
    assert bench.machine.digest() == (0, 0)
    assert bench.machine.digest_now() == ("00" * 32, 0)
    bench.machine.apply([bench.journal.skipped()], b"the cluster's")
    bench.machine.close()
    again = Bench(str(tmp_path / "spool.db"))
    again.machine.close()
    assert again.machine.open() == Applied(1, b"the cluster's", 1)
    again.machine.close()


def test_a_part_is_named_by_its_entry(bench: Bench) -> None:
    info = bench.there(bench.accept(body=b"12345"))
    assert info.parts == (BodyPart(1 << 12, len(bench.journal.read_entry(1)) - 5, 5),)
