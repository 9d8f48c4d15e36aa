"""Who leads, and when nobody does (Raft §5.2, §5.4.1; thesis §4.2.3, §6.2, §9.6)."""

from __future__ import annotations

import pytest

from smtpraft.consensus import (
    ChangeSingle,
    ChangeType,
    ConfChangeV2,
    ConfState,
    HardState,
    InvalidMessage,
    MessageType,
    ProposalDropped,
    Role,
    SnapshotMeta,
    encode_conf_change,
)
from smtpraft.consensus.election import TRANSFER
from smtpraft.fastlog import ENTRY_CONF_CHANGE_V2, ENTRY_NORMAL, encode_entries
from smtpraft.types import NO_NODE

from .solo import N1, N2, N3, N4, Solo, of_type

VOTE, VOTE_RESP = MessageType.VOTE, MessageType.VOTE_RESP
PRE_VOTE, PRE_VOTE_RESP = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP


def test_a_vote_leaves_only_when_it_is_on_disk() -> None:
    """Raft Figure 2: term and vote are stored before the answer."""
    solo = Solo()
    solo.receive(VOTE, term=1)
    assert solo.outputs() == []
    (write,) = solo.writes
    assert (write.term, write.vote) == (1, N2)
    (answer,) = solo.store()
    assert (answer.type, answer.to, answer.term, answer.reject) == (VOTE_RESP, N2, 1, False)


def test_a_vote_survives_a_restart() -> None:
    """Raft Figure 2: one vote a term."""
    solo = Solo(hard_state=HardState(3, N2))
    solo.receive(VOTE, N3, term=3)
    solo.receive(VOTE, N2, term=3)
    assert [(answer.to, answer.reject) for answer in solo.store()] == [(N3, True), (N2, False)]


def test_a_candidate_with_an_older_log_gets_no_vote() -> None:
    """Raft §5.4.1: the later last term wins, then the longer log."""
    solo = Solo(terms=[1, 2, 2])
    for log_term, index, reject in ((1, 9, True), (2, 2, True), (2, 3, False), (3, 1, False)):
        solo.receive(PRE_VOTE, term=9, log_term=log_term, index=index)
        assert solo.store()[-1].reject is reject


def test_the_own_vote_counts_when_it_is_on_disk() -> None:
    """Leading before that, a node that crashes could win the same term again with another log."""
    solo = Solo(pre_vote=False)
    solo.core.campaign()
    solo.outputs()
    solo.receive(VOTE_RESP, N2)
    solo.receive(VOTE_RESP, N3)
    assert solo.role() is Role.CANDIDATE
    solo.store()
    assert solo.role() is Role.LEADER


def test_as_the_reference_others_votes_suffice() -> None:
    solo = Solo(pre_vote=False, as_reference=True)
    solo.core.campaign()
    solo.outputs()
    solo.receive(VOTE_RESP, N2)
    assert solo.role() is Role.CANDIDATE
    solo.receive(VOTE_RESP, N3)
    assert solo.role() is Role.LEADER


def test_a_vote_counts_once() -> None:
    """Raft §5.2: the first answer of a node is its answer."""
    solo = Solo(pre_vote=False, voters=[N1, N2, N3, N4])
    solo.core.campaign()
    solo.store()
    solo.receive(VOTE_RESP, N2)
    solo.receive(VOTE_RESP, N2)
    assert solo.role() is Role.CANDIDATE


def test_a_lost_election_ends_in_the_same_term() -> None:
    """Raft §5.2: wait for the next timeout."""
    solo = Solo(pre_vote=False)
    solo.core.campaign()
    solo.store()
    solo.receive(VOTE_RESP, N2, reject=True)
    solo.receive(VOTE_RESP, N3, reject=True)
    assert (solo.core.role, solo.core.term, solo.core.vote) == (Role.FOLLOWER, 1, N1)


