"""Who votes and who listens, and how that changes (thesis §4)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.consensus import (
    LEAVE_JOINT,
    ChangeSingle,
    ChangeType,
    ConfChangeV2,
    ConfState,
    InvalidConfChange,
    Membership,
    Message,
    MessageType,
    ProgressState,
    ProposalDropped,
    Role,
    Transition,
    decode_conf_change,
    encode_conf_change,
)
from smtpraft.consensus.tally import VoteResult, joint_index, joint_vote, majority_index, majority_vote
from smtpraft.fastlog import ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2, ENTRY_NORMAL
from smtpraft.types import NO_NODE, NodeId

from .solo import N1, N2, N3, N4, Solo, of_type

ADD, LEARN, REMOVE, UPDATE = (
    ChangeType.ADD_NODE,
    ChangeType.ADD_LEARNER,
    ChangeType.REMOVE_NODE,
    ChangeType.UPDATE_NODE,
)
NODES = tuple(NodeId(f"n{number}") for number in range(1, 6))
SINGLES = st.builds(ChangeSingle, st.sampled_from(ChangeType), st.sampled_from((*NODES, NO_NODE)))
CHANGES = st.builds(
    ConfChangeV2, st.lists(SINGLES, max_size=5).map(tuple), st.sampled_from(Transition), st.binary(max_size=20)
)


def change(*singles: tuple[ChangeType, NodeId], transition: Transition = Transition.AUTO) -> ConfChangeV2:
    return ConfChangeV2(tuple(ChangeSingle(*single) for single in singles), transition)


# The bytes.


@given(CHANGES)
def test_a_change_survives_its_bytes(original: ConfChangeV2) -> None:
    assert decode_conf_change(ENTRY_CONF_CHANGE_V2, encode_conf_change(original)) == original


def test_the_bytes_of_a_change_are_fixed() -> None:
    """They are on disks and on the wire between versions."""
    original = ConfChangeV2((ChangeSingle(ADD, N4), ChangeSingle(LEARN, N1)), Transition.JOINT_EXPLICIT, b"why")
    assert encode_conf_change(original).hex() == "01020002" + "0002" + b"n4".hex() + "0302" + b"n1".hex() + b"why".hex()
    assert encode_conf_change(LEAVE_JOINT) == b""


@given(st.binary(min_size=1, max_size=40))
def test_other_bytes_are_refused(data: bytes) -> None:
    try:
        decoded = decode_conf_change(ENTRY_CONF_CHANGE_V2, data)
    except InvalidConfChange:
        return
    assert decode_conf_change(ENTRY_CONF_CHANGE_V2, encode_conf_change(decoded)) == decoded


def test_the_simple_form_holds_one_operation() -> None:
    one = change((ADD, N4))
    assert decode_conf_change(ENTRY_CONF_CHANGE, encode_conf_change(one)) == one
    for other in (change((ADD, N4), (ADD, N1)), change((ADD, N4), transition=Transition.JOINT_EXPLICIT), LEAVE_JOINT):
        with pytest.raises(InvalidConfChange):
            decode_conf_change(ENTRY_CONF_CHANGE, encode_conf_change(other))
    with pytest.raises(InvalidConfChange):
        decode_conf_change(ENTRY_NORMAL, b"")


def test_what_cannot_be_written_down_is_refused() -> None:
    with pytest.raises(InvalidConfChange):
        encode_conf_change(change((ADD, NodeId("n" * 256))))
    with pytest.raises(InvalidConfChange):
        encode_conf_change(ConfChangeV2((ChangeSingle(ADD, N1),) * 65536))


# The arithmetic.


@given(st.lists(CHANGES, max_size=8))
def test_every_membership_that_changes_lead_to_is_sound(changes: list[ConfChangeV2]) -> None:
    """Two majorities of what decides before and after a change always meet (thesis §4.1, §4.3)."""
    membership = Membership(frozenset({N1, N2, N3}))
    for each in changes:
        try:
            after, fresh = membership.applied(each)
        except InvalidConfChange:
            continue
        assert after.incoming
        assert fresh <= after.tracked
        assert after.tracked - membership.tracked <= fresh
        assert Membership.restore(after.conf_state()) == after
        assert quorums_meet(membership, after), (membership, after)
        membership = after


def quorums_meet(one: Membership, other: Membership) -> bool:
    """Is there no way for both to decide without each other?"""
    everybody = sorted(one.voters | other.voters)
    for count in range(len(everybody) + 1):
        for some in itertools.combinations(everybody, count):
            rest = set(everybody) - set(some)
            if decides(one, set(some)) and decides(other, rest):
                return False
    return True


def decides(membership: Membership, yes: set[NodeId]) -> bool:
    votes = dict.fromkeys(yes, True)
    return joint_vote(membership.incoming, membership.outgoing, votes) is VoteResult.WON


@pytest.mark.parametrize(
    "state",
    [
        ConfState((N1,), (N1,)),
        ConfState((N1,), voters_outgoing=(N2,), learners_next=(N3,)),
        ConfState((N1,), voters_outgoing=(N1,), learners_next=(N1,)),
        ConfState((N1,), auto_leave=True),
        ConfState((), (N1,)),
    ],
)
def test_an_impossible_membership_is_refused(state: ConfState) -> None:
    with pytest.raises(InvalidConfChange):
        Membership.restore(state)


def test_a_voter_removed_and_added_again_is_a_new_member() -> None:
    """What was known of its log is forgotten: it may have lost it."""
    membership = Membership(frozenset({N1, N2, N3}))
    after, fresh = membership.simple(change((REMOVE, N2), (ADD, N2)).changes)
    assert (after, fresh) == (membership, frozenset({N2}))
    after, fresh = membership.simple(change((LEARN, N2), (ADD, N2)).changes)
    assert (after, fresh) == (membership, frozenset())


def test_more_than_one_voter_takes_a_joint_membership() -> None:
    """Thesis §4.1: else old and new majorities need not meet."""
    with pytest.raises(InvalidConfChange):
        Membership(frozenset({N1})).simple(change((ADD, N2), (ADD, N3)).changes)


def test_a_demoted_voter_is_a_learner_when_the_joint_membership_is_left() -> None:
    """Until then it votes in the outgoing half."""
    membership, _ = Membership(frozenset({N1, N2})).enter_joint(change((LEARN, N2)).changes, auto_leave=True)
    assert membership.conf_state() == ConfState((N1,), (), (N1, N2), (N2,), auto_leave=True)
    assert membership.leave_joint().conf_state() == ConfState((N1,), (N2,))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=7), st.lists(st.integers(0, 2**64 - 1), max_size=7))
def test_committed_is_what_both_majorities_have(incoming: list[int], outgoing: list[int]) -> None:
    """By the definition: the highest index that at least half, and one more, have reached."""

    def plain(matched: list[int]) -> int:
        reached = [index for index in matched if sum(other >= index for other in matched) * 2 > len(matched)]
        return max(reached, default=2**64 - 1)

    assert majority_index(incoming) == plain(incoming)
    assert joint_index(incoming, outgoing) == min(plain(incoming), plain(outgoing))


@given(st.sets(st.sampled_from(NODES)), st.dictionaries(st.sampled_from(NODES), st.booleans()))
def test_an_election_is_won_lost_or_open(voters: set[NodeId], votes: dict[NodeId, bool]) -> None:
    """By the definition: what the voters who have not answered can still change."""
    answers = [votes[voter] for voter in voters if voter in votes]
    granted, refused = sum(answers), len(answers) - sum(answers)
    best = (granted + len(voters) - len(answers)) * 2 > len(voters) or not voters
    worst = granted * 2 > len(voters) or not voters
    expected = VoteResult.WON if worst else VoteResult.PENDING if best else VoteResult.LOST
    assert majority_vote(voters, votes) is expected
    assert refused >= 0


# A leader changes it.


def test_a_membership_change_is_sent_like_any_entry_and_counts_when_it_is_applied() -> None:
    """etcd applies on apply, the paper on append (thesis §4.1): hence the rule on campaigning."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose_conf_change(change((ADD, N4)))
    solo.settle()
    solo.ack(2, N2)
    solo.outputs()
    assert solo.core.conf_state == ConfState((N1, N2, N3))
    assert solo.core.apply_conf_change(change((ADD, N4))) == ConfState((N1, N2, N3, N4))
    (sent,) = of_type(solo.apply(), MessageType.APP, N4)
    assert (sent.index, sent.entries.last) == (1, 2)
    assert solo.core.progress(N4) is not None


