"""Who the members are, as the log says: a function of the log alone, stored with the state machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.cluster import envelope
from smtpraft.cluster.members import Member, Members, encode_context, encode_found
from smtpraft.cluster.sessions import Sessions
from smtpraft.consensus import ChangeSingle, ChangeType, ConfChangeV2, ConfState, encode_conf_change
from smtpraft.fastlog import ENTRY_CONF_CHANGE_V2
from smtpraft.types import NodeId

A, B, C, D = (NodeId(f"node-{number}") for number in (1, 2, 3, 4))


def member(node: NodeId, incarnation: int, *, promote: bool = True) -> Member:
    return Member(node, incarnation, "10.0.0." + node[-1], 5001, promote)


FOUNDERS = [member(A, 101), member(B, 102), member(C, 103)]


def founded() -> Members:
    members = Members()
    assert members.found(7, encode_found(FOUNDERS)) is not None
    return members


def change(members: Members, index: int, *changes: tuple[ChangeType, NodeId], added: tuple[Member, ...] = ()) -> bool:
    """Apply a change; return whether it was taken."""
    wanted = ConfChangeV2(tuple(ChangeSingle(*single) for single in changes), context=encode_context(added))
    return members.change(index, ENTRY_CONF_CHANGE_V2, encode_conf_change(wanted)) is not None


def test_the_first_members_are_all_voters_and_are_written_once() -> None:
    members = founded()
    assert members.conf_state == ConfState(voters=(A, B, C))
    assert members.found(9, encode_found([member(D, 104)])) is None
    assert set(members.by_id) == {A, B, C}
    assert members.index == 7


def test_nothing_changes_before_there_are_members() -> None:
    members = Members()
    assert not change(members, 5, (ChangeType.ADD_LEARNER, D), added=(member(D, 104),))
    assert not members.founded


def test_a_learner_comes_with_its_directory_and_becomes_a_voter() -> None:
    members = founded()
    assert not change(members, 8, (ChangeType.ADD_LEARNER, D))  # whose directory?
    assert change(members, 9, (ChangeType.ADD_LEARNER, D), added=(member(D, 104),))
    assert members.conf_state.learners == (D,)
    assert change(members, 10, (ChangeType.ADD_NODE, D))
    assert members.conf_state.voters == (A, B, C, D)
    assert members.by_id[D].incarnation == 104


def test_a_member_cannot_become_another_directory_in_one_step() -> None:
    """What a leader knows of the old one's log would count for the new one."""
    members = founded()
    assert not change(members, 8, (ChangeType.ADD_LEARNER, B), added=(member(B, 202),))
    assert not change(members, 8, (ChangeType.REMOVE_NODE, B), (ChangeType.ADD_NODE, B), added=(member(B, 202),))
    assert members.by_id[B].incarnation == 102
    assert change(members, 9, (ChangeType.REMOVE_NODE, B))
    assert change(members, 10, (ChangeType.ADD_LEARNER, B), added=(member(B, 202),))
    assert members.by_id[B].incarnation == 202


def test_a_directory_that_was_removed_does_not_come_back() -> None:
    members = founded()
    assert change(members, 8, (ChangeType.REMOVE_NODE, C))
    assert members.removed == {(C, 103): 8}
    assert not change(members, 9, (ChangeType.ADD_LEARNER, C), added=(member(C, 103),))
    assert change(members, 10, (ChangeType.ADD_LEARNER, C), added=(member(C, 203),))


def test_several_change_jointly_and_who_leaves_is_a_member_until_then() -> None:
    members = founded()
    changes = ((ChangeType.ADD_NODE, D), (ChangeType.REMOVE_NODE, A))
    assert change(members, 8, *changes, added=(member(D, 104),))
    assert members.conf_state.voters_outgoing == (A, B, C)
    assert set(members.by_id) == {A, B, C, D}
    assert not change(members, 9, (ChangeType.REMOVE_NODE, B))  # one at a time
    assert members.change(10, ENTRY_CONF_CHANGE_V2, b"") is not None
    assert members.conf_state.voters == (B, C, D)
    assert set(members.by_id) == {B, C, D}
    assert members.removed == {(A, 101): 10}


def test_an_address_can_change_alone() -> None:
    members = founded()
    moved = Member(B, 102, "10.0.1.2", 5002)
    assert change(members, 8, (ChangeType.UPDATE_NODE, B), added=(moved,))
    assert members.by_id[B] == moved
    assert members.conf_state == ConfState(voters=(A, B, C))


@pytest.mark.parametrize("payload", [b"\x01", b"\x01\x00\x00\x01\x09\x01x", b"garbage"])
def test_what_no_release_writes_is_skipped(payload: bytes) -> None:
    members = founded()
    assert members.change(8, ENTRY_CONF_CHANGE_V2, payload) is None
    assert members.conf_state == ConfState(voters=(A, B, C))


@given(st.binary(max_size=60))
def test_no_bytes_of_a_founding_break_anything(data: bytes) -> None:
    sessions = Sessions()
    sessions.admit(1, 1, 1, 1, bytes((envelope.FOUND,)) + data)
    assert Sessions.decode(sessions.encode()).members.conf_state == sessions.members.conf_state


def test_they_are_kept_with_the_sessions() -> None:
    sessions = Sessions()
    assert Sessions.decode(sessions.encode()).members.founded is False
    sessions.admit(7, 1, 1, 1, encode_found(FOUNDERS))
    assert [changed.conf_state.voters for changed in sessions.changes] == [(A, B, C)]
    sessions.members.change(
        8, ENTRY_CONF_CHANGE_V2, encode_conf_change(ConfChangeV2((ChangeSingle(ChangeType.REMOVE_NODE, C),)))
    )
    again = Sessions.decode(sessions.encode())
    assert again.members.by_id == sessions.members.by_id
    assert again.members.conf_state == ConfState(voters=(A, B))
    assert again.members.removed == {(C, 103): 8}
    assert again.members.index == 8
    assert again.encode() == sessions.encode()


def test_the_bytes_of_a_founding_stay_what_they_are() -> None:
    assert encode_found([member(A, 101)]).hex() == "049195a66e6f64652d3165a831302e302e302e31cd1389c3"
