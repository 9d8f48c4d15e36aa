"""The face of the core: say what happened, take what is to be done (the shape of etcd's RawNode).

    node.stamp = now_ms
    node.tick() | node.step(message) | node.propose([...]) | …       any number of them
    while node.has_ready():
        output = node.ready()          everything in it counts as handed out; see `Output`

With asynchronous storage `output.messages` is all there is to do. A message names entries by range: turn ranges into
bytes (`log.spans`) before the next call into the node, which may replace them. The append and the apply worker are
each first in, first out, and lose nothing. Each response of a finished message goes to its `to`: into `step` if that is
this node, else over the network. Compact the log through the node only.

Without (`async_storage=False`) do, in this order: store `hard_state`, `snapshot` and `entries`, and sync if
`must_sync`; apply `committed`; send `messages`; `advance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from smtpraft.consensus import leader
from smtpraft.consensus.confchange import ConfChangeV2, Membership, encode_conf_change
from smtpraft.consensus.config import Config
from smtpraft.consensus.errors import InvalidMessage, LocalMessage, PeerNotFound, ProposalDropped
from smtpraft.consensus.messages import (
    APPEND_THREAD,
    APPLY_THREAD,
    NO_ENTRIES,
    ConfState,
    EntryRange,
    HardState,
    Message,
    MessageType,
    Output,
    Role,
    SnapshotMeta,
    SoftState,
    new_message,
)
from smtpraft.consensus.progress import Progress, ProgressState
from smtpraft.consensus.raft import Raft
from smtpraft.fastlog import ENTRY_CONF_CHANGE_V2, Log
from smtpraft.types import NodeId

APP, APP_RESP = MessageType.APP, MessageType.APP_RESP
STORAGE_APPEND, STORAGE_APPEND_RESP = MessageType.STORAGE_APPEND, MessageType.STORAGE_APPEND_RESP
STORAGE_APPLY, STORAGE_APPLY_RESP = MessageType.STORAGE_APPLY, MessageType.STORAGE_APPLY_RESP
LEADER = Role.LEADER
_new_tuple = tuple.__new__

LOCAL_TYPES: Final = frozenset(
    {
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
    }
)
RESPONSE_TYPES: Final = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.VOTE_RESP,
        MessageType.PRE_VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.READ_INDEX_RESP,
    }
)
TERM_TYPES: Final = frozenset(
    {
        MessageType.VOTE,
        MessageType.VOTE_RESP,
        MessageType.PRE_VOTE,
        MessageType.APP,
        MessageType.APP_RESP,
        MessageType.HEARTBEAT,
        MessageType.HEARTBEAT_RESP,
        MessageType.SNAP,
        MessageType.TIMEOUT_NOW,
    }
)
"""What is nothing without a term."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What this node, leading, knows of one member."""

    match_index: int
    next_index: int
    state: ProgressState
    is_learner: bool
    recent_active: bool
    paused: bool
    pending_snapshot: int
    inflight_messages: int
    inflight_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """One node at one moment. `progress` has every member, in order, if the node leads; else it is empty."""

    id: NodeId
    role: Role
    term: int
    vote: NodeId
    leader_id: NodeId
    first_index: int
    last_index: int
    stable_index: int
    commit_index: int
    applied_index: int
    conf_state: ConfState
    transferee: NodeId
    uncommitted_bytes: int
    progress: dict[NodeId, PeerStatus]


def _no_snapshot() -> SnapshotMeta | None:
    return None


