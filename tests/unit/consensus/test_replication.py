"""How entries get to followers, and when they are committed (Raft §5.3, §5.4.2; thesis §10.2.1)."""

from __future__ import annotations

import pytest

from smtpraft.consensus import (
    ConfState,
    HardState,
    InvalidMessage,
    LocalMessage,
    LogConflict,
    LogLost,
    Message,
    MessageType,
    PeerNotFound,
    ProgressState,
    ProposalDropped,
    RawNode,
    Role,
    SnapshotMeta,
)
from smtpraft.consensus.tracker import Tracker
from smtpraft.fastlog import CorruptEntry, encode_entries
from smtpraft.types import NodeId

from .solo import N1, N2, N3, N4, Solo, of_type

APP, APP_RESP, HEARTBEAT, SNAP = MessageType.APP, MessageType.APP_RESP, MessageType.HEARTBEAT, MessageType.SNAP


def progress(solo: Solo, node: NodeId = N2) -> tuple[ProgressState, int, int]:
    found = solo.core.progress(node)
    assert found is not None
    return found.state, found.match_index, found.next_index


def ranges(messages: list[Message]) -> list[tuple[int, int]]:
    return [(message.entries.first, message.entries.last) for message in messages]


# Committing.


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    """Raft §5.4.2, Figure 8 (c): it is on a majority and may still be overwritten."""
    solo = Solo(terms=[1, 2], hard_state=HardState(3, commit=1), max_append_bytes=0)
    solo.lead()
    assert solo.terms() == [1, 2, 4]
    solo.ack(2, N2)
    solo.ack(2, N3)
    assert solo.core.commit_index == 1
    solo.ack(3, N2)
    assert solo.core.commit_index == 3, "with the first entry of its own term all before it commits"


def test_a_new_leader_appends_an_empty_entry() -> None:
    """Raft §8: it learns what is committed by committing something of its own."""
    solo = Solo(terms=[1])
    solo.lead()
    assert solo.log.entries(2, 2)[0][4] == b""


def test_the_leader_may_commit_before_its_own_disk_is_done() -> None:
    """Thesis §10.2.1: two followers are a majority of three."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.outputs()
    solo.ack(2, N2)
    assert solo.core.commit_index == 1
    solo.ack(2, N3)
    assert solo.core.commit_index == 2
    solo.outputs()
    assert solo.applies == [], "but it applies nothing that is not on its own disk"
    solo.store()
    assert ranges(solo.applies) == [(2, 2)]


def test_a_new_leader_knows_of_nobody_but_itself() -> None:
    solo = Solo(terms=[1, 1])
    solo.lead()
    assert [progress(solo, node)[1] for node in (N1, N2, N3)] == [3, 0, 0]
    solo = Solo(terms=[1, 1], pre_vote=False, as_reference=True)
    solo.core.campaign()
    for node in (N2, N3):
        solo.receive(MessageType.VOTE_RESP, node)
    assert progress(solo, N1) == (ProgressState.REPLICATE, 2, 3), "its empty entry is not on its disk yet"


def test_the_leader_counts_itself_when_its_disk_is_done() -> None:
    """Thesis §10.2.1."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.outputs()
    solo.ack(2, N2)
    assert solo.core.commit_index == 1
    solo.store()
    assert solo.core.commit_index == 2


def test_a_heartbeat_never_commits_beyond_what_the_follower_is_known_to_match() -> None:
    """Raft §5.3: it may hold other entries there."""
    solo = Solo()
    solo.lead()
    solo.ack(1, N2)
    solo.settle()
    solo.core.tick()
    beats = of_type(solo.outputs(), HEARTBEAT)
    assert [(beat.to, beat.commit) for beat in beats] == [(N2, 1), (N3, 0)]


def test_the_commit_index_of_an_append_is_limited_by_what_it_proves() -> None:
    """Raft §5.3: entries behind those in the message are not known to match."""
    solo = Solo(terms=[1, 1, 1])
    solo.receive(APP, term=2, index=1, log_term=1, commit=3)
    assert solo.core.commit_index == 1


def test_a_commit_index_beyond_the_log_is_the_end_of_this_node() -> None:
    """It had stored what it has no longer (etcd: tocommit is out of range): it must not vote under this name."""
    with pytest.raises(LogLost):
        Solo(terms=[1]).receive(HEARTBEAT, term=1, commit=2)


