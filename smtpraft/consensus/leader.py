"""What a leader does: append, replicate, commit, keep its followers, confirm reads, hand over (Raft §5.3, §5.4, §8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from smtpraft.consensus.confchange import decode_conf_change
from smtpraft.consensus.errors import InvalidConfChange, InvalidMessage, ProposalDropped
from smtpraft.consensus.messages import Message, MessageType, ReadState, entry_range, new_message
from smtpraft.consensus.progress import ProgressState
from smtpraft.consensus.readonly import PendingRead
from smtpraft.fastlog import (
    ENTRY_BYTES_MAX,
    ENTRY_CONF_CHANGE_V2,
    ENTRY_HEADER_BYTES,
    ENTRY_NORMAL,
    Compacted,
)
from smtpraft.types import NO_NODE

if TYPE_CHECKING:
    from smtpraft.consensus.progress import Progress
    from smtpraft.consensus.raft import Raft

APP = MessageType.APP
HEARTBEAT = MessageType.HEARTBEAT
PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT

PAYLOAD_BYTES_MAX: Final = ENTRY_BYTES_MAX - ENTRY_HEADER_BYTES


# Proposals.


def propose(raft: Raft, payloads: Sequence[bytes]) -> None:
    """Append normal entries and send them.

    Raises:
        ProposalDropped: nothing was appended.
    """
    _check_open(raft)
    _reserve(raft, sum(map(len, payloads)))
    append(raft, ENTRY_NORMAL, payloads)
    broadcast_append(raft)


def _check_open(raft: Raft) -> None:
    if raft.id not in raft.tracker.progress:
        raise ProposalDropped("this leader is no member any more")
    if raft.transferee:
        raise ProposalDropped(f"leadership is moving to {raft.transferee}")


def _reserve(raft: Raft, payload_bytes: int) -> None:
    """Count payload that is not committed yet. An empty one never fails, and a large one fits if it is alone."""
    limit = raft.config.max_uncommitted_bytes
    if limit and payload_bytes and raft.uncommitted_bytes and raft.uncommitted_bytes + payload_bytes > limit:
        raise ProposalDropped(f"{raft.uncommitted_bytes} bytes are uncommitted")
    raft.uncommitted_bytes += payload_bytes


def append(raft: Raft, kind: int, payloads: Sequence[bytes]) -> None:
    """Append entries of this term. They count as stored here only when this node's own answer comes back."""
    raft.log.append(raft.term, raft.stamp, kind, payloads)
    raft.raftlog.moved()
    raft.acknowledge(raft.id, raft.raftlog.last_index)


def propose_leave(raft: Raft) -> None:
    """Propose to leave the joint membership. During a transfer it is not the time; the next apply tries again."""
    if raft.id in raft.tracker.progress and not raft.transferee:
        _append_proposals(raft, ((ENTRY_CONF_CHANGE_V2, b""),))


def _on_prop(raft: Raft, message: Message) -> None:
    if not message.payloads:
        raise InvalidMessage("a proposal of nothing")
    _check_open(raft)
    _append_proposals(raft, message.payloads)


def _append_proposals(raft: Raft, proposals: Sequence[tuple[int, bytes]]) -> None:
    """Append proposals of any kind, and send them; a membership change out of turn becomes an empty entry."""
    payload_bytes = 0
    for _, payload in proposals:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise InvalidMessage(f"a proposal of {len(payload)} bytes")
        payload_bytes += len(payload)
    checked, pending_conf_index = _check_conf_changes(raft, proposals)
    _reserve(raft, payload_bytes)
    raft.pending_conf_index = pending_conf_index
    for kind, group in groupby(checked, key=itemgetter(0)):
        append(raft, kind, [payload for _, payload in group])
    broadcast_append(raft)