def test_a_follower_campaigns_between_one_and_two_election_timeouts() -> None:
    """Raft §5.2: randomised, so that votes seldom split."""
    seen = set()
    solo = Solo()
    for _ in range(200):
        solo.core.raft.become_follower(solo.core.term, NO_NODE)
        seen.add(solo.core.raft.timeout_ticks)
        for _ in range(solo.core.raft.timeout_ticks - 1):
            solo.core.tick()
        assert solo.role() is Role.FOLLOWER
        solo.core.tick()
        assert solo.role() is Role.PRE_CANDIDATE
    assert seen == set(range(10, 20))


def test_who_has_less_priority_waits_longer() -> None:
    """So that the others ask for votes first; with half of it one to two and a half timeouts later at most."""
    waits = set()
    for _ in range(3):
        solo = Solo(priority=50)
        for ticks in range(1, 30):
            solo.core.tick()
            if of_type(solo.outputs(), PRE_VOTE):
                waits.add(ticks)
                break
    assert waits
    assert min(waits) >= 15
    assert max(waits) < 25


def test_without_priority_a_node_campaigns_only_when_its_leader_says_so() -> None:
    solo = Solo(priority=0)
    solo.receive(MessageType.HEARTBEAT, term=1)
    for _ in range(100):
        solo.core.tick()
    assert of_type(solo.settle(), PRE_VOTE) == []
    assert solo.core.role is Role.FOLLOWER
    solo.receive(MessageType.TIMEOUT_NOW, term=1)
    assert of_type(solo.outputs(), VOTE)


def test_without_priority_a_node_campaigns_if_the_others_lack_what_it_has() -> None:
    """Raft §5.4.1: else nobody would ever lead, if only it is left of those that have the last entries committed."""
    solo = Solo(priority=0, terms=(1, 1))
    for _ in range(2):
        solo.receive(PRE_VOTE, N2, term=2, log_term=1, index=1)
        for _ in range(30):
            solo.core.tick()
        assert of_type(solo.outputs(), PRE_VOTE)
    solo.receive(MessageType.HEARTBEAT, term=2)
    for _ in range(100):
        solo.core.tick()
    assert of_type(solo.settle(), PRE_VOTE) == []


def test_granting_a_vote_starts_the_election_timeout_anew() -> None:
    """Raft §5.2: give the winner the time to say so."""
    solo = Solo(hard_state=HardState(1))
    solo.core.raft.timeout_ticks = 10
    for _ in range(9):
        solo.core.tick()
    solo.receive(VOTE, N2, term=1)
    solo.core.tick()
    assert solo.role() is Role.FOLLOWER


def test_a_pre_vote_changes_neither_term_nor_vote() -> None:
    """Thesis §9.6: it asks about the next term without beginning it; a grant echoes the request's term."""
    solo = Solo(hard_state=HardState(2))
    solo.receive(PRE_VOTE, term=3)
    (answer,) = solo.store()
    assert (answer.type, answer.term, answer.reject) == (PRE_VOTE_RESP, 3, False)
    assert (solo.core.term, solo.core.vote) == (2, NO_NODE)
    solo.core.campaign()
    requests = of_type(solo.outputs(), PRE_VOTE)
    assert [(request.to, request.term) for request in requests] == [(N2, 3), (N3, 3)]
    assert (solo.core.term, solo.core.vote) == (2, NO_NODE)


def test_a_pre_vote_refused_by_a_later_term_brings_that_term() -> None:
    """A refusal carries the voter's term."""
    solo = Solo()
    solo.core.campaign()
    solo.receive(PRE_VOTE_RESP, term=7, reject=True)
    assert (solo.core.role, solo.core.term) == (Role.FOLLOWER, 7)


def test_a_pre_candidate_forgets_its_leader() -> None:
    """Two pre-candidates that still believe in a dead leader would refuse each other for ever (raft-rs 0.3.1)."""
    solo = Solo()
    solo.receive(MessageType.HEARTBEAT, term=1)
    solo.core.campaign()
    assert solo.core.leader_id == NO_NODE
    solo.receive(PRE_VOTE, N3, term=2)
    assert [answer.reject for answer in of_type(solo.store(), PRE_VOTE_RESP, N3)] == [False]