def test_the_commit_index_is_sent_once_not_with_every_answer() -> None:
    """An empty append goes only if it tells the follower something it can use."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.settle()
    solo.ack(2, N2)
    assert [message.commit for message in of_type(solo.settle(), APP)] == [2, 2]
    solo.ack(2, N3)
    assert of_type(solo.settle(), APP) == []


# What a follower does.


def test_an_acknowledgement_leaves_when_the_entries_are_on_disk() -> None:
    """Raft Figure 2."""
    solo = Solo()
    solo.append(1, [1, 1], prev_term=0, term=1)
    assert solo.outputs() == []
    (answer,) = solo.store()
    assert (answer.type, answer.index, answer.reject) == (APP_RESP, 2, False)


def test_entries_that_contradict_are_replaced_from_the_first_on() -> None:
    """Raft §5.3, Figure 7."""
    solo = Solo(terms=[1, 1, 2, 2, 2])
    solo.append(3, [1, 3], prev_term=1, term=3)
    assert solo.terms() == [1, 1, 1, 3]
    (answer,) = solo.store()
    assert answer.index == 4
    assert (solo.core.stable_index, solo.log.entries(3, 3)[0][4]) == (4, b"new")


def test_an_append_that_comes_late_takes_nothing_back() -> None:
    """Raft §5.3: only a contradiction cuts the log; what a later append brought may be acknowledged."""
    solo = Solo()
    solo.append(1, [1, 1, 1], prev_term=0, term=1)
    solo.append(1, [1], prev_term=0, term=1)
    assert solo.terms() == [1, 1, 1]
    assert solo.store()[-1].index == 3


def test_an_append_below_the_commit_index_is_answered_with_it() -> None:
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1, commit=3))
    solo.append(2, [1], prev_term=1, term=1)
    assert [(answer.index, answer.reject) for answer in solo.store()] == [(3, False)]


def test_a_leader_that_contradicts_what_is_committed_stops_the_node() -> None:
    """Leader Completeness (Raft §5.4.3) is broken: to go on might lose more."""
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1, commit=3))
    with pytest.raises(LogConflict):
        solo.append(3, [2], prev_term=1, term=2)
    with pytest.raises(LogConflict):
        solo.receive(APP, term=2, index=2, log_term=2)


@pytest.mark.parametrize(
    ("ours", "prev", "prev_term", "hint", "hint_term"),
    [
        ([1, 1, 1], 9, 3, 3, 1),  # Too short: its end.
        ([1, 1, 2, 2, 2], 5, 1, 2, 1),  # Skip the whole term 2.
        ([1, 3, 3, 3], 4, 2, 1, 1),
        ([2, 2], 2, 1, 0, 0),  # Nothing can match but the beginning.
    ],
)
def test_a_rejection_hints_at_the_last_index_that_can_match(
    ours: list[int], prev: int, prev_term: int, hint: int, hint_term: int
) -> None:
    """Raft §5.3, fast back-off: at most one probe a term."""
    solo = Solo(terms=ours)
    solo.receive(APP, term=4, index=prev, log_term=prev_term)
    (answer,) = solo.store()
    assert (answer.reject, answer.index) == (True, prev)
    assert (answer.reject_hint, answer.log_term) == (hint, hint_term)


def test_a_leader_probes_where_its_own_term_allows_a_match() -> None:
    """Raft §5.3: at most one probe a term on the leader's side too."""
    solo = Solo(terms=[1, 3, 3, 3, 5], hard_state=HardState(5))
    solo.lead()
    solo.receive(APP_RESP, N2, index=5, reject=True, reject_hint=4, log_term=2)
    assert [message.index for message in of_type(solo.settle(), APP, N2)] == [1]


def test_broken_entries_change_nothing() -> None:
    """What comes from a peer is checked, not asserted."""
    solo = Solo(terms=[1, 1], hard_state=HardState(1))
    good = encode_entries(1, 3, 0, 0, [b"x"])
    before = solo.terms()
    for block, error in (
        (good[:-1], CorruptEntry),
        (good[:40] + b"?" + good[41:], CorruptEntry),
        (b"short", InvalidMessage),
        (encode_entries(1, 4, 0, 0, [b"a gap"]), InvalidMessage),
        (encode_entries(2, 3, 0, 0, [b"a later term than the leader's"]), InvalidMessage),
    ):
        with pytest.raises(error):
            solo.receive(APP, term=1, index=2, log_term=1, block=block)
        assert solo.terms() == before
    with pytest.raises(InvalidMessage):
        solo.receive(APP, term=1, index=1, log_term=1, block=encode_entries(2, 2, 0, 0, [b"x"]))
    assert solo.terms() == before


