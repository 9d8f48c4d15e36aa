"""What must be on disk before what: asynchronous storage, and synchronous (Raft Figure 2; etcd AsyncStorageWrites)."""

from __future__ import annotations

import pytest

from smtpraft.consensus import (
    LEAVE_JOINT,
    ChangeSingle,
    ChangeType,
    ConfChangeV2,
    ConfState,
    HardState,
    MessageType,
    SnapshotMeta,
    encode_conf_change,
)
from smtpraft.fastlog import ENTRY_CONF_CHANGE_V2, encode_entries

from .solo import N1, N2, N3, Solo, of_type

APP, APP_RESP = MessageType.APP, MessageType.APP_RESP
STORAGE_APPEND_RESP = MessageType.STORAGE_APPEND_RESP


def test_an_acknowledged_write_of_an_earlier_term_says_nothing_of_the_entries() -> None:
    """The ABA problem: entry 2 is written, replaced, and replaced back, and only then the first answer comes."""
    solo = Solo(terms=[1])
    solo.append(2, [2], prev_term=1, term=2, sender=N2)
    solo.outputs()
    solo.append(2, [3], prev_term=1, term=3, sender=N3)
    solo.outputs()
    solo.append(2, [2], prev_term=1, term=4, sender=N2)  # The same entry again.
    solo.outputs()
    assert solo.terms() == [1, 2]
    assert len(solo.writes) == 3
    solo.store(1)
    assert solo.core.stable_index == 1, "the disk has written it, but will write another one over it"
    solo.store(1)
    assert solo.core.stable_index == 1
    solo.store(1)
    assert solo.core.stable_index == 2


def test_an_acknowledged_write_says_nothing_of_entries_that_replaced_its_own_in_the_same_term() -> None:
    solo = Solo()
    solo.append(1, [1, 1], prev_term=0, term=1)
    solo.outputs()
    solo.receive(MessageType.VOTE, N3, term=3, context=b"CampaignTransfer")  # Writes what is not known to be stored.
    solo.outputs()
    solo.append(2, [3], prev_term=1, term=3, sender=N3)
    solo.outputs()
    solo.store(2)
    assert solo.core.stable_index == 0
    solo.store()
    assert solo.core.stable_index == 2


def test_entries_that_are_replaced_before_they_are_written_are_acknowledged_to_nobody() -> None:
    """Both come in one turn: of entries 2 and 3 of term 1 nothing reaches the disk, and their leader's term is over."""
    solo = Solo(terms=[1])
    solo.append(2, [1, 1], prev_term=1, term=1, sender=N2)
    solo.append(2, [3], prev_term=1, term=3, sender=N3)
    solo.outputs()
    (write,) = solo.writes
    assert [(answer.to, answer.index) for answer in of_type(write.responses, APP_RESP)] == [(N3, 2)]
    assert solo.terms() == [1, 3]


def test_a_vote_in_a_term_that_is_known_must_be_synced_too() -> None:
    solo = Solo(hard_state=HardState(3))
    solo.receive(MessageType.VOTE, N2, term=3)
    output = solo.core.ready()
    assert (output.hard_state, output.must_sync) == (HardState(3, N2), True)


def test_every_write_tells_how_far_the_log_is_stored_while_something_is_not() -> None:
    """An answer made worthless by a change of term is made up for by the next write, entries or not."""
    solo = Solo()
    solo.append(1, [1], prev_term=0, term=1)
    solo.outputs()
    solo.receive(MessageType.VOTE, N3, term=2, index=9, log_term=9)
    solo.receive(MessageType.VOTE, N3, term=2, index=9, log_term=9, context=b"CampaignTransfer")
    solo.outputs()
    assert [write.responses[-1].type for write in solo.writes] == [STORAGE_APPEND_RESP] * 2
    assert not solo.writes[1].entries
    solo.store(1)
    assert solo.core.stable_index == 0
    solo.store(1)
    assert solo.core.stable_index == 1


def test_a_write_holds_the_hard_state_only_if_it_changed() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.outputs()
    (write,) = solo.writes
    assert (write.term, write.vote, write.commit) == (0, "", 0)


def test_only_entries_on_this_disk_are_applied() -> None:
    solo = Solo()
    solo.append(1, [1, 1], prev_term=0, term=1, commit=2)
    solo.outputs()
    assert solo.applies == []
    solo.store()
    assert [(work.entries.first, work.entries.last) for work in solo.applies] == [(1, 2)]