class RawNode:
    """One node. Not for several threads; no call waits, none but `ready` and `advance` has to follow another."""

    def __init__(
        self,
        config: Config,
        log: Log,
        conf_state: ConfState,
        hard_state: HardState,
        applied: int,
        random: Random,
        snapshot_provider: Callable[[], SnapshotMeta | None] = _no_snapshot,
        *,
        abstains_through: int = 0,
    ) -> None:
        """Start as a follower from what the disk says; `log` is shared with the caller from now on.

        `applied` is what the state machine has applied; it may be ahead of `hard_state.commit`.

        A node whose disk lost something that was synced gives in `abstains_through` a term that is not below any in
        which it may have voted or acknowledged, and starts in a later term, without a vote; `hard_state.commit` is of
        what is left. It follows, and its acknowledgements count, but until its log ends in a later term than that it
        neither votes nor campaigns. `abstains` tells whether it still does so.

        Raises:
            LogLost: the log lacks what was committed or applied.
            InvalidConfChange: `conf_state` is no possible membership.
        """
        assert not abstains_through or hard_state.term > abstains_through, "it may have voted in this term"
        self.raft = Raft(config, log, conf_state, hard_state, applied, random, snapshot_provider)
        self.raft.abstains_through = abstains_through
        self.id = config.id
        self.log = log
        self._conf_of: Membership | None = None
        self._conf_state = conf_state
        self._async = config.async_storage
        # What was handed out last.
        self._last_leader, self._last_role = self.raft.leader_id, self.raft.role
        self._last_term, self._last_vote, self._last_commit = self.raft.hard_state
        self._on_advance: list[Message] = []
        self._advance_due = False

    # Facts, cheap.

    @property
    def stamp(self) -> int:
        """Milliseconds that entries appended from now on carry; opaque to the core."""
        return self.raft.stamp

    @stamp.setter
    def stamp(self, stamp: int) -> None:
        self.raft.stamp = stamp

    @property
    def barred(self) -> bool:
        """Must this node not campaign, say because its disk is slow? It votes, follows and, once it leads, leads."""
        return self.raft.barred

    @barred.setter
    def barred(self, barred: bool) -> None:
        self.raft.barred = barred

    @property
    def lease_held(self) -> Callable[[], bool]:
        """With lease reads: what says whether promises of a majority, asked for by this leader, stand right now."""
        return self.raft.lease_held

    @lease_held.setter
    def lease_held(self, lease_held: Callable[[], bool]) -> None:
        self.raft.lease_held = lease_held

    @property
    def abstains(self) -> bool:
        """Is this node still without what it once acknowledged? It neither votes nor campaigns meanwhile."""
        return self.raft.abstains

    @property
    def stranger(self) -> bool:
        """Is the member of this name, as far as the log was applied, somebody else? Such a node must not campaign."""
        return self.raft.stranger

    @stranger.setter
    def stranger(self, stranger: bool) -> None:
        self.raft.stranger = stranger

    @property
    def conf_change_pending(self) -> bool:
        """As leader: would a membership change come out of turn now?"""
        raft = self.raft
        return raft.pending_conf_index > raft.raftlog.applied_index or raft.tracker.membership.is_joint

    @property
    def term(self) -> int:
        """The current term."""
        return self.raft.term

    @property
    def vote(self) -> NodeId:
        """Who has this node's vote in this term."""
        return self.raft.vote

    @property
    def role(self) -> Role:
        """What this node is."""
        return self.raft.role

    @property
    def leader_id(self) -> NodeId:
        """Who leads this term, if known; "" if not."""
        return self.raft.leader_id

    @property
    def commit_index(self) -> int:
        """The last index known to be committed."""
        return self.raft.raftlog.commit_index

    @property
    def applied_index(self) -> int:
        """The last index that the state machine has reported."""
        return self.raft.raftlog.applied_index

    @property
    def stable_index(self) -> int:
        """The last index known to be on this node's disk."""
        return self.raft.raftlog.stable_index

    @property
    def conf_state(self) -> ConfState:
        """The membership that was applied last."""
        membership = self.raft.tracker.membership
        if membership is not self._conf_of:  # Asked for with every message, and it changes once in a blue moon.
            self._conf_of, self._conf_state = membership, membership.conf_state()
        return self._conf_state

    def progress(self, node: NodeId) -> Progress | None:
        """Return what is known of a member, to look at; it means something only while this node leads."""
        return self.raft.tracker.progress.get(node)

    def members(self) -> Iterable[Progress]:
        """Return what is known of all members, this node too, in order; it means something only while it leads."""
        return self.raft.tracker.progress.values()

    @property
    def pending_snapshot_index(self) -> int:
        """The index of the snapshot that was restored from and is not reported as stored yet; 0 if there is none."""
        snapshot = self.raft.raftlog.snapshot
        return snapshot.index if snapshot is not None else 0

    def commit_may_wait(self, node: NodeId) -> bool:
        """As leader: may the news of a commit index wait for the next append to this member, or the next heartbeat?

        Not if the append that tells it is to find out what the member has. And not if a membership change is committed
        that this leader has not applied: once it has, it may lead no longer, or talk to this member no longer, and
        those who stay may need that change to elect anybody.
        """
        progress = self.raft.tracker.progress.get(node)
        if progress is None or progress.state is not ProgressState.REPLICATE or progress.inflights.full:
            return False
        return not self.conf_change_pending

    def quorum_active(self) -> bool:
        """Has this leader heard from a majority since the last check, which comes every election timeout?"""
        return self.raft.tracker.quorum_active()

    def recently_active(self) -> frozenset[NodeId]:
        """Return the voters that this leader has heard from since the last check, itself included."""
        tracker = self.raft.tracker
        return frozenset(node for node in tracker.membership.voters if tracker.progress[node].recent_active)

    @property
    def hands_over(self) -> bool:
        """Is leadership on its way to another? Proposals are dropped until it is there, or given up."""
        return bool(self.raft.transferee)

    def status(self) -> Status:
        """Return everything an operator may want to see."""
        raft, raftlog = self.raft, self.raft.raftlog
        members = raft.tracker.progress if raft.role is Role.LEADER else {}
        return Status(
            id=self.id,
            role=raft.role,
            term=raft.term,
            vote=raft.vote,
            leader_id=raft.leader_id,
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            stable_index=raftlog.stable_index,
            commit_index=raftlog.commit_index,
            applied_index=raftlog.applied_index,
            conf_state=self.conf_state,
            transferee=raft.transferee,
            uncommitted_bytes=raft.uncommitted_bytes,
            progress={node: _peer_status(progress) for node, progress in members.items()},
        )

    # What happened.

    def tick(self) -> None:
        """One tick has passed. After a pause call it once, not once for each tick missed."""
        self.raft.tick()

    def campaign(self) -> None:
        """Start an election now, if this node may."""
        self.raft.campaign()

    def step(self, message: Message) -> None:
        """Take in a message of a peer, or a response of the own workers; it belongs to the node from now on.

        Raises:
            PeerNotFound: an answer of somebody who is no member.
            LocalMessage: a peer sent what never travels.
            ProposalDropped: nobody here can take the proposal.
            InvalidMessage, CorruptEntry: a broken peer, or a broken connection.
            LogLost, LogConflict: this node must stop.
        """
        kind = message.type
        # What comes for each entry, first: a look at the tables makes the hash of an enum's member, which is Python.
        if kind is APP and message.term:
            self.raft.step(message)
            return
        if kind is APP_RESP and message.term and message.sender in self.raft.tracker.progress:
            self.raft.step(message)
            return
        if kind is STORAGE_APPEND_RESP and message.sender == APPEND_THREAD:
            self.raft.stored(message)
            return
        if kind is STORAGE_APPLY_RESP and message.sender == APPLY_THREAD:
            self.raft.applied(message.entries.last)
            return
        if kind in LOCAL_TYPES:
            raise LocalMessage(f"{kind.name} from {message.sender!r}")
        if kind in RESPONSE_TYPES and message.sender not in self.raft.tracker.progress:
            if message.sender == self.id and not self.raft.as_reference:
                return  # It was removed while its own write was under way: that counts for nothing any more.
            raise PeerNotFound(f"{kind.name} from {message.sender!r}")
        if not message.term and kind in TERM_TYPES and not self.raft.as_reference:
            raise InvalidMessage(f"{kind.name} from {message.sender!r} without a term")
        self.raft.step(message)

    def propose(self, payloads: Sequence[bytes]) -> None:
        """Propose normal entries, in this order, all or none. A follower passes them on; they may get lost on the way.

        Raises:
            ProposalDropped: nothing was proposed.
            ValueError: no payloads, or one is too large.
        """
        raft = self.raft
        if raft.role is LEADER:
            leader.propose(raft, payloads)
        else:
            raft.step(Message(MessageType.PROP, sender=self.id, payloads=tuple((0, each) for each in payloads)))

    def propose_conf_change(self, change: ConfChangeV2, kind: int = ENTRY_CONF_CHANGE_V2) -> None:
        """Propose a membership change. If it comes out of turn, an empty entry takes its place: no error says so.

        Raises:
            ProposalDropped: nothing was proposed.
            InvalidConfChange: it cannot be written down.
        """
        payload = encode_conf_change(change)
        self.raft.step(Message(MessageType.PROP, sender=self.id, payloads=((kind, payload),)))

    def apply_conf_change(self, change: ConfChangeV2) -> ConfState:
        """A committed membership entry is being applied: switch, and return the membership to store with it.

        Call it before the entry is reported as applied. Do not call it for a change that the application vetoes, nor
        for entries that a snapshot stored meanwhile has overtaken.

        Raises:
            InvalidConfChange: the change does not fit; nothing has changed, as on every other node.
        """
        return self.raft.apply_conf_change(change)

    def found(self, conf_state: ConfState) -> None:
        """The first members are known: by this node's own record, or by the log as it is being applied.

        For a node that has led nobody yet; for every other these members are no news.

        Raises:
            InvalidConfChange: that is no possible membership.
        """
        self.raft.found(conf_state)

    def read_index(self, context: bytes) -> None:
        """Ask for a linearizable read; `Output.read_states` has it when it is safe. It may get lost: ask again.

        Raises:
            ProposalDropped: no leader is known.
        """
        raft = self.raft
        if raft.role is not Role.LEADER and not raft.leader_id:
            raise ProposalDropped("no leader is known")
        raft.step(Message(MessageType.READ_INDEX, sender=self.id, context=context))

    def transfer_leader(self, to: NodeId) -> None:
        """Ask the leader, this node or another, to hand over to `to`."""
        self.raft.step(Message(MessageType.TRANSFER_LEADER, sender=to))

    def forget_leader(self) -> None:
        """The leader is known to be gone: let others win an election at once."""
        self.raft.step(Message(MessageType.FORGET_LEADER, sender=self.id))

    def report_unreachable(self, peer: NodeId) -> None:
        """What was sent to `peer` has probably not arrived."""
        self.raft.step(Message(MessageType.UNREACHABLE, sender=peer))

    def report_snapshot(self, peer: NodeId, ok: bool) -> None:
        """The snapshot for `peer` was sent, or not. Without this after every SNAP the peer may get nothing more."""
        self.raft.step(Message(MessageType.SNAP_STATUS, sender=peer, reject=not ok))

    def compact(self, to_index: int) -> None:
        """Drop the entries up to `to_index` from the log; all that this node needs of them is stored elsewhere."""
        assert to_index <= self.applied_index, f"compact to {to_index}, applied {self.applied_index}"
        assert to_index <= self.stable_index, f"compact to {to_index}, stored {self.stable_index}"
        self.raft.leaving(self.log.first_index, to_index)
        self.log.compact(to_index)

    # What to do.

    def has_ready(self) -> bool:
        """Would `ready` have anything in it?"""
        raft, raftlog = self.raft, self.raft.raftlog
        return bool(
            raft.messages
            or raft.after_append
            or raft.read_states
            or raft.reads_to_confirm
            or raftlog.handed_index < raftlog.last_index
            or raftlog.commit_index != self._last_commit
            or raftlog.has_committed(not self._async)
            or raft.role is not self._last_role
            or raft.leader_id != self._last_leader
            or raft.term != self._last_term
            or raft.vote != self._last_vote
            or (raftlog.snapshot is not None and not raftlog.snapshot_handed)
        )

    def ready(self) -> Output:
        """Return all there is to do, and take it for handed out."""
        assert not self._advance_due, "two outputs without an advance between them"
        raft, raftlog = self.raft, self.raft.raftlog
        if raft.reads_to_confirm:
            leader.broadcast_heartbeat(raft)

        output = Output.__new__(Output)
        output.soft_state = None
        if raft.role is not self._last_role or raft.leader_id != self._last_leader:
            output.soft_state = SoftState(raft.leader_id, raft.role)
            self._last_leader, self._last_role = raft.leader_id, raft.role
        entries = raftlog.next_entries()
        hard_state, must_sync = None, entries is not NO_ENTRIES
        if raft.term != self._last_term or raft.vote != self._last_vote:
            must_sync = True
        if must_sync or raftlog.commit_index != self._last_commit:
            hard_state = self._hard_state_if_changed()
        snapshot = None if raftlog.snapshot_handed else raftlog.snapshot
        output.read_states = ()
        if raft.read_states:
            output.read_states = tuple(raft.read_states)
            raft.read_states = []
        committed = raftlog.next_committed(not self._async)

        messages = raft.messages
        raft.messages = []
        if raft.unsent_appends:
            raft.unsent_appends.clear()
        after_append = raft.after_append
        raft.after_append = []
        if self._async:
            if must_sync or hard_state is not None or snapshot is not None or after_append:
                messages.append(self._storage_append(entries, hard_state, snapshot, after_append))
            if committed is not NO_ENTRIES:
                messages.append(_storage_apply(self.id, committed))
        else:
            own = [message for message in after_append if message.to == self.id]
            messages += [message for message in after_append if message.to != self.id]
            self._on_advance = own
            if raftlog.has_unstable or snapshot is not None:
                own.append(self._storage_append_response(snapshot))
            if committed is not NO_ENTRIES:
                own.append(_storage_apply_response(self.id, committed))
            self._advance_due = True
        raftlog.handed_out()
        output.hard_state = hard_state
        output.entries = entries
        output.snapshot = snapshot
        output.committed = committed
        output.messages = tuple(messages)
        output.must_sync = must_sync
        return output

    def _hard_state_if_changed(self) -> HardState | None:
        raft, commit = self.raft, self.raft.raftlog.commit_index
        if raft.term == self._last_term and raft.vote == self._last_vote and commit == self._last_commit:
            return None
        self._last_term, self._last_vote, self._last_commit = raft.term, raft.vote, commit
        return _new_tuple(HardState, (raft.term, raft.vote, commit))  # a third of the time of HardState(…)

    def _storage_append(
        self,
        entries: EntryRange,
        hard_state: HardState | None,
        snapshot: SnapshotMeta | None,
        responses: list[Message],
    ) -> Message:
        # Attached whenever anything is not known to be stored, not only if this write has entries: an answer that a
        # change of term has made worthless is made up for by the next one.
        raftlog = self.raft.raftlog
        if raftlog.stable_index < raftlog.last_index or snapshot is not None:
            responses.append(self._storage_append_response(snapshot))
        message = new_message(STORAGE_APPEND, APPEND_THREAD, self.id, 0)
        message.entries = entries
        message.snapshot = snapshot
        message.responses = tuple(responses)
        if hard_state is not None:
            message.term, message.vote, message.commit = self._last_term, self._last_vote, self._last_commit
        return message

    def _storage_append_response(self, snapshot: SnapshotMeta | None) -> Message:
        """Return the answer that says, if it comes back in this term, that the whole log of now is stored."""
        raftlog = self.raft.raftlog
        message = new_message(STORAGE_APPEND_RESP, self.id, APPEND_THREAD, self.raft.term)
        message.snapshot = snapshot
        if raftlog.stable_index < raftlog.last_index:
            message.index, message.log_term = raftlog.last_index, raftlog.last_term
        return message

    def advance(self, output: Output) -> None:
        """Synchronous storage only: all of `output`, the last one, is done."""
        assert not self._async, "advance with asynchronous storage"
        assert self._advance_due, "nothing to advance from"
        self._advance_due = False
        steps, self._on_advance = self._on_advance, []
        for message in steps:
            if message.type is STORAGE_APPEND_RESP:
                self.raft.stored(message)
            elif message.type is STORAGE_APPLY_RESP:
                self.raft.applied(message.entries.last)
            else:
                self.raft.step(message)


def _storage_apply(node: NodeId, committed: EntryRange) -> Message:
    message = new_message(STORAGE_APPLY, APPLY_THREAD, node, 0)
    message.entries = committed
    message.responses = (_storage_apply_response(node, committed),)
    return message


def _storage_apply_response(node: NodeId, committed: EntryRange) -> Message:
    message = new_message(STORAGE_APPLY_RESP, node, APPLY_THREAD, 0)
    message.entries = committed
    return message


def _peer_status(progress: Progress) -> PeerStatus:
    return PeerStatus(
        match_index=progress.match_index,
        next_index=progress.next_index,
        state=progress.state,
        is_learner=progress.is_learner,
        recent_active=progress.recent_active,
        paused=progress.paused,
        pending_snapshot=progress.pending_snapshot,
        inflight_messages=progress.inflights.count,
        inflight_bytes=progress.inflights.size_bytes,
    )