# How a leader feeds its followers.


def test_a_probe_goes_once_until_there_is_an_answer_or_a_heartbeat_of_it() -> None:
    """Match is unknown: one append at a time."""
    solo = Solo()
    solo.lead()
    assert progress(solo) == (ProgressState.PROBE, 0, 1)
    solo.core.propose([b"x"])
    assert of_type(solo.settle(), APP) == []
    solo.receive(MessageType.HEARTBEAT_RESP)
    assert ranges(of_type(solo.settle(), APP)) == [(1, 2)]


def test_after_the_first_match_appends_stream() -> None:
    """Thesis §10.2.1: next moves ahead while sending."""
    solo = Solo()
    solo.lead_committed()
    for _ in range(3):
        solo.core.propose([b"x"])
        solo.outputs()
    assert progress(solo) == (ProgressState.REPLICATE, 1, 5)


def test_the_window_is_bounded_in_messages() -> None:
    """A slow follower costs bounded memory."""
    solo = Solo(max_inflight_messages=2)
    solo.lead_committed()
    sent = []
    for _ in range(4):
        solo.core.propose([b"x"])
        sent += of_type(solo.outputs(), APP, N3)
    assert ranges(sent) == [(2, 2), (3, 3)]
    solo.ack(2, N3)
    assert ranges(of_type(solo.outputs(), APP, N3)) == [(4, 5)]


def test_the_window_is_bounded_in_bytes() -> None:
    """cockroachdb/cockroach#90314: a window of messages alone holds gigabytes."""
    solo = Solo(max_append_bytes=300, max_inflight_bytes=300)
    solo.lead_committed()
    sent = []
    for _ in range(4):
        solo.core.propose([b"x" * 200])
        sent += of_type(solo.outputs(), APP, N3)
    assert ranges(sent) == [(2, 2), (3, 3)], "the second goes over the limit, and is the last"
    status = solo.core.status().progress[N3]
    assert (status.inflight_messages, status.inflight_bytes, status.paused) == (2, 472, True)


def test_with_a_full_window_one_empty_append_goes_with_each_heartbeat_answer() -> None:
    """etcd#14633: if all that filled the window was lost, its rejection gets replication going again."""
    solo = Solo(max_inflight_messages=1)
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.core.propose([b"y"])
    solo.settle()
    for _ in range(2):
        solo.receive(MessageType.HEARTBEAT_RESP, N3)
        sent = of_type(solo.outputs(), APP, N3)
        assert [(message.index, bool(message.entries)) for message in sent] == [(2, False)]
    solo.receive(APP_RESP, N3, index=2, reject=True, reject_hint=1, log_term=1)
    assert ranges(of_type(solo.outputs(), APP, N3)) == [(2, 3)]


def test_one_append_holds_no_more_than_it_may() -> None:
    solo = Solo(max_append_bytes=100, max_inflight_bytes=0)
    solo.lead_committed()
    solo.core.propose([b"x" * 10] * 5)
    assert ranges(of_type(solo.outputs(), APP, N3)) == [(2, 3)]
    solo.ack(3, N3)
    assert ranges(of_type(solo.outputs(), APP, N3)) == [(4, 5), (6, 6)]


def test_stale_rejections_do_nothing() -> None:
    """They name an index that is matched meanwhile, or another one than the last probe's."""
    solo = Solo()
    solo.lead_committed()
    solo.receive(APP_RESP, N2, index=1, reject=True)
    assert progress(solo) == (ProgressState.REPLICATE, 1, 2)
    solo.receive(APP_RESP, N2, index=5, reject=True)
    assert progress(solo) == (ProgressState.PROBE, 1, 2)
    solo.receive(APP_RESP, N2, index=7, reject=True)
    assert progress(solo) == (ProgressState.PROBE, 1, 2)


def test_the_word_to_a_stale_leader_confirms_no_probe() -> None:
    """It leads again, in the term that it is told of: that answer, of index 0, says nothing of the member's log."""
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1))
    solo.lead()
    assert progress(solo) == (ProgressState.PROBE, 0, 4)
    solo.receive(APP_RESP, N2, index=0)
    assert progress(solo) == (ProgressState.PROBE, 0, 4)
    solo.ack(4)
    assert progress(solo) == (ProgressState.REPLICATE, 4, 5)