def test_one_change_at_a_time() -> None:
    """A change proposed before the last one is applied becomes an empty entry: no error says so."""
    solo = Solo()
    solo.lead_committed()
    for _ in range(2):
        solo.core.propose_conf_change(change((ADD, N4)))
    assert [entry[3] for entry in solo.log.entries(2, 3)] == [ENTRY_CONF_CHANGE_V2, ENTRY_NORMAL]
    assert solo.log.entries(3, 3)[0][4] == b""


def test_a_new_leader_takes_no_change_before_all_it_found_is_applied() -> None:
    """There may be a change among it."""
    solo = Solo(terms=[1])
    solo.lead()
    solo.core.propose_conf_change(change((ADD, N4)))
    assert solo.log.entries(3, 3)[0][3] == ENTRY_NORMAL
    solo.ack(3, N2)
    solo.settle()
    solo.core.propose_conf_change(change((ADD, N4)))
    assert solo.log.entries(4, 4)[0][3] == ENTRY_CONF_CHANGE_V2


def test_joint_memberships_are_entered_and_left_in_turn() -> None:
    """Leaving what is not joint, entering what is: both become empty entries."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose_conf_change(LEAVE_JOINT)
    assert solo.log.entries(2, 2)[0][3] == ENTRY_NORMAL
    solo.core.apply_conf_change(change((ADD, N4), transition=Transition.JOINT_EXPLICIT))
    solo.core.propose_conf_change(change((ADD, NODES[4])))
    assert solo.log.entries(3, 3)[0][3] == ENTRY_NORMAL
    solo.core.propose_conf_change(LEAVE_JOINT)
    assert solo.log.entries(4, 4)[0][3] == ENTRY_CONF_CHANGE_V2


def test_without_validation_everything_is_let_through() -> None:
    solo = Solo(disable_conf_change_validation=True)
    solo.lead_committed()
    for _ in range(2):
        solo.core.propose_conf_change(LEAVE_JOINT)
    assert [entry[3] for entry in solo.log.entries(2, 3)] == [ENTRY_CONF_CHANGE_V2] * 2


def test_a_change_that_does_not_fit_changes_nothing_on_any_node() -> None:
    for solo in (Solo(), Solo()):
        with pytest.raises(InvalidConfChange):
            solo.core.apply_conf_change(LEAVE_JOINT)
        assert solo.core.conf_state == ConfState((N1, N2, N3))


def test_both_majorities_of_a_joint_membership_must_agree() -> None:
    """Thesis §4.3."""
    solo = Solo(voters=[N1])
    solo.core.campaign()
    solo.settle()
    solo.core.apply_conf_change(change((ADD, N2), (ADD, N3), transition=Transition.JOINT_EXPLICIT))
    solo.core.propose([b"x"])
    solo.settle()
    assert solo.core.commit_index == 1, "the old majority is not enough"
    solo.ack(2, N2)
    assert solo.core.commit_index == 2
    solo = Solo()
    solo.lead_committed()
    solo.core.apply_conf_change(change((REMOVE, N2), (REMOVE, N3), transition=Transition.JOINT_EXPLICIT))
    solo.core.propose([b"x"])
    solo.settle()
    assert solo.core.commit_index == 1, "the new majority is not enough"
    solo.ack(2, N2)
    assert solo.core.commit_index == 2


def test_the_leader_leaves_a_joint_membership_by_itself() -> None:
    """Once all up to the change is applied; during a transfer it waits for the next apply."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose_conf_change(change((ADD, N4), (REMOVE, N3)))
    solo.settle()
    solo.core.apply_conf_change(change((ADD, N4), (REMOVE, N3)))
    solo.ack(2, N2)
    solo.ack(2, N4)
    solo.core.transfer_leader(N2)
    solo.settle()
    assert solo.log.last_index == 2
    solo.core.transfer_leader(N1)
    solo.core.propose([b"x"])
    solo.settle()
    solo.ack(3, N2)
    solo.ack(3, N4)
    solo.settle()
    assert [(entry[3], entry[4]) for entry in solo.log.entries(4, solo.log.last_index)] == [(ENTRY_CONF_CHANGE_V2, b"")]


