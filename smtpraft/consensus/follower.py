"""What followers and candidates do: take entries, heartbeats and snapshots; pass on what the leader must do."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from smtpraft.consensus.confchange import Membership
from smtpraft.consensus.errors import InvalidMessage, LogConflict, LogLost, ProposalDropped
from smtpraft.consensus.messages import Message, MessageType, ReadState
from smtpraft.fastlog import ENTRY_HEADER_BYTES, CorruptEntry, block_range
from smtpraft.types import NO_NODE

if TYPE_CHECKING:
    from smtpraft.consensus.messages import SnapshotMeta
    from smtpraft.consensus.raft import Raft

APP_RESP = MessageType.APP_RESP
HEARTBEAT_RESP = MessageType.HEARTBEAT_RESP

_index_at = Struct(">Q").unpack_from


# Entries.


def on_append(raft: Raft, message: Message) -> None:
    raft.election_elapsed = 0
    raft.promise()
    raft.leader_id = message.sender
    handle_append(raft, message)


def handle_append(raft: Raft, message: Message) -> None:
    """Store the entries if the log matches before them, else say where it might (Raft §5.3)."""
    raftlog, log = raft.raftlog, raft.log
    prev = message.index
    if prev < raftlog.commit_index:
        # Old news: what is committed here is what the leader has.
        _check_committed(raft, message)
        raft.acknowledge(message.sender, raftlog.commit_index)
        return
    if prev > raftlog.last_index or log.term(prev) != message.log_term:
        # The largest index that can match: one above it has a higher term than the leader's at `prev`, or is missing.
        hint, hint_term = log.find_conflict_by_term(min(prev, log.last_index), message.log_term)
        raft.send_after_append(
            Message(APP_RESP, message.sender, index=prev, reject=True, reject_hint=hint, log_term=hint_term)
        )
        return
    last = _store(raft, message) if message.block else prev
    raftlog.commit_to(min(message.commit, last))
    raft.acknowledge(message.sender, last)


def _check_committed(raft: Raft, message: Message) -> None:
    """Look whether the leader has what is committed here; its log would replace ours without a word.

    Raises:
        LogConflict: it has not. With votes that is impossible (Leader Completeness, Raft §5.4.3).
    """
    log, commit_index = raft.log, raft.raftlog.commit_index
    prev = message.index
    conflict = prev if prev >= log.prev_index and log.term(prev) != message.log_term else 0
    if not conflict and message.block:
        conflict, _ = log.match(message.block)
    if 0 < conflict <= commit_index:
        raise LogConflict(f"entry {conflict} of {message.sender} differs, but is committed here")


def _store(raft: Raft, message: Message) -> int:
    """Append the block, from its first entry that is new; return its last index.

    The log is cut only where an entry contradicts it: an append that comes late must not take back what a later one
    brought, which may be acknowledged already (Raft §5.3).

    Raises:
        CorruptEntry, InvalidMessage: the block is not what a correct leader sends. Nothing has changed.
    """
    block, log = message.block, raft.log
    first = message.index + 1
    if len(block) < ENTRY_HEADER_BYTES or _index_at(block, 16)[0] != first:  # In the header of its first record.
        raise InvalidMessage(f"the entries of {message.sender} do not follow {message.index}")
    raftlog = raft.raftlog
    if first == raftlog.last_index + 1:
        _append_block(raft, block, first)
        if raftlog.last_term > message.term:
            log.truncate(first)
            raftlog.moved()
            raise InvalidMessage(f"entries of a later term than their leader's, {message.term}")
        return raftlog.last_index

    new, last = log.match(block)
    if not new:
        return last
    assert new > raft.raftlog.commit_index
    if block_range(block)[3] > message.term:
        raise InvalidMessage(f"entries of a later term than their leader's, {message.term}")
    raft.leaving(new, log.last_index)
    if not raft.as_reference:
        # What goes before it is written is not on the disk when the next write is: its acknowledgement is none. Only
        # its leader, whose term is over, could miss that.
        raft.after_append = [
            answer for answer in raft.after_append if answer.type is not APP_RESP or answer.reject or answer.index < new
        ]
    _append_block(raft, block, new)
    raft.raftlog.cut(new)
    return last


def _append_block(raft: Raft, block: bytes, first: int) -> None:
    try:
        raft.log.append_block(block, first)
        raft.raftlog.moved()
    except CorruptEntry:
        raise
    except ValueError as error:  # A term lower than the one before it.
        raise InvalidMessage(f"entries that do not fit: {error}") from error


# Heartbeats.


def _on_heartbeat(raft: Raft, message: Message) -> None:
    raft.election_elapsed = 0
    raft.promise()
    raft.leader_id = message.sender
    handle_heartbeat(raft, message)


def handle_heartbeat(raft: Raft, message: Message) -> None:
    """Learn the commit index and answer.

    Raises:
        LogLost: the leader knows that we had stored what we have no longer.
    """
    if message.commit > raft.log.last_index:
        raise LogLost(f"the leader knows {message.commit} stored here, the log ends at {raft.log.last_index}")
    raft.raftlog.commit_to(message.commit)
    raft.messages.append(Message(HEARTBEAT_RESP, message.sender, raft.id, raft.term, context=message.context))


# Snapshots.


def _on_snapshot(raft: Raft, message: Message) -> None:
    raft.election_elapsed = 0
    raft.leader_id = message.sender
    handle_snapshot(raft, message)


def handle_snapshot(raft: Raft, message: Message) -> None:
    """Restore from a snapshot unless the log reaches as far; answer up to where it matches now."""
    snapshot = message.snapshot
    if snapshot is not None and _restore(raft, snapshot):
        raft.acknowledge(message.sender, raft.log.last_index)
    else:
        raft.acknowledge(message.sender, raft.raftlog.commit_index)


def _restore(raft: Raft, snapshot: SnapshotMeta) -> bool:
    raftlog, log = raft.raftlog, raft.log
    if snapshot.index <= raftlog.commit_index:
        return False
    state = snapshot.conf_state
    if raft.id not in {*state.voters, *state.learners, *state.voters_outgoing}:
        return False
    if snapshot.index <= log.last_index and log.term(snapshot.index) == snapshot.term:
        # We have it all, we did not know that it is committed.
        raftlog.commit_to(snapshot.index)
        return False
    membership = Membership.restore(state)
    if raft.superseded is None:
        raft.superseded = raft.tracker.membership
    raft.leaving(log.first_index, log.last_index)
    raftlog.restore(snapshot)
    raft.tracker.install(membership, membership.tracked, log.last_index)
    return True


# What is the leader's business.


def _on_prop(raft: Raft, message: Message) -> None:
    if not raft.leader_id:
        raise ProposalDropped("no leader is known")
    raft.forward(message)


def _pass_on(raft: Raft, message: Message) -> None:
    if raft.leader_id:
        raft.forward(message)


def _on_read_index_response(raft: Raft, message: Message) -> None:
    raft.read_states.append(ReadState(message.index, message.context))


def _on_forget_leader(raft: Raft, _message: Message) -> None:
    """Believe no more in this leader: a pre-vote can be granted at once. A lease of reads forbids that."""
    if not raft.config.lease_reads:
        raft.leader_id = NO_NODE


def _on_timeout_now(raft: Raft, _message: Message) -> None:
    """The leader hands over. No pre-vote: nobody is coming back from a partition here."""
    raft.campaign(transfer=True)


HANDLERS: Final[dict[MessageType, Callable[[Raft, Message], None]]] = {
    MessageType.APP: on_append,
    MessageType.FORGET_LEADER: _on_forget_leader,
    MessageType.HEARTBEAT: _on_heartbeat,
    MessageType.PROP: _on_prop,
    MessageType.READ_INDEX: _pass_on,
    MessageType.READ_INDEX_RESP: _on_read_index_response,
    MessageType.SNAP: _on_snapshot,
    MessageType.TIMEOUT_NOW: _on_timeout_now,
    MessageType.TRANSFER_LEADER: _pass_on,
}


# Candidates.


def _as_follower(raft: Raft, message: Message) -> None:
    """Somebody leads this term already: follow (Raft §5.2)."""
    raft.become_follower(raft.term, message.sender)
    HANDLERS[message.type](raft, message)


def _drop(_raft: Raft, _message: Message) -> None:
    raise ProposalDropped("an election is on")


def _on_vote_response(raft: Raft, message: Message) -> None:
    raft.election.count(raft, message)


CANDIDATE_HANDLERS: Final[dict[MessageType, Callable[[Raft, Message], None]]] = {
    MessageType.APP: _as_follower,
    MessageType.HEARTBEAT: _as_follower,
    MessageType.PRE_VOTE_RESP: _on_vote_response,
    MessageType.PROP: _drop,
    MessageType.SNAP: _as_follower,
    MessageType.VOTE_RESP: _on_vote_response,
}