def test_a_pre_candidate_counts_no_votes_of_before() -> None:
    """canonical/raft#196."""
    solo = Solo()
    solo.core.campaign()
    solo.store()
    solo.receive(PRE_VOTE_RESP, N2, term=1)
    assert solo.role() is Role.CANDIDATE
    solo.store()
    solo.core.campaign()
    assert solo.core.raft.tracker.votes == {}
    assert solo.role() is Role.PRE_CANDIDATE


def test_who_hears_a_leader_ignores_candidates() -> None:
    """Thesis §4.2.3: no answer at all, and no new term, within an election timeout of the last heartbeat."""
    solo = Solo()
    solo.receive(MessageType.HEARTBEAT, N2, term=1)
    solo.settle()
    for _ in range(9):
        solo.core.tick()
    solo.receive(VOTE, N3, term=5)
    solo.receive(PRE_VOTE, N3, term=5)
    assert solo.store() == []
    assert solo.core.term == 1
    solo.core.tick()
    solo.receive(PRE_VOTE, N3, term=5)
    assert [answer.reject for answer in of_type(solo.store(), PRE_VOTE_RESP)] == [False]


def test_a_transfer_overrides_stickiness() -> None:
    """Thesis §3.10, §4.2.3: the leader itself asked for it."""
    solo = Solo()
    solo.receive(MessageType.HEARTBEAT, N2, term=1)
    solo.receive(VOTE, N3, term=2, context=TRANSFER)
    assert solo.core.vote == N3


def test_a_stuck_leader_of_an_earlier_term_is_answered() -> None:
    """With stickiness only the leader can let a node of a higher term back in, by stepping down."""
    for kind in (MessageType.APP, MessageType.HEARTBEAT):
        solo = Solo(hard_state=HardState(5))
        solo.receive(kind, term=3)
        (answer,) = solo.store()
        assert (answer.type, answer.term, answer.index, answer.reject) == (MessageType.APP_RESP, 5, 0, False)
        solo = Solo(hard_state=HardState(5), pre_vote=False, check_quorum=False)
        solo.receive(kind, term=3)
        assert solo.store() == []


def test_a_pre_vote_of_an_earlier_term_is_refused() -> None:
    """Or one with the higher term and one with the better log could wait for each other."""
    solo = Solo(hard_state=HardState(5))
    solo.receive(PRE_VOTE, term=3, index=100, log_term=3)
    (answer,) = solo.store()
    assert (answer.type, answer.term, answer.reject) == (PRE_VOTE_RESP, 5, True)


def test_learners_vote_if_asked_but_do_not_campaign() -> None:
    """They may have been promoted and not know it yet (etcd-io/raft campaign_learner_must_vote)."""
    solo = Solo(voters=[N2, N3], learners=[N1])
    solo.core.campaign()
    for _ in range(100):
        solo.core.tick()
    assert solo.role() is Role.FOLLOWER
    solo.receive(VOTE, term=1)
    assert [answer.reject for answer in solo.store()] == [False]


def test_no_campaign_before_a_received_snapshot_is_stored() -> None:
    """Its membership is not durable: after a crash this node would be another."""
    solo = Solo()
    state = ConfState((N1, N2, N3))
    solo.receive(MessageType.SNAP, term=1, snapshot=SnapshotMeta(10, 1, state))
    solo.core.campaign()
    assert solo.role() is Role.FOLLOWER
    solo.store()
    solo.core.campaign()
    assert solo.role() is Role.PRE_CANDIDATE


def test_no_campaign_while_a_committed_membership_change_is_not_applied() -> None:
    """etcd#7280, #11284: it may take this node's vote away. Unapplied normal entries do not matter."""
    solo = Solo()
    change = encode_conf_change(ConfChangeV2((ChangeSingle(ChangeType.ADD_NODE, N4),)))
    block = encode_entries(1, 1, 0, 0, [b"a"]) + encode_entries(1, 2, 0, ENTRY_CONF_CHANGE_V2, [change])
    block += encode_entries(1, 3, 0, 0, [b"b"])
    solo.receive(MessageType.APP, term=1, commit=1, block=block)
    solo.store()
    solo.core.campaign()
    assert solo.role() is Role.PRE_CANDIDATE, "only the first entry is committed"
    solo.receive(MessageType.APP, term=1, index=3, log_term=1, commit=3)
    solo.store()
    solo.core.campaign()
    assert solo.role() is Role.FOLLOWER
    solo.apply()
    solo.core.campaign()
    assert solo.role() is Role.PRE_CANDIDATE


