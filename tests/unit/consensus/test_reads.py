"""Linearizable reads without a log entry (Raft §8, thesis §6.4)."""

from __future__ import annotations

import pytest

from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2, MessageType, ProposalDropped, ReadState

from .solo import N1, N2, N3, Solo, of_type

HEARTBEAT, HEARTBEAT_RESP = MessageType.HEARTBEAT, MessageType.HEARTBEAT_RESP


def test_a_majority_of_heartbeat_answers_makes_a_read_safe() -> None:
    """The leader is still the leader, so nothing newer was committed when it was asked."""
    solo = Solo()
    solo.lead_committed()
    solo.core.read_index(b"a")
    (first, _) = of_type(solo.outputs(), HEARTBEAT)
    assert solo.read_states == []
    solo.receive(HEARTBEAT_RESP, N3, context=first.context)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a")]


def test_one_round_of_heartbeats_serves_all_reads_of_a_turn() -> None:
    solo = Solo()
    solo.lead_committed()
    for number in range(100):
        solo.core.read_index(b"%d" % number)
    beats = of_type(solo.outputs(), HEARTBEAT)
    assert len(beats) == 2
    solo.receive(HEARTBEAT_RESP, N2, context=beats[0].context)
    solo.outputs()
    assert len(solo.read_states) == 100


def test_a_round_confirms_no_read_that_came_after_it() -> None:
    """Its heartbeats may have been answered before a newer leader committed something."""
    solo = Solo()
    solo.lead_committed()
    solo.core.read_index(b"a")
    first = of_type(solo.outputs(), HEARTBEAT)[0].context
    solo.core.read_index(b"b")
    second = of_type(solo.outputs(), HEARTBEAT)[0].context
    solo.receive(HEARTBEAT_RESP, N2, context=first)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a")]
    solo.receive(HEARTBEAT_RESP, N2, context=second)
    solo.receive(HEARTBEAT_RESP, N3, context=second)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a"), ReadState(1, b"b")]


def test_heartbeats_that_are_due_anyway_carry_the_reads_that_wait() -> None:
    """The round may have been lost."""
    solo = Solo()
    solo.lead_committed()
    solo.core.read_index(b"a")
    solo.outputs()
    solo.core.tick()
    solo.receive(HEARTBEAT_RESP, N2, context=of_type(solo.outputs(), HEARTBEAT)[0].context)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a")]


@pytest.mark.parametrize("voters", [(N1, N2, N3), (N1,)])
def test_a_read_waits_until_the_leader_has_committed_in_its_term(voters: tuple[str, ...]) -> None:
    """Thesis §6.4 step 1: before that it does not know what is committed; not even if it is alone."""
    solo = Solo(terms=[1], voters=voters)  # type: ignore[arg-type]
    solo.core.campaign()
    if len(voters) == 1:
        solo.store(1)
        solo.store(1)
    else:
        solo.lead()
    solo.core.read_index(b"a")
    assert of_type(solo.outputs(), HEARTBEAT) == []
    assert solo.read_states == []
    if len(voters) > 1:
        solo.ack(2, N2)
        (beat, _) = of_type(solo.outputs(), HEARTBEAT)
        solo.receive(HEARTBEAT_RESP, N2, context=beat.context)
    solo.settle()
    assert solo.read_states == [ReadState(2, b"a")]


def test_a_removed_leader_is_not_the_only_voter_there_is() -> None:
    """It must ask the one that is left."""
    solo = Solo(voters=[N1, N2], step_down_on_removal=False)
    solo.lead_committed()
    solo.core.apply_conf_change(ConfChangeV2((ChangeSingle(ChangeType.REMOVE_NODE, N1),)))
    solo.core.read_index(b"a")
    (beat,) = of_type(solo.outputs(), HEARTBEAT)
    assert solo.read_states == []
    solo.receive(HEARTBEAT_RESP, N2, context=beat.context)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a")]


def test_followers_pass_reads_on_and_get_the_answer() -> None:
    solo = Solo()
    with pytest.raises(ProposalDropped):
        solo.core.read_index(b"a")
    solo.receive(HEARTBEAT, N2, term=1)
    solo.core.read_index(b"a")
    (sent,) = of_type(solo.outputs(), MessageType.READ_INDEX)
    assert (sent.to, sent.sender, sent.context) == (N2, N1, b"a")
    solo.receive(MessageType.READ_INDEX_RESP, N2, index=7, context=b"a")
    solo.outputs()
    assert solo.read_states == [ReadState(7, b"a")]


def test_a_leader_answers_who_asked() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.receive(MessageType.READ_INDEX, N3, term=0, context=b"a")
    (beat, _) = of_type(solo.outputs(), HEARTBEAT)
    solo.receive(HEARTBEAT_RESP, N2, context=beat.context)
    (answer,) = of_type(solo.outputs(), MessageType.READ_INDEX_RESP)
    assert (answer.to, answer.index, answer.context) == (N3, 1, b"a")