def test_an_unreachable_peer_is_probed_from_its_last_match() -> None:
    """What was on its way is probably lost."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.outputs()
    solo.core.report_unreachable(N2)
    assert progress(solo) == (ProgressState.PROBE, 1, 2)
    solo.core.report_unreachable(N4)


def test_a_confirmed_match_turns_a_probe_into_a_stream() -> None:
    """A follower that is not behind must not stay in Probe until the next entry."""
    solo = Solo()
    solo.lead_committed()
    solo.core.report_unreachable(N2)
    solo.receive(MessageType.HEARTBEAT_RESP, N2)
    assert len(of_type(solo.outputs(), APP, N2)) == 1
    solo.ack(1, N2)
    assert progress(solo) == (ProgressState.REPLICATE, 1, 2)


# Snapshots.


def compacted(solo: Solo) -> Solo:
    solo.lead()
    solo.ack(solo.log.last_index, N2)
    solo.settle()
    solo.core.compact(solo.core.applied_index)
    solo.snapshot = SnapshotMeta(solo.core.applied_index, solo.core.term, ConfState((N1, N2, N3)))
    return solo


def test_a_snapshot_goes_to_who_needs_what_is_compacted_if_it_is_there() -> None:
    """Not to a dead one: that would read the disk for nothing."""
    solo = compacted(Solo(terms=[1]))
    solo.core.raft.tracker.progress[N3].flow_paused = False
    solo.core.propose([b"x"])
    assert of_type(solo.settle(), SNAP) == []
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    (sent,) = of_type(solo.settle(), SNAP)
    assert sent.snapshot == solo.snapshot
    assert progress(solo, N3) == (ProgressState.SNAPSHOT, 0, 3)
    solo.core.propose([b"y"])
    assert of_type(solo.settle(), APP, N3) == []


def test_without_a_snapshot_the_follower_waits() -> None:
    solo = compacted(Solo(terms=[1]))
    solo.snapshot = None
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    assert of_type(solo.settle(), SNAP) == []
    assert progress(solo, N3)[0] is ProgressState.PROBE


@pytest.mark.parametrize(("ok", "next_index"), [(True, 3), (False, 1)])
def test_after_a_snapshot_the_follower_is_probed_behind_it_or_from_its_match(ok: bool, next_index: int) -> None:
    """Every snapshot is followed by a report, or the peer would hang."""
    solo = compacted(Solo(terms=[1]))
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    solo.settle()
    solo.core.report_snapshot(N3, ok=ok)
    assert progress(solo, N3) == (ProgressState.PROBE, 0, next_index)
    solo.core.propose([b"x"])
    assert of_type(solo.settle(), APP, N3) == [], "its answer, or the next heartbeat's, starts the appends"


def test_whoever_is_back_in_the_log_needs_no_snapshot() -> None:
    """Whatever index the snapshot on its way has."""
    solo = compacted(Solo(terms=[1]))
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    solo.snapshot = SnapshotMeta(50, 1, ConfState((N1,)))
    solo.core.propose([b"x"])
    solo.ack(2, N3)
    assert ranges(of_type(solo.settle(), APP, N3)) == [(3, 3)]
    assert progress(solo, N3) == (ProgressState.REPLICATE, 2, 4)


def test_a_received_snapshot_replaces_the_log_and_is_acknowledged_when_it_is_stored() -> None:
    solo = Solo(terms=[1, 1])
    solo.receive(SNAP, term=2, snapshot=SnapshotMeta(10, 2, ConfState((N1, N2), (N3,))))
    assert (solo.log.prev_index, solo.log.prev_term, solo.core.commit_index) == (10, 2, 10)
    assert solo.core.applied_index == 0
    assert solo.outputs() == []
    (answer,) = solo.store()
    assert (answer.type, answer.index) == (APP_RESP, 10)
    assert solo.core.applied_index == 10
    assert solo.core.conf_state == ConfState((N1, N2), (N3,))


def test_a_snapshot_that_the_log_reaches_only_commits() -> None:
    """Nothing is thrown away that matches."""
    solo = Solo(terms=[1, 1, 1])
    solo.receive(SNAP, term=2, snapshot=SnapshotMeta(2, 1, ConfState((N1, N2, N3))))
    assert (solo.core.commit_index, solo.log.last_index) == (2, 3)
    assert solo.store()[0].index == 2


@pytest.mark.parametrize("snapshot", [None, SnapshotMeta(1, 1, ConfState((N1,))), SnapshotMeta(9, 1, ConfState((N2,)))])
def test_a_snapshot_that_is_old_or_not_for_us_is_ignored(snapshot: SnapshotMeta | None) -> None:
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1, commit=2))
    solo.receive(SNAP, term=1, snapshot=snapshot)
    assert [(answer.type, answer.index) for answer in solo.store()] == [(APP_RESP, 2)]
    assert solo.log.last_index == 3


# Proposals.


def test_a_hundred_proposals_are_one_write_and_one_append_to_each_follower() -> None:
    """The cost of a turn is per batch."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"] * 60)
    solo.core.propose([b"y"] * 40)
    sent = solo.outputs()
    assert [(message.to, ranges([message])) for message in sent] == [(N2, [(2, 101)]), (N3, [(2, 101)])]
    (write,) = solo.writes
    assert ranges([write]) == [(2, 101)]
    assert [(response.type, response.index) for response in write.responses] == [
        (APP_RESP, 101),
        (MessageType.STORAGE_APPEND_RESP, 101),
    ]