def test_unapplied_entries_that_are_not_in_memory_may_hold_a_membership_change() -> None:
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1, commit=2))
    solo.log.evict(0)
    solo.core.campaign()
    assert solo.role() is Role.FOLLOWER
    solo.apply()
    solo.core.campaign()
    assert solo.role() is Role.PRE_CANDIDATE


def test_timeout_now_starts_an_election_without_pre_vote() -> None:
    """Thesis §3.10."""
    solo = Solo()
    solo.receive(MessageType.HEARTBEAT, N2, term=1)
    solo.receive(MessageType.TIMEOUT_NOW, N2, term=1)
    requests = of_type(solo.outputs(), VOTE)
    assert [(request.to, request.term, request.context) for request in requests] == [
        (N2, 2, TRANSFER),
        (N3, 2, TRANSFER),
    ]


def test_a_barred_node_votes_but_does_not_campaign() -> None:
    """A node whose disk is too slow must not lead."""
    solo = Solo()
    solo.core.barred = True
    for _ in range(100):
        solo.core.tick()
    solo.receive(MessageType.TIMEOUT_NOW, N2, term=1)
    assert solo.role() is Role.FOLLOWER
    solo.receive(PRE_VOTE, N2, term=2)
    assert [answer.reject for answer in of_type(solo.store(), PRE_VOTE_RESP)] == [False]
    solo.core.barred = False
    solo.core.campaign()
    assert solo.role() is Role.PRE_CANDIDATE


def test_answers_to_candidates_tell_what_is_committed() -> None:
    """The candidate may have the entry of a membership change, and not know that it is committed."""
    voter = Solo(terms=[1, 1, 2], hard_state=HardState(2, commit=3))
    voter.receive(PRE_VOTE, N2, term=3, index=2, log_term=1)
    (answer,) = voter.store()
    assert answer.reject
    candidate = Solo(terms=[1, 1, 2, 2], hard_state=HardState(2, commit=1))
    candidate.apply()
    candidate.core.campaign()
    candidate.receive(PRE_VOTE_RESP, N2, term=2, reject=True, context=answer.context)
    assert candidate.core.commit_index == 3
    other = Solo(terms=[1, 1, 1, 1], hard_state=HardState(2, commit=1))
    other.apply()
    other.core.campaign()
    other.receive(PRE_VOTE_RESP, N2, term=2, reject=True, context=answer.context)
    assert other.core.commit_index == 1, "its entry 3 is another one"


def test_a_leader_that_hears_no_majority_steps_down() -> None:
    """Thesis §6.2: within two election timeouts, for the first only says who was silent."""
    solo = Solo()
    solo.lead_committed()
    for _ in range(10):
        solo.core.tick()
    assert solo.role() is Role.LEADER
    assert solo.core.recently_active() == {N1}
    assert not solo.core.quorum_active()
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    assert solo.core.recently_active() == {N1, N3}
    assert solo.core.quorum_active()
    for _ in range(10):
        solo.core.tick()
    assert solo.role() is Role.LEADER
    for _ in range(10):
        solo.core.tick()
    assert (solo.core.role, solo.core.term, solo.core.leader_id) == (Role.FOLLOWER, 1, NO_NODE)


def test_without_check_quorum_it_leads_on() -> None:
    solo = Solo(check_quorum=False)
    solo.lead_committed()
    for _ in range(100):
        solo.core.tick()
    assert solo.role() is Role.LEADER


def test_a_member_that_was_just_added_counts_as_active() -> None:
    """Or the next check of the quorum would make the leader step down before it could say a word."""
    solo = Solo(voters=[N1])
    solo.core.campaign()
    solo.settle()
    solo.core.apply_conf_change(ConfChangeV2((ChangeSingle(ChangeType.ADD_NODE, N2),)))
    for _ in range(10):
        solo.core.tick()
    assert solo.role() is Role.LEADER


