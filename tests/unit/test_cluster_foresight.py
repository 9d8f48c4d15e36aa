"""What is answered at the commit, and what is left to the machine."""

from __future__ import annotations

import asyncio

import pytest

from smtpraft import fastlog
from smtpraft.cluster import envelope
from smtpraft.cluster.foresight import Foresight
from smtpraft.cluster.members import Member, encode_found
from smtpraft.cluster.proposals import Proposals
from smtpraft.errors import Fatal, NotReplicated, OutcomeUnknown
from smtpraft.types import NodeId

ME, OTHER = NodeId("n1"), NodeId("n2")
SESSION = 5


class Desk:
    """The proposals of a node in session 5, and a log that goes on at index 10."""

    def __init__(self) -> None:
        self.proposals = Proposals(ME, max_pending_bytes=1 << 20)
        self.proposals.open_wanted()
        self.proposals.session_opened(SESSION, self.proposals.nonce)
        self.foresight = Foresight(ME, self.proposals)
        self.next_index = 10

    def submit(self, *, foreseen: bool = True) -> tuple[asyncio.Future[object], bytes]:
        """Return the future of a new command and the payload that is proposed for it."""
        answer = (lambda index: f"id-{index}") if foreseen else None
        future = self.proposals.submit(b"command", asyncio.get_running_loop(), 1e9, 5.0, answer)
        [payload] = self.proposals.take(0.0)
        return future, payload

    def commit(self, *payloads: bytes, kind: int = fastlog.ENTRY_NORMAL) -> None:
        """Commit entries with these payloads, one block for all."""
        block = fastlog.encode_entries(1, self.next_index, 0, kind, payloads)
        self.next_index += len(payloads)
        self.foresight.committed([memoryview(block)])


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_a_committed_command_is_answered_before_the_machine_has_worked(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(b"", payload)
    assert future.result() == "id-11"
    desk.proposals.resolved(SESSION, 1, "id-11")
    assert len(desk.proposals) == 0
    assert desk.proposals.pending_bytes == 0


async def test_a_second_copy_answers_nobody(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(payload, payload)
    assert future.result() == "id-10"


async def test_what_nobody_foresees_waits_for_the_machine(desk: Desk) -> None:
    future, payload = desk.submit(foreseen=False)
    desk.commit(payload)
    assert not future.done()
    desk.proposals.resolved(SESSION, 1, "by the machine")
    assert future.result() == "by the machine"


async def test_a_machine_that_answers_otherwise_stops_the_node(desk: Desk) -> None:
    _, payload = desk.submit()
    desk.commit(payload)
    with pytest.raises(Fatal, match="id-10"):
        desk.proposals.resolved(SESSION, 1, "refused")


def proposed(desk: Desk, errors: list[Exception | None]) -> bytes:
    """Return the payload of a command whose giver is told of the commit, and of the answer in `errors`."""
    desk.proposals.propose(b"command", lambda _, error: errors.append(error), 10.0, 5.0, committed=lambda: None)
    [payload] = desk.proposals.take(0.0, in_company=True)
    return payload


async def test_what_is_called_committed_is_neither_repeated_nor_withdrawn_however_long_the_machine_takes(
    desk: Desk,
) -> None:
    errors: list[Exception | None] = []
    desk.commit(proposed(desk, errors))
    for now in (1.5, 4.0, 10.5, 16.0, 60.0):
        desk.proposals.sweep(now)
        desk.proposals.retry_all()
        assert desk.proposals.take(now, in_company=True) == []
    assert (errors, len(desk.proposals), desk.proposals.pending_bytes) == ([], 1, 0)
    desk.proposals.propose(b"next", lambda *_: None, 1e9, 5.0)
    [payload] = desk.proposals.take(60.0)
    assert envelope.unpack_command(payload)[3] == 2, "the sessions of all nodes would remember all that follows"
    desk.proposals.resolved(SESSION, 1, "by the machine")
    assert (errors, len(desk.proposals)) == ([None], 1)


async def test_what_is_called_committed_and_not_applied_stops_the_node(desk: Desk) -> None:
    desk.commit(proposed(desk, []))
    with pytest.raises(Fatal, match="called committed, but not applied at 10"):
        desk.foresight.applied(10)


async def test_of_what_is_called_committed_a_snapshot_does_not_tell_the_answer(desk: Desk) -> None:
    errors: list[Exception | None] = []
    desk.commit(proposed(desk, errors))
    desk.proposals.overtaken(SESSION, 2, ())
    desk.foresight.applied(20)
    assert [type(error) for error in errors] == [OutcomeUnknown]
    assert len(desk.proposals) == 0


async def test_a_node_that_stops_leaves_nobody_waiting_for_the_machine(desk: Desk) -> None:
    errors: list[Exception | None] = []
    desk.commit(proposed(desk, errors))
    desk.proposals.close()
    assert [type(error) for error in errors] == [OutcomeUnknown]
    assert len(desk.proposals) == 0


async def test_a_command_withdrawn_before_it_was_committed_is_not_answered(desk: Desk) -> None:
    """RFC 5321 §4.2.5: what is answered 4yz is never delivered, and what is answered 250 is."""
    future, payload = desk.submit()
    desk.commit(envelope.encode_cancel(SESSION, 1), payload)
    assert not future.done()
    desk.proposals.cancelled(SESSION, 1)
    with pytest.raises(NotReplicated):
        future.result()


async def test_a_command_behind_the_end_of_its_session_is_not_answered(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(envelope.encode_down(SESSION, [OTHER]), payload)
    assert not future.done()


async def test_a_command_before_the_end_of_its_session_is_answered(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(payload, envelope.encode_down(SESSION, [OTHER]))
    assert future.result() == "id-10"


async def test_the_end_of_another_session_changes_nothing(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(envelope.encode_down(SESSION - 1, [OTHER]), payload)
    assert future.result() == "id-11"


async def test_a_command_behind_a_new_session_of_this_node_is_not_answered(desk: Desk) -> None:
    """A second process of this node, or a repeat of an older OPEN, takes the session away."""
    future, payload = desk.submit()
    desk.commit(envelope.encode_open(b"x" * envelope.NONCE_BYTES, ME), payload)
    assert not future.done()


async def test_a_repeat_of_the_sessions_own_open_changes_nothing(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(envelope.encode_open(desk.proposals.nonce, ME), payload)
    assert future.result() == "id-11"


async def test_a_new_session_of_another_node_changes_nothing(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(envelope.encode_open(b"x" * envelope.NONCE_BYTES, OTHER), payload)
    assert future.result() == "id-11"


async def test_behind_entries_that_were_not_seen_nothing_is_answered_until_they_are_applied(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.foresight.unseen(desk.next_index)
    desk.next_index += 1
    desk.commit(payload)
    assert not future.done()
    desk.foresight.applied(desk.next_index - 1)
    later, payload = desk.submit()
    desk.commit(payload)
    assert later.result() == f"id-{desk.next_index - 1}"


@pytest.mark.parametrize("garbage", [b"\x02short", b"\x03", b"\x00" + b"n" * 16, b"\x01short", b"\xff"])
async def test_entries_that_no_release_writes_are_passed_over(desk: Desk, garbage: bytes) -> None:
    future, payload = desk.submit()
    desk.commit(garbage, payload)
    assert future.result() == "id-11"


async def test_entries_that_are_no_commands_are_passed_over(desk: Desk) -> None:
    future, payload = desk.submit()
    desk.commit(payload, kind=fastlog.ENTRY_CONF_CHANGE_V2)
    assert not future.done()


async def test_who_is_content_with_the_commit_hears_of_it_and_is_answered_by_the_machine(desk: Desk) -> None:
    told: list[str] = []
    answers: list[object] = []
    desk.proposals.propose(
        b"command", lambda answer, _: answers.append(answer), 1e9, 5.0, committed=lambda: told.append("committed")
    )
    [payload] = desk.proposals.take(0.0, in_company=True)
    desk.commit(payload, payload)
    assert (told, answers) == (["committed"], [])
    desk.proposals.resolved(SESSION, 1, "by the machine")
    assert (told, answers) == (["committed"], ["by the machine"])


async def test_a_command_withdrawn_before_it_was_committed_is_not_said_to_be_committed(desk: Desk) -> None:
    told: list[str] = []
    desk.proposals.propose(b"command", lambda *_: None, 1e9, 5.0, committed=lambda: told.append("committed"))
    [payload] = desk.proposals.take(0.0, in_company=True)
    desk.commit(envelope.encode_cancel(SESSION, 1), payload)
    assert told == []


async def test_only_those_wait_for_the_machine_whom_nobody_else_answers(desk: Desk) -> None:
    proposals = desk.proposals

    def waiting() -> bool:
        return proposals.waiting

    assert not waiting()
    _, foreseen = desk.submit()
    proposals.propose(b"command", lambda *_: None, 1e9, 5.0, committed=lambda: None)
    [in_no_hurry] = proposals.take(0.0, in_company=True)
    assert not waiting()
    _, eager = desk.submit(foreseen=False)
    assert waiting()
    desk.commit(foreseen, in_no_hurry, eager)
    assert waiting()
    proposals.resolved(SESSION, 3, "by the machine")
    assert not waiting()
    proposals.resolved(SESSION, 2, "by the machine")
    assert not waiting()


async def test_once_a_withdrawal_is_committed_its_giver_waits_for_the_machine(desk: Desk) -> None:
    proposals = desk.proposals
    desk.submit()
    desk.commit(envelope.encode_cancel(SESSION, 1))
    before = proposals.waiting
    proposals.cancelled(SESSION, 1)
    assert (before, proposals.waiting) == (True, False)


async def test_what_is_not_seen_is_left_to_the_machine(desk: Desk) -> None:
    states = [desk.foresight.blind]
    desk.foresight.unseen(12)
    states.append(desk.foresight.blind)
    desk.foresight.applied(12)
    assert [*states, desk.foresight.blind] == [False, True, False]


@pytest.mark.parametrize(
    ("payload", "kind", "more"),
    [
        (envelope.encode_command(SESSION, 1, 1, b"command"), fastlog.ENTRY_NORMAL, False),
        (b"", fastlog.ENTRY_NORMAL, True),  # a leader's first
        (envelope.encode_down(SESSION, [OTHER]), fastlog.ENTRY_NORMAL, True),
        (envelope.encode_open(b"n" * envelope.NONCE_BYTES, OTHER), fastlog.ENTRY_NORMAL, True),
        (b"", fastlog.ENTRY_CONF_CHANGE_V2, True),
        (encode_found([Member(ME, 1, "127.0.0.1", 1)]), fastlog.ENTRY_NORMAL, True),
    ],
)
async def test_members_and_sessions_are_more_than_commands(desk: Desk, payload: bytes, kind: int, more: bool) -> None:
    block = fastlog.encode_entries(1, 10, 0, kind, [payload])
    assert desk.foresight.committed([memoryview(block)]) is more


def patient(desk: Desk) -> None:
    desk.proposals.propose(b"patient", lambda *_: None, 1e9, 5.0, committed=lambda: None)


async def test_what_is_in_no_hurry_goes_with_what_comes_next(desk: Desk) -> None:
    patient(desk)
    assert desk.proposals.has_some
    assert not desk.proposals.has_work(100.0)
    assert desk.proposals.take(100.0) == []
    desk.proposals.propose(b"command", lambda *_: None, 1e9, 5.0)
    assert desk.proposals.has_work(100.001)
    assert len(desk.proposals.take(100.001)) == 2


async def test_what_is_in_no_hurry_goes_with_what_others_propose(desk: Desk) -> None:
    patient(desk)
    assert len(desk.proposals.take(100.0, in_company=True)) == 1


async def test_what_is_in_no_hurry_goes_alone_in_the_end(desk: Desk) -> None:
    patient(desk)
    assert desk.proposals.take(100.0) == []
    turns: list[str] = []
    desk.proposals.hurry(lambda: turns.append("turn"))
    assert turns == ["turn"]
    assert desk.proposals.has_work(100.0)
    assert len(desk.proposals.take(100.0)) == 1
    desk.proposals.hurry(lambda: turns.append("turn"))
    assert turns == ["turn"]  # nothing waits
    patient(desk)
    assert desk.proposals.take(100.0) == []  # each waits anew


async def test_what_is_repeated_waits_for_nothing(desk: Desk) -> None:
    patient(desk)
    desk.proposals.take(100.0, in_company=True)
    desk.proposals.retry_all()
    assert len(desk.proposals.take(100.0)) == 1