def test_as_the_reference_nothing_is_joined() -> None:
    solo = Solo(as_reference=True)
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.core.propose([b"y"])
    assert ranges(of_type(solo.outputs(), APP, N2)) == [(2, 2), (3, 3)]
    assert [response.index for response in solo.writes[0].responses] == [2, 3, 3]


def test_joined_appends_respect_the_size_of_a_message() -> None:
    solo = Solo(max_append_bytes=100, max_inflight_bytes=0)
    solo.lead_committed()
    for _ in range(3):
        solo.core.propose([b"x" * 10])
    assert ranges(of_type(solo.outputs(), APP, N2)) == [(2, 3), (4, 4)]


def test_an_append_that_goes_back_is_not_joined() -> None:
    """The peer was found unreachable in the same turn: what follows begins at its last match."""
    solo = Solo()
    solo.lead_committed()
    solo.core.propose([b"x"])
    solo.outputs()
    solo.core.propose([b"y"])
    solo.core.report_unreachable(N2)
    solo.receive(MessageType.HEARTBEAT_RESP, N2)
    assert ranges(of_type(solo.outputs(), APP, N2)) == [(3, 3), (2, 3)]


def test_acknowledgements_of_one_turn_are_joined() -> None:
    """They include each other; a rejection stays by itself."""
    solo = Solo()
    solo.append(1, [1], prev_term=0, term=1)
    solo.append(2, [1], prev_term=1, term=1)
    solo.receive(APP, term=1, index=9, log_term=1)
    assert [(answer.index, answer.reject) for answer in solo.store()] == [(2, False), (9, True)]


@pytest.mark.parametrize("how", ["cut", "snapshot"])
def test_a_queued_append_does_not_outlive_its_entries(how: str) -> None:
    """Ours name a range, which may mean other entries, or none, by the time they leave (openraft log_stream.md)."""
    solo = Solo(terms=[1])
    solo.lead_committed()
    solo.core.propose([b"mine"])
    if how == "cut":
        solo.append(3, [9], prev_term=2, term=9, sender=N3)
    else:
        solo.receive(SNAP, term=9, snapshot=SnapshotMeta(30, 9, ConfState((N1, N2, N3))))
    assert of_type(solo.outputs(), APP) == []


def test_a_queued_append_does_not_outlive_a_compaction() -> None:
    solo = Solo(terms=[1, 1, 1])
    solo.lead()
    solo.ack(4, N2)
    solo.settle()
    solo.receive(APP_RESP, N3, index=3, reject=True, reject_hint=1, log_term=1)
    solo.core.compact(2)
    assert of_type(solo.outputs(), APP) == []
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    solo.snapshot = SnapshotMeta(4, 2, ConfState((N1, N2, N3)))
    solo.receive(MessageType.HEARTBEAT_RESP, N3)
    assert len(of_type(solo.outputs(), SNAP)) == 1


def test_as_the_reference_a_queued_append_keeps_its_entries() -> None:
    """The reference copies entries into messages."""
    solo = Solo(terms=[1], as_reference=True)
    solo.lead_committed()
    solo.core.propose([b"mine"])
    expected = b"".join(solo.log.spans(3, 3))
    solo.append(3, [9], prev_term=2, term=9, sender=N3)
    sent = of_type(solo.outputs(), APP)
    assert [(message.term, message.block) for message in sent] == [(2, expected), (2, expected)]