def _check_conf_changes(raft: Raft, proposals: Sequence[tuple[int, bytes]]) -> tuple[Sequence[tuple[int, bytes]], int]:
    """Return the proposals with each inadmissible membership change emptied, and the new pending index.

    One change at a time: the next may be proposed when the one before is applied here. This check is only a
    convenience; what is safe is decided when the change is applied, by every node alike.
    """
    pending = raft.pending_conf_index
    if all(kind == ENTRY_NORMAL for kind, _ in proposals):
        return proposals, pending
    checked = list(proposals)
    for position, (kind, payload) in enumerate(proposals):
        if kind == ENTRY_NORMAL:
            continue
        try:
            leaves = not decode_conf_change(kind, payload).changes
        except InvalidConfChange as error:
            raise InvalidMessage(f"a proposal that is no membership change: {error}") from error
        admissible = pending <= raft.raftlog.applied_index and leaves == raft.tracker.membership.is_joint
        if admissible or raft.config.disable_conf_change_validation:
            pending = raft.log.last_index + position + 1
        else:
            checked[position] = (ENTRY_NORMAL, b"")
    return checked, pending


# Replication.


def broadcast_append(raft: Raft) -> None:
    """Send everybody what they lack, or at least the commit index."""
    for progress in raft.tracker.peers:
        maybe_send_append(raft, progress, if_empty=True)


def maybe_send_append(raft: Raft, progress: Progress, if_empty: bool) -> bool:
    """Send a member the entries it lacks, as many as one message holds, or a snapshot; return whether anything went.

    An append without entries tells the commit index and tests whether the logs match; `if_empty` allows it.
    """
    if progress.flow_paused or progress.state is SNAPSHOT:
        return False
    log, raftlog = raft.log, raft.raftlog
    first = progress.next_index
    last = raftlog.last_index
    if first > last:
        prev_term = raftlog.last_term
    else:
        try:
            prev_term = log.term(first - 1)
        except Compacted:
            return _maybe_send_snapshot(raft, progress)

    size = 0
    # With a full window an empty append goes, once per heartbeat: if all that filled the window was lost, its
    # rejection is what gets replication going again.
    if first <= last and (progress.state is not REPLICATE or not progress.inflights.is_full()):
        size = log.size_bytes(first, last)
        if size > raft.max_append_bytes:
            last = log.upto_bytes(first, last, raft.max_append_bytes)
            size = log.size_bytes(first, last)
    elif not if_empty:
        return False

    commit = raftlog.commit_index
    unsent = raft.unsent_appends.get(progress.id)
    if unsent is None or not _join(raft, unsent, first, last, size, commit):
        message = new_message(APP, progress.id, raft.id, raft.term)
        message.log_term = prev_term
        message.index = first - 1
        message.commit = commit
        if size:
            message.entries = entry_range(first, last)
        raft.messages.append(message)
        if not raft.as_reference:
            raft.unsent_appends[progress.id] = message
    progress.sent(last, size)
    progress.sent_commit = commit
    return True


def _join(raft: Raft, unsent: Message, first: int, last: int, size: int, commit: int) -> bool:
    """Let an append that has not left yet carry what continues it; return False if it cannot."""
    end = unsent.entries.last or unsent.index
    if end != first - 1 or unsent.term != raft.term:
        return False
    if size:
        start = unsent.entries.first or first
        if start != first and raft.log.size_bytes(start, last) > raft.max_append_bytes:
            return False
        unsent.entries = entry_range(start, last)
    unsent.commit = commit
    return True


def _maybe_send_snapshot(raft: Raft, progress: Progress) -> bool:
    """What the member needs is compacted away: a snapshot goes, if the member is there and there is one."""
    if not progress.recent_active:
        return False
    snapshot = raft.snapshot_provider()
    if snapshot is None or not snapshot.index:
        return False
    progress.become_snapshot(snapshot.index)
    raft.send(Message(MessageType.SNAP, to=progress.id, snapshot=snapshot))
    return True


def maybe_commit(raft: Raft) -> bool:
    """Commit what a majority has stored; return whether that is more than before.

    Only an entry of this term commits by counting, the earlier ones with it: an entry of an earlier term may be on a
    majority and still be overwritten (Raft §5.4.2, Figure 8).
    """
    index = raft.tracker.committed_index()
    if index <= raft.raftlog.commit_index or index > raft.log.last_index or raft.log.term(index) != raft.term:
        return False
    raft.raftlog.commit_to(index)
    return True