def test_what_is_being_applied_is_bounded_in_bytes() -> None:
    """A slow state machine does not pile up committed entries; one goes at least."""
    solo = Solo(max_apply_bytes=100)
    solo.append(1, [1] * 5, prev_term=0, term=1, commit=5)
    solo.store()
    assert [(work.entries.first, work.entries.last) for work in solo.applies] == [(1, 2)]
    solo.apply()
    assert [(work.entries.first, work.entries.last) for work in solo.applies] == [(3, 4)]
    solo.apply()
    solo.apply()
    assert solo.core.applied_index == 5


def test_nothing_is_applied_while_a_snapshot_is_not_stored() -> None:
    solo = Solo()
    solo.receive(MessageType.SNAP, term=1, snapshot=SnapshotMeta(5, 1, ConfState((N1, N2, N3))))
    solo.append(6, [1], prev_term=1, term=1, commit=6)
    solo.outputs()
    assert solo.applies == []
    solo.store()
    assert [(work.entries.first, work.entries.last) for work in solo.applies] == [(6, 6)]


def test_a_snapshot_is_stored_whatever_the_term_is_then() -> None:
    """It is committed state; only entries may have been replaced."""
    solo = Solo()
    solo.receive(MessageType.SNAP, term=1, snapshot=SnapshotMeta(5, 1, ConfState((N1, N2, N3))))
    solo.outputs()
    solo.receive(MessageType.HEARTBEAT, N3, term=2)
    solo.store(1)
    assert solo.core.applied_index == 5


def test_membership_changes_that_a_snapshot_overtook_do_not_change_its_membership() -> None:
    """They were handed out before it came; the state machine is still behind it, and may stay there if we crash."""
    solo = Solo()
    change = ConfChangeV2((ChangeSingle(ChangeType.REMOVE_NODE, N3),))
    block = encode_entries(1, 1, 0, ENTRY_CONF_CHANGE_V2, [encode_conf_change(change)])
    solo.receive(APP, term=1, commit=1, block=block)
    solo.store()
    later = ConfState((N1,), voters_outgoing=(N1, N2))
    solo.receive(MessageType.SNAP, term=1, snapshot=SnapshotMeta(9, 1, later))
    assert solo.core.apply_conf_change(change) == ConfState((N1, N2))
    assert solo.core.conf_state == later
    solo.apply()
    solo.store()
    assert solo.core.conf_state == later
    assert solo.core.applied_index == 9
    solo.core.apply_conf_change(LEAVE_JOINT)
    assert solo.core.conf_state == ConfState((N1,))


def test_synchronous_storage_holds_answers_back_by_itself() -> None:
    """Store, apply, send, advance: then the node has heard its own acknowledgements."""
    solo = Solo(async_storage=False)
    core = solo.core
    solo.append(1, [1], prev_term=0, term=1, commit=1)
    output = core.ready()
    assert (output.hard_state, output.must_sync) == (HardState(1, commit=1), True)
    assert (output.entries.last, output.committed.last) == (1, 1)
    assert [message.type for message in output.messages] == [APP_RESP]
    assert (core.stable_index, core.applied_index) == (0, 0)
    with pytest.raises(AssertionError):
        core.ready()
    core.advance(output)
    assert (core.stable_index, core.applied_index) == (1, 1)
    assert not core.has_ready()


def test_a_lone_voter_commits_by_itself() -> None:
    for pre_vote in (True, False):
        solo = Solo(voters=[N1], pre_vote=pre_vote)
        solo.core.campaign()
        assert solo.settle() == []
        solo.core.propose([b"x"])
        solo.settle()
        assert solo.core.commit_index == solo.core.applied_index == 2


def test_a_commit_index_alone_needs_no_sync() -> None:
    """It is learnt again."""
    solo = Solo(async_storage=False)
    core = solo.core
    solo.append(1, [1], prev_term=0, term=1)
    core.advance(core.ready())
    solo.receive(MessageType.HEARTBEAT, term=1, commit=1)
    output = core.ready()
    assert (output.hard_state, output.must_sync) == (HardState(1, commit=1), False)
    assert of_type(output.messages, MessageType.HEARTBEAT_RESP)