def test_followers_pass_proposals_on() -> None:
    solo = Solo()
    with pytest.raises(ProposalDropped):
        solo.core.propose([b"x"])
    solo.receive(HEARTBEAT, N2, term=1)
    solo.core.propose([b"x", b"y"])
    (sent,) = of_type(solo.outputs(), MessageType.PROP)
    assert (sent.to, sent.sender, sent.term, sent.payloads) == (N2, N1, 0, ((0, b"x"), (0, b"y")))


def test_a_forwarded_proposal_is_appended() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.receive(MessageType.PROP, N2, term=0, payloads=((0, b"x"), (0, b"y")))
    assert [entry[4] for entry in solo.log.entries(2, 3)] == [b"x", b"y"]
    for payloads in ((), ((0, b"x" * (4 * 1024 * 1024)),), ((1, b"nonsense"),), ((2, b"\x07"),)):
        with pytest.raises(InvalidMessage):
            solo.receive(MessageType.PROP, N2, term=0, payloads=payloads)
    assert solo.log.last_index == 3


def test_proposals_are_dropped_when_too_much_is_uncommitted() -> None:
    """etcd MaxUncommittedEntriesSize: an empty payload always fits, and a large one alone does."""
    solo = Solo(max_uncommitted_bytes=100)
    solo.lead_committed()
    solo.core.propose([b"x" * 200])
    with pytest.raises(ProposalDropped):
        solo.core.propose([b"y"])
    solo.core.propose([b""])
    solo.ack(3, N2)
    solo.settle()
    assert solo.core.status().uncommitted_bytes == 0
    solo.core.propose([b"y"])


def test_stamps_come_from_the_driver() -> None:
    solo = Solo()
    solo.lead_committed()
    solo.core.stamp = 12345
    solo.core.propose([b"x"])
    assert solo.log.entries(2, 2)[0][2] == 12345


# The face.


def test_answers_of_strangers_and_local_messages_are_refused() -> None:
    solo = Solo()
    solo.lead_committed()
    with pytest.raises(PeerNotFound):
        solo.ack(1, N4)
    for kind in (MessageType.HUP, MessageType.BEAT, MessageType.UNREACHABLE, MessageType.STORAGE_APPEND_RESP):
        with pytest.raises(LocalMessage):
            solo.receive(kind, N2)


def test_an_acknowledgement_of_what_the_leader_has_not_is_refused() -> None:
    solo = Solo()
    solo.lead_committed()
    with pytest.raises(InvalidMessage):
        solo.ack(100, N2)


def test_who_lost_its_log_does_not_start() -> None:
    """dragonboat#256, #354; etcd: tocommit is out of range."""
    with pytest.raises(LogLost):
        Solo(terms=[1], hard_state=HardState(1, commit=2))
    with pytest.raises(LogLost):
        Solo(terms=[1], applied=2)


def test_what_was_applied_was_committed() -> None:
    """The commit index alone is not synced: the state machine may know better."""
    solo = Solo(terms=[1, 1, 1], hard_state=HardState(1, commit=1), applied=2)
    assert (solo.core.commit_index, solo.core.applied_index) == (2, 2)


def test_the_status_says_what_a_leader_knows() -> None:
    solo = Solo()
    assert solo.core.status().progress == {}
    solo.lead_committed()
    status = solo.core.status()
    assert (status.role, status.leader_id, status.commit_index, status.last_index) == (Role.LEADER, N1, 1, 1)
    assert list(status.progress) == [N1, N2, N3]
    assert (status.progress[N2].match_index, status.progress[N2].state) == (1, ProgressState.REPLICATE)


def test_a_node_is_ready_only_when_there_is_something_to_do() -> None:
    solo = Solo()
    assert not solo.core.has_ready()
    solo.lead_committed()
    assert not solo.core.has_ready()
    output = solo.core.ready()
    assert (output.messages, output.must_sync, output.hard_state, output.soft_state) == ((), False, None, None)


def test_members_are_fed_in_the_order_of_their_numbers() -> None:
    ids = [NodeId(name) for name in ("n10", "n9", "n2", "n1")]
    core = Solo(voters=ids).core
    assert isinstance(core, RawNode)
    assert isinstance(core.raft.tracker, Tracker)
    assert [progress.id for progress in core.raft.tracker.peers] == ["n2", "n9", "n10"]
