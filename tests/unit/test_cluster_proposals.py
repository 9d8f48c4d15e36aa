"""Proposals: repeated until they are seen applied, withdrawn when late, honest about what nobody can know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from smtpraft.cluster import envelope
from smtpraft.cluster.proposals import OPEN_RETRY_S, Proposals
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.types import NodeId

ME = NodeId("node-1")


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def proposals() -> Proposals:
    made = Proposals(ME, max_pending_bytes=1000)
    made.open_wanted()
    return made


def open_session(proposals: Proposals, session: int, now: float = 0.0) -> None:
    payload = proposals.take(now)[0]
    nonce, node = envelope.decode_open(payload)
    assert node == ME
    proposals.session_opened(session, nonce)


def commands(payloads: list[bytes]) -> list[tuple[int, bytes]]:
    return [
        (envelope.unpack_command(payload)[2], payload[envelope.COMMAND_HEADER_BYTES :])
        for payload in payloads
        if payload[0] == envelope.COMMAND
    ]


def test_nothing_is_proposed_before_a_session_is_open(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    proposals.submit(b"a", loop, 10.0, 5.0)
    assert commands(proposals.take(0.0)) == []
    assert not proposals.has_work(0.1)
    assert proposals.has_work(OPEN_RETRY_S)


def test_commands_leave_in_order_and_their_results_come_back(
    proposals: Proposals, loop: asyncio.AbstractEventLoop
) -> None:
    first = proposals.submit(b"a", loop, 10.0, 5.0)
    open_session(proposals, 5)
    second = proposals.submit(b"b", loop, 10.0, 5.0)
    assert commands(proposals.take(0.1)) == [(1, b"a"), (2, b"b")]
    proposals.resolved(5, 2, "B")
    proposals.resolved(5, 1, "A")
    assert (first.result(), second.result()) == ("A", "B")
    assert len(proposals) == 0
    assert proposals.pending_bytes == 0


def test_everything_unresolved_is_repeated_after_a_change_of_leader(
    proposals: Proposals, loop: asyncio.AbstractEventLoop
) -> None:
    open_session(proposals, 5)
    proposals.submit(b"a", loop, 10.0, 5.0)
    proposals.submit(b"b", loop, 10.0, 5.0)
    proposals.take(0.1)
    proposals.resolved(5, 1, None)
    proposals.retry_all()
    assert commands(proposals.take(0.2)) == [(2, b"b")]


def test_silence_is_met_with_a_repeat(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    proposals.submit(b"a", loop, 10.0, 5.0)
    proposals.take(0.1)
    proposals.sweep(0.5)
    assert commands(proposals.take(0.5)) == []
    proposals.sweep(1.2)
    assert commands(proposals.take(1.2)) == [(1, b"a")]


def test_what_never_left_is_withdrawn_at_once(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    future = proposals.submit(b"a", loop, 2.0, 5.0)
    proposals.sweep(2.0)
    with pytest.raises(NotReplicated):
        future.result()
    assert commands(proposals.take(2.1)) == []


def test_what_left_is_withdrawn_through_the_log(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    future = proposals.submit(b"a", loop, 2.0, 5.0)
    proposals.take(0.1)
    proposals.sweep(2.0)
    assert not future.done()
    assert proposals.take(2.0)[-1] == envelope.encode_cancel(5, 1)
    proposals.cancelled(5, 1)
    with pytest.raises(NotReplicated):
        future.result()


def test_a_command_applied_before_its_withdrawal_counts(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    future = proposals.submit(b"a", loop, 2.0, 5.0)
    proposals.take(0.1)
    proposals.sweep(2.0)
    proposals.take(2.0)
    proposals.resolved(5, 1, "A")
    proposals.cancelled(5, 1)
    assert future.result() == "A"


def test_if_neither_is_seen_the_outcome_is_unknown(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    future = proposals.submit(b"a", loop, 2.0, 5.0)
    proposals.take(0.1)
    proposals.sweep(2.0)
    proposals.take(2.0)
    proposals.sweep(7.0)
    with pytest.raises(OutcomeUnknown):
        future.result()
    later = proposals.submit(b"b", loop, 20.0, 5.0)
    _, _, seq, done_below = envelope.unpack_command(proposals.take(7.1)[-1])
    assert (seq, done_below) == (2, 2), "a copy of the first that is still under way must come too late"
    assert not later.done()


def test_a_closed_session_starts_its_commands_afresh(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    proposals.submit(b"a", loop, 10.0, 5.0)
    proposals.take(0.1)
    proposals.sessions_changed({NodeId("node-2"): 3})
    assert proposals.session == 0
    open_session(proposals, 9, now=0.2)
    assert commands(proposals.take(0.3)) == [(2, b"a")]


def test_the_session_of_a_former_process_is_not_ours(proposals: Proposals) -> None:
    proposals.take(0.0)
    proposals.session_opened(4, b"x" * 16)
    assert proposals.session == 0


def test_a_down_is_proposed_until_its_session_is_gone(proposals: Proposals) -> None:
    open_session(proposals, 5)
    down = envelope.encode_down(3, [ME])
    proposals.propose_down(3, down, leading_term=4)
    assert proposals.take(1.0, 4) == [down]
    assert proposals.take(1.1, 4) == []
    assert proposals.take(1.1 + OPEN_RETRY_S, 4) == [down]
    proposals.sessions_changed({ME: 5})
    assert proposals.take(9.0, 4) == []


def test_a_deposed_leader_never_hands_its_verdict_on(proposals: Proposals) -> None:
    """Who is down is for the leader of the term to say: its successor may have granted that lease meanwhile."""
    open_session(proposals, 5)
    proposals.propose_down(3, envelope.encode_down(3, [ME]), leading_term=4)
    assert proposals.take(1.0) == []
    assert proposals.take(1.0, 6) == [], "nor in a later term of its own"


def test_a_node_ends_its_own_session_through_whoever_leads(proposals: Proposals) -> None:
    open_session(proposals, 5)
    down = envelope.encode_down(5, [NodeId("node-2")])
    proposals.propose_down(5, down)
    assert proposals.take(1.0) == [down]


def test_too_many_bytes_are_refused_and_said_so(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    proposals.submit(b"a" * 900, loop, 10.0, 5.0)
    with pytest.raises(NotReplicated, match="900 bytes"):
        proposals.submit(b"b" * 200, loop, 10.0, 5.0)


def test_closing_leaves_nobody_waiting(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    sent = proposals.submit(b"a", loop, 10.0, 5.0)
    proposals.take(0.1)
    kept = proposals.submit(b"b", loop, 10.0, 5.0)
    proposals.close()
    with pytest.raises(OutcomeUnknown):
        sent.result()
    with pytest.raises(Stopped):
        kept.result()


def test_a_caller_that_gave_up_costs_nothing(proposals: Proposals, loop: asyncio.AbstractEventLoop) -> None:
    open_session(proposals, 5)
    future = proposals.submit(b"a", loop, 10.0, 5.0)
    future.cancel()
    proposals.take(0.1)
    proposals.resolved(5, 1, "A")
    assert proposals.pending_bytes == 0