def test_reads_of_a_lost_leadership_are_forgotten() -> None:
    """etcd#20418: an answer of the next term must not confirm them."""
    solo = Solo()
    solo.lead_committed()
    solo.core.read_index(b"a")
    (beat, _) = of_type(solo.outputs(), HEARTBEAT)
    solo.receive(HEARTBEAT, N2, term=2)
    solo.core.forget_leader()
    solo.lead()
    solo.receive(HEARTBEAT_RESP, N2, context=beat.context)
    solo.receive(HEARTBEAT_RESP, N3, context=beat.context)
    solo.settle()
    assert solo.read_states == []


def test_answers_with_numbers_never_sent_confirm_nothing() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.core.read_index(b"a")
    solo.outputs()
    solo.receive(HEARTBEAT_RESP, N2, context=(99).to_bytes(8, "big"))
    solo.core.read_index(b"b")
    solo.outputs()
    assert solo.read_states == []


def leased(held: bool = True) -> Solo:
    """A leader with lease reads whose followers' promises stand, or do not."""
    solo = Solo(lease_reads=True)
    for _ in range(10):
        solo.core.tick()
    solo.lead_committed()
    solo.core.lease_held = lambda: held
    return solo


def test_lease_reads_skip_the_round() -> None:
    solo = leased()
    solo.core.read_index(b"a")
    assert of_type(solo.outputs(), HEARTBEAT) == []
    assert solo.read_states == [ReadState(1, b"a")]
    solo.receive(MessageType.READ_INDEX, N3, term=0, context=b"b")
    (answer,) = of_type(solo.outputs(), MessageType.READ_INDEX_RESP)
    assert (answer.to, answer.index, answer.context) == (N3, 1, b"b")


def test_without_a_lease_at_the_moment_of_the_read_a_round_is_made() -> None:
    """tikv#10011: the lease is looked at, then the process is paused, then it answers."""
    solo = leased()
    moments = iter([True, False])
    solo.core.lease_held = lambda: next(moments)
    solo.core.read_index(b"a")
    solo.core.read_index(b"b")
    (beat, _) = of_type(solo.outputs(), HEARTBEAT)
    assert solo.read_states == [ReadState(1, b"a")]
    solo.receive(HEARTBEAT_RESP, N2, context=beat.context)
    solo.outputs()
    assert solo.read_states == [ReadState(1, b"a"), ReadState(1, b"b")]


def test_whoever_was_told_to_take_over_voids_the_lease() -> None:
    """No promise holds a transfer up; and when the leader gives it up, the message may still be on its way."""
    solo = leased()
    solo.ack(1, N2)
    solo.core.transfer_leader(N2)
    assert of_type(solo.outputs(), MessageType.TIMEOUT_NOW)
    for _ in range(3):
        for _ in range(5):
            solo.core.tick()
        solo.receive(HEARTBEAT_RESP, N2)
        solo.receive(HEARTBEAT_RESP, N3)
    assert solo.core.raft.transferee == "", "given up"
    solo.outputs()
    solo.core.read_index(b"a")
    solo.outputs()
    assert solo.read_states == []


def test_lease_reads_need_a_lease() -> None:
    with pytest.raises(ValueError, match="lease_reads"):
        Solo(lease_reads=True, check_quorum=False)
    with pytest.raises(ValueError, match="lease_reads"):
        Solo(lease_reads=True, election="lowest-id")


def asked(solo: Solo, kind: MessageType, term: int, context: bytes = b"") -> list[bool]:
    """Ask for the vote with the newest log there could be; return the answers: granted or not."""
    solo.receive(kind, N3, term=term, log_term=99, index=99, context=context)
    solo.outputs()
    response = MessageType.VOTE_RESP if kind is MessageType.VOTE else MessageType.PRE_VOTE_RESP
    return [not answer.reject for answer in of_type(solo.store(), response)]


@pytest.mark.parametrize("heard", [HEARTBEAT, MessageType.APP])
def test_who_answered_a_leader_votes_for_nobody_until_its_lease_is_over(heard: MessageType) -> None:
    """Not even when it hears of a later term from a third node, which lets stickiness forget its leader."""
    solo = Solo(lease_reads=True)
    for _ in range(10):
        solo.core.tick()
    solo.receive(heard, N2, term=1)
    for _ in range(9):
        solo.core.tick()
        assert asked(solo, MessageType.VOTE, 2) == []
    solo.receive(MessageType.PRE_VOTE_RESP, N3, term=5, reject=True)
    assert (solo.core.term, solo.core.leader_id) == (5, "")
    assert asked(solo, MessageType.PRE_VOTE, 6) == []
    assert asked(solo, MessageType.VOTE, 5) == []
    assert asked(solo, MessageType.VOTE, 6) == []
    solo.core.tick()
    assert asked(solo, MessageType.VOTE, 6) == [True]


def test_a_transfer_needs_no_end_of_the_lease() -> None:
    solo = Solo(lease_reads=True)
    solo.receive(HEARTBEAT, N2, term=1)
    assert asked(solo, MessageType.VOTE, 2, b"CampaignTransfer") == [True]


def test_a_node_that_has_just_started_may_have_promised_something() -> None:
    solo = Solo(lease_reads=True)
    assert asked(solo, MessageType.VOTE, 2) == []
    for _ in range(10):
        solo.core.tick()
    assert asked(solo, MessageType.VOTE, 2) == [True]
    assert asked(Solo(), MessageType.VOTE, 2) == [True], "without lease reads it has not"