def _confirms_probe(raft: Raft, progress: Progress, index: int) -> bool:
    """Does this answer, which tells nothing new, say that the last probe has found where the logs agree?

    The word to a stale leader (`Raft._step_lower`) is an answer of index 0, and may come when that one leads again, in
    the new term. Taken for the answer to a probe of index 0 it would send a member with a long log back to the first
    entry, and have it sent a snapshot if that is compacted.
    """
    if progress.state is not PROBE or progress.match_index != index:
        return False
    return raft.config.as_reference or progress.next_index == index + 1


def on_append_response(raft: Raft, message: Message) -> None:
    """A member, or this node's own disk, has stored entries or refused them."""
    progress = raft.tracker.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    index = message.index
    if message.reject:
        hint = message.reject_hint
        if message.log_term:
            # Skip whole terms: where the member's term at the hint is not ours, nothing up to there can match.
            hint, _ = raft.log.find_conflict_by_term(hint, message.log_term)
        if progress.decrease(index, hint):
            if progress.state is REPLICATE:
                progress.become_probe()
            maybe_send_append(raft, progress, if_empty=True)
        return
    if index > raft.raftlog.last_index:
        raise InvalidMessage(f"{message.sender} has stored {index}, the log ends at {raft.raftlog.last_index}")
    if not progress.update(index) and not _confirms_probe(raft, progress, index):
        return

    if progress.state is REPLICATE:
        progress.inflights.free_to(index)
    elif progress.state is PROBE:
        progress.become_replicate()
    elif index + 1 >= raft.log.first_index:
        # Back in the log, whatever snapshot is on its way.
        progress.become_replicate()

    own = message.sender == raft.id
    # What is committed already can commit nothing more.
    if index > raft.raftlog.commit_index and maybe_commit(raft):
        _release_postponed_reads(raft)
        broadcast_append(raft)
    elif not own and progress.can_bump_commit(raft.raftlog.commit_index):
        maybe_send_append(raft, progress, if_empty=True)
    if own:
        return
    while progress.next_index <= raft.raftlog.last_index and maybe_send_append(raft, progress, if_empty=False):
        pass
    if message.sender == raft.transferee:
        _hand_over_if_sent(raft, progress)


# Heartbeats and the quorum.


def tick(raft: Raft) -> None:
    """Check the quorum once per election timeout, send heartbeats once per heartbeat interval."""
    raft.heartbeat_elapsed += 1
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        if raft.config.check_quorum and not _check_quorum(raft):
            return
        # Whoever could not take over in an election timeout will not: lead on.
        raft.transferee = NO_NODE
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        broadcast_heartbeat(raft)


def _check_quorum(raft: Raft) -> bool:
    """Step down if the majority is out of reach: another leader may be there already (thesis §6.2)."""
    active = raft.tracker.quorum_active()
    if not active:
        raft.become_follower(raft.term, NO_NODE)
    for progress in raft.tracker.peers:
        progress.recent_active = False
    return active


def broadcast_heartbeat(raft: Raft) -> None:
    """Send everybody a heartbeat, with what confirms the reads that wait."""
    raft.reads_to_confirm = False
    context = raft.reads.heartbeat_context()
    commit_index = raft.raftlog.commit_index
    for progress in raft.tracker.peers:
        # Never beyond what the member is known to have: it may hold other entries there.
        commit = min(progress.match_index, commit_index)
        raft.messages.append(Message(HEARTBEAT, progress.id, raft.id, raft.term, commit=commit, context=context))
        progress.sent_commit = commit


def _on_heartbeat_response(raft: Raft, message: Message) -> None:
    progress = raft.tracker.progress.get(message.sender)
    if progress is None:
        return
    progress.recent_active = True
    progress.flow_paused = False
    if progress.match_index < raft.log.last_index or progress.state is PROBE:
        maybe_send_append(raft, progress, if_empty=True)
    if message.context and raft.reads.acknowledge(message.sender, message.context):
        _confirm_reads(raft)


# Reads.