@pytest.mark.parametrize("step_down", [True, False])
def test_a_removed_leader_steps_down_or_leads_on_without_counting_itself(step_down: bool) -> None:
    """Thesis §4.2.2; etcd-io/raft StepDownOnRemoval."""
    solo = Solo(step_down_on_removal=step_down)
    solo.lead_committed()
    solo.core.apply_conf_change(change((REMOVE, N1)))
    if step_down:
        assert (solo.core.role, solo.core.leader_id) == (Role.FOLLOWER, NO_NODE)
        return
    assert solo.role() is Role.LEADER
    with pytest.raises(ProposalDropped):
        solo.core.propose([b"x"])


def test_a_demoted_leader_steps_down() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.core.apply_conf_change(change((LEARN, N1)))
    assert solo.role() is Role.FOLLOWER


def test_learners_get_entries_and_do_not_count() -> None:
    """Thesis §4.2.1."""
    solo = Solo(learners=[N4])
    solo.lead_committed()
    solo.core.propose([b"x"])
    assert [message.to for message in of_type(solo.settle(), MessageType.APP)] == [N2, N3, N4]
    solo.ack(2, N4)
    assert solo.core.commit_index == 1
    status = solo.core.status().progress[N4]
    assert (status.is_learner, status.match_index, status.state) == (True, 2, ProgressState.REPLICATE)