def test_forget_leader_lets_a_pre_vote_win_at_once() -> None:
    """The leader is known to be gone; nobody has to wait an election timeout for it."""
    solo = Solo()
    solo.receive(MessageType.HEARTBEAT, N2, term=1)
    solo.core.forget_leader()
    solo.receive(PRE_VOTE, N3, term=2)
    assert [answer.reject for answer in of_type(solo.store(), PRE_VOTE_RESP)] == [False]
    assert solo.core.term == 1


def test_forget_leader_does_nothing_while_reads_rely_on_the_lease() -> None:
    solo = Solo(lease_reads=True)
    solo.receive(MessageType.HEARTBEAT, N2, term=1)
    solo.core.forget_leader()
    assert solo.core.leader_id == N2


def test_a_candidate_follows_whoever_leads_its_term() -> None:
    """Raft §5.2."""
    for kind in (MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP):
        solo = Solo(pre_vote=False)
        solo.core.campaign()
        with pytest.raises(ProposalDropped):
            solo.core.propose([b"x"])
        solo.receive(kind, N3)
        assert (solo.core.role, solo.core.leader_id) == (Role.FOLLOWER, N3)


def test_a_later_term_makes_a_follower_of_everybody() -> None:
    """Raft §5.1."""
    solo = Solo()
    solo.lead_committed()
    solo.receive(MessageType.HEARTBEAT, N3, term=2)
    assert (solo.core.role, solo.core.term, solo.core.leader_id, solo.core.vote) == (Role.FOLLOWER, 2, N3, NO_NODE)


def test_what_needs_a_term_is_refused_without_one() -> None:
    solo = Solo()
    for kind in (VOTE, PRE_VOTE, MessageType.APP, MessageType.HEARTBEAT, MessageType.TIMEOUT_NOW):
        with pytest.raises(InvalidMessage):
            solo.receive(kind, term=0)


def test_a_node_that_lost_part_of_its_log_refuses_until_it_has_an_entry_of_a_later_term() -> None:
    """Raft §5.4.1: what it acknowledged up to term 3 a candidate may lack; a later leader has it (§5.4.3)."""
    solo = Solo(terms=[1, 1], hard_state=HardState(4), abstains_through=3)
    solo.receive(PRE_VOTE, term=9, log_term=9, index=9)
    solo.receive(VOTE, term=5, log_term=9, index=9)
    assert [answer.reject for answer in solo.store()] == [True, True]
    for _ in range(50):
        solo.core.tick()
    assert solo.core.role is Role.FOLLOWER

    old = encode_entries(3, 3, 0, ENTRY_NORMAL, [b"old"])
    solo.receive(MessageType.APP, term=5, log_term=1, index=2, block=old)
    states = [solo.core.abstains]
    solo.receive(MessageType.APP, term=5, log_term=3, index=3, block=encode_entries(5, 4, 0, ENTRY_NORMAL, [b""]))
    assert [*states, solo.core.abstains] == [True, False]
    answers = solo.store()
    assert [answer.index for answer in answers if answer.type is MessageType.APP_RESP][-1] == 4
    solo.receive(VOTE, N3, term=6, log_term=5, index=4)
    assert solo.core.vote == NO_NODE, "it hears its leader"
    for _ in range(11):
        solo.core.tick()
    solo.receive(VOTE, N3, term=7, log_term=5, index=4)
    assert solo.store()[-1].reject is False


def test_the_leader_of_the_term_in_which_a_node_lost_something_hands_over() -> None:
    """It may count on what is gone: only a leader elected since knows better."""
    solo = Solo(terms=[3], hard_state=HardState(4), abstains_through=3, pre_vote=False, check_quorum=False)
    solo.receive(MessageType.HEARTBEAT, term=3, commit=9)
    (answer,) = solo.store()
    assert (answer.type, answer.term, answer.reject) == (MessageType.APP_RESP, 4, False)