def _on_read_index(raft: Raft, message: Message) -> None:
    """A read, of this node or another. A leader that has not committed in its term does not know what is committed."""
    if raft.log.term(raft.raftlog.commit_index) != raft.term:
        raft.postponed_reads.append(message)
        return
    read = PendingRead(message.sender, message.context, raft.raftlog.commit_index)
    alone = raft.tracker.is_singleton and raft.id in raft.tracker.membership.incoming
    if alone or _lease_stands(raft):
        _answer_read(raft, read)
        return
    raft.reads.add(read)
    raft.reads.acknowledge(raft.id, raft.reads.heartbeat_context())
    raft.reads_to_confirm = True


def _lease_stands(raft: Raft) -> bool:
    """Can there be no other leader now? Whoever is told to take over is not held up by the others' promises."""
    if not raft.config.lease_reads:
        return False
    return raft.config.as_reference or (not raft.handed_over and raft.lease_held())


def _confirm_reads(raft: Raft) -> None:
    for read in raft.reads.confirm(raft.tracker.acknowledged(raft.reads.acks)):
        _answer_read(raft, read)


def _answer_read(raft: Raft, read: PendingRead) -> None:
    if read.node in {raft.id, NO_NODE}:
        raft.read_states.append(ReadState(read.index, read.context))
    else:
        raft.send(Message(MessageType.READ_INDEX_RESP, to=read.node, index=read.index, context=read.context))


def _release_postponed_reads(raft: Raft) -> None:
    if not raft.postponed_reads:
        return
    postponed, raft.postponed_reads = raft.postponed_reads, []
    for message in postponed:
        _on_read_index(raft, message)


# Followers out of order, and handing over.


def _on_snapshot_status(raft: Raft, message: Message) -> None:
    """The driver has sent a snapshot, or failed to."""
    progress = raft.tracker.progress.get(message.sender)
    if progress is None or progress.state is not SNAPSHOT:
        return
    if message.reject:
        progress.pending_snapshot = 0  # Nothing arrived: probe from the last match, not from behind the snapshot.
    progress.become_probe()
    # Let the member's answer, or the next heartbeat's, start the appends.
    progress.flow_paused = True


def _on_unreachable(raft: Raft, message: Message) -> None:
    """The driver could not send: what is on its way is probably lost."""
    progress = raft.tracker.progress.get(message.sender)
    if progress is not None and progress.state is REPLICATE:
        progress.become_probe()


def _on_transfer_leader(raft: Raft, message: Message) -> None:
    """Hand leadership to `message.sender` (thesis §3.10): catch it up, then let it campaign at once."""
    target = message.sender
    progress = raft.tracker.progress.get(target)
    if progress is None or progress.is_learner or target == raft.transferee:
        return
    raft.transferee = NO_NODE
    if target == raft.id:
        return
    raft.election_elapsed = 0
    raft.transferee = target
    if progress.match_index < raft.log.last_index:
        maybe_send_append(raft, progress, if_empty=True)
    _hand_over_if_sent(raft, progress)


def _hand_over_if_sent(raft: Raft, progress: Progress) -> None:
    """Let the transferee campaign if it has everything, or everything it lacks has been sent to it.

    This message follows those appends on the same connection, so that it campaigns with all of them in its log, and
    syncs them together with its own vote: one sync and one round trip less than to wait for its answer. Its log is no
    shorter for that when the voters compare it (Raft §5.4.1), and its own vote does not count before all is stored.
    """
    log = raft.log
    sent = progress.state is REPLICATE and progress.next_index > log.last_index and not raft.config.as_reference
    if sent or progress.match_index == log.last_index:
        raft.handed_over = True
        raft.send(Message(MessageType.TIMEOUT_NOW, to=progress.id))


HANDLERS: Final[dict[MessageType, Callable[[Raft, Message], None]]] = {
    MessageType.APP_RESP: on_append_response,
    MessageType.HEARTBEAT_RESP: _on_heartbeat_response,
    MessageType.PROP: _on_prop,
    MessageType.READ_INDEX: _on_read_index,
    MessageType.SNAP_STATUS: _on_snapshot_status,
    MessageType.TRANSFER_LEADER: _on_transfer_leader,
    MessageType.UNREACHABLE: _on_unreachable,
}