# Handing over.


def test_leadership_goes_to_who_has_everything() -> None:
    """Thesis §3.10: at once if it has, else when it has."""
    solo = Solo()
    solo.lead_committed()
    solo.core.transfer_leader(N2)
    assert [message.to for message in of_type(solo.outputs(), MessageType.TIMEOUT_NOW)] == [N2]
    with pytest.raises(ProposalDropped):
        solo.core.propose([b"x"])
    assert solo.core.hands_over
    solo.core.transfer_leader(N1)  # Itself: no transfer.
    solo.core.propose([b"x"])
    solo.settle()
    solo.core.report_unreachable(N3)  # What was sent to it is probably lost.
    solo.core.transfer_leader(N3)
    assert of_type(solo.outputs(), MessageType.TIMEOUT_NOW) == []
    solo.ack(2, N3)
    assert [message.to for message in of_type(solo.outputs(), MessageType.TIMEOUT_NOW)] == [N3]


def test_who_takes_over_is_told_behind_all_that_it_lacks() -> None:
    """It stores that with its own vote, in one sync; to wait for its answer first would be another."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.core.transfer_leader(N3)
    sent = [message for message in solo.outputs() if message.to == N3]
    assert [message.type for message in sent] == [MessageType.APP, MessageType.TIMEOUT_NOW]
    assert sent[0].entries.last == solo.core.log.last_index


def test_a_transfer_that_takes_an_election_timeout_is_given_up() -> None:
    """Thesis §3.10: and the leader leads on."""
    solo = Solo()
    solo.lead_committed()
    solo.core.transfer_leader(N2)
    for _ in range(10):
        solo.receive(MessageType.HEARTBEAT_RESP, N2)
        solo.core.tick()
    solo.core.propose([b"x"])
    assert solo.core.status().transferee == NO_NODE


def test_a_transfer_to_a_learner_or_a_stranger_is_ignored() -> None:
    solo = Solo(learners=[N4])
    solo.lead_committed()
    for node in (N4, NodeId("n9")):
        solo.core.transfer_leader(node)
        assert solo.core.status().transferee == NO_NODE


def test_a_transfer_ends_when_its_target_is_removed() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.core.transfer_leader(N3)
    solo.core.apply_conf_change(change((REMOVE, N3)))
    assert solo.core.status().transferee == NO_NODE


def test_a_leader_that_is_removed_while_it_writes_goes_on_as_a_follower() -> None:
    """What its own disk answers then comes from nobody who counts: harmless, and no reason to stop the node."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"still being written"])
    solo.outputs()
    solo.core.apply_conf_change(change((REMOVE, N1)))
    solo.settle()
    assert solo.core.role is Role.FOLLOWER
    assert solo.core.stable_index == solo.log.last_index


def test_followers_pass_the_wish_for_a_transfer_on() -> None:
    """In the name of who shall lead."""
    solo = Solo()
    solo.core.transfer_leader(N3)
    assert solo.outputs() == []
    solo.receive(MessageType.HEARTBEAT, N2, term=4)
    solo.core.transfer_leader(N3)
    (sent,) = of_type(solo.outputs(), MessageType.TRANSFER_LEADER)
    assert (sent.to, sent.sender, sent.term) == (N2, N3, 4)
    solo.core.step(Message(MessageType.TRANSFER_LEADER, N1, N3, 4))
    assert len(of_type(solo.outputs(), MessageType.TRANSFER_LEADER)) == 1
