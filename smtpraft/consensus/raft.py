"""The state machine of one node (Raft Figure 2): its term, its vote, its role, and what every message does to them.

Nothing here reads a clock, a file or a socket. `RawNode` is the face; what a role does with a message is in `leader`
and `follower`, who may lead is `election`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from smtpraft.consensus import follower, leader
from smtpraft.consensus.confchange import ConfChangeV2, Membership
from smtpraft.consensus.config import ELECTION_RAFT, Config
from smtpraft.consensus.election import TRANSFER, Election, VoteElection
from smtpraft.consensus.errors import LogLost
from smtpraft.consensus.lowest_id import LowestIdElection
from smtpraft.consensus.messages import (
    ConfState,
    HardState,
    Message,
    MessageType,
    ReadState,
    Role,
    SnapshotMeta,
    new_message,
)
from smtpraft.consensus.raftlog import RaftLog
from smtpraft.consensus.readonly import ReadOnly
from smtpraft.consensus.tracker import Tracker
from smtpraft.fastlog import ENTRY_NORMAL, Log, NotCached
from smtpraft.types import NO_NODE, NodeId

APP = MessageType.APP
APP_RESP = MessageType.APP_RESP
HEARTBEAT = MessageType.HEARTBEAT
PRE_VOTE = MessageType.PRE_VOTE
PRE_VOTE_RESP = MessageType.PRE_VOTE_RESP
SNAP = MessageType.SNAP
TRANSFER_LEADER = MessageType.TRANSFER_LEADER
VOTE = MessageType.VOTE
VOTE_RESP = MessageType.VOTE_RESP
FOLLOWER, LEADER = Role.FOLLOWER, Role.LEADER

SCAN_BYTES = 1024 * 1024
"""How much of the log is decoded at a time when looking for membership changes."""

Handler = Callable[["Raft", Message], None]

HANDLERS: dict[Role, dict[MessageType, Handler]] = {
    Role.FOLLOWER: follower.HANDLERS,
    Role.PRE_CANDIDATE: follower.CANDIDATE_HANDLERS,
    Role.CANDIDATE: follower.CANDIDATE_HANDLERS,
    Role.LEADER: leader.HANDLERS,
}


class Raft:
    """One node. Its parts are open to the modules of this package, and to tests."""

    def __init__(
        self,
        config: Config,
        log: Log,
        conf_state: ConfState,
        hard_state: HardState,
        applied: int,
        random: Random,
        snapshot_provider: Callable[[], SnapshotMeta | None],
    ) -> None:
        if max(hard_state.commit, applied) > log.last_index:
            raise LogLost(f"committed {hard_state.commit}, applied {applied}, but the log ends at {log.last_index}")
        if applied < log.prev_index:
            raise LogLost(f"applied {applied}, but the log begins after {log.prev_index}")
        self.config = config
        self.as_reference = config.as_reference
        self.lease_reads = config.lease_reads and not config.as_reference
        self.max_append_bytes = config.max_append_bytes
        self.id = config.id
        self.random = random
        self.snapshot_provider = snapshot_provider
        self.election: Election = VoteElection() if config.election == ELECTION_RAFT else LowestIdElection()

        self.log = log
        # What was applied was committed: the hard state may be older, for a commit index alone is not synced.
        self.raftlog = RaftLog(log, max(hard_state.commit, applied, log.prev_index), applied, config.max_apply_bytes)
        self.tracker = Tracker(config.id, config.max_inflight_messages, config.max_inflight_bytes)
        self.tracker.install(Membership.restore(conf_state), frozenset(), log.last_index)
        self.superseded: Membership | None = None
        """While a received snapshot is not stored: the membership of the state machine, which is still behind it."""
        self.stamp = 0
        self.barred = False
        self.lease_held: Callable[[], bool] = lambda: False
        """Does a majority's promise to vote for nobody else stand at this moment? Asked when a lease read comes."""
        self.promised_ticks = config.election_ticks if config.lease_reads and not config.as_reference else 0
        """So long this node votes for nobody. From the start on: what it promised before, it does not remember."""
        self.handed_over = False
        """In this term somebody was told to take over, and may do so at any time: the lease is void."""
        self.abstains_through = 0
        """This node lost part of what it had stored when it was in this term; 0: it lost nothing. See `abstains`."""
        self.stranger = False
        self.needed = False
        """In this term it refused a candidate that lacks entries of its log: without priority it campaigns all the
        same, for nobody else might be able to win."""

        self.term = hard_state.term
        self.vote = hard_state.vote
        self.role = Role.FOLLOWER
        self.handlers = follower.HANDLERS
        self.leader_id = NO_NODE
        self.transferee = NO_NODE
        """Whom the leader hands over to; while it does, it drops proposals."""
        self.pending_conf_index = 0
        """The leader accepts no membership change until this index is applied."""
        self.uncommitted_bytes = 0
        """Payload of the leader's proposals not applied yet. It may be too low, never too high."""
        self.reads = ReadOnly()
        self.postponed_reads: list[Message] = []
        """Reads that came before the leader had committed in its term."""
        self.reads_to_confirm = False
        """A read came since the last heartbeats: the next output sends a round."""
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.timeout_ticks = 0

        self.messages: list[Message] = []
        """May leave at once."""
        self.unsent_appends: dict[NodeId, Message] = {}
        """The last append in `messages` to each peer: what continues it can join it."""
        self.after_append: list[Message] = []
        """May leave when everything before them is on disk, even if addressed to this node."""
        self.read_states: list[ReadState] = []
        self._scanned_index = 0
        self._scanned_conf_index = 0
        self.become_follower(self.term, NO_NODE)

    # Facts.

    @property
    def promotable(self) -> bool:
        """May this node campaign? A learner, a stranger and one whose snapshot is not stored may not."""
        own = self.tracker.progress.get(self.id)
        if own is None or own.is_learner or self.raftlog.snapshot is not None:
            return False
        return not self.barred and not self.abstains and not self.stranger

    @property
    def abstains(self) -> bool:
        """Does this node neither vote nor campaign, because it has not yet got back what it lost?

        It had acknowledged entries, of terms up to `abstains_through`, that its log shows no more; a majority may have
        counted on them. A leader of a later term was elected without this node, so it has all of them (Leader
        Completeness, Raft §5.4.3), and they come before its first entry. Invariant: a log that ends in a later term
        than `abstains_through` holds whatever this node ever helped to commit, and compares as newer than what it lost.
        """
        return self.abstains_through > 0 and self.log.last_term <= self.abstains_through

    @property
    def hard_state(self) -> HardState:
        """What must survive a restart."""
        return HardState(self.term, self.vote, self.raftlog.commit_index)

    # Time.

    def tick(self) -> None:
        """One tick has passed."""
        self.election_elapsed += 1
        self.promised_ticks = max(0, self.promised_ticks - 1)
        if self.role is Role.LEADER:
            leader.tick(self)
            return
        self.election.tick(self)
        if self.election_elapsed >= self.timeout_ticks and self.promotable and (self.config.priority or self.needed):
            self.election_elapsed = 0
            self.campaign()

    def campaign(self, *, transfer: bool = False) -> None:
        """Try to become leader, unless that is not allowed; `transfer`: the leader asked for it."""
        if self.role is Role.LEADER or not self.promotable:
            return
        if self.promised_ticks and not transfer and not self.tracker.is_singleton:
            return
        # An unapplied membership might take this node's vote away, or give others one (etcd#7280).
        if self.conf_change_unapplied():
            return
        self.election.campaign(self, transfer=transfer)

    def conf_change_unapplied(self) -> bool:
        """Is a membership change committed but not applied here? Each committed entry is looked at once."""
        first, last = max(self._scanned_index, self.raftlog.applied_index) + 1, self.raftlog.commit_index
        while first <= last:
            end = self.log.upto_bytes(first, last, SCAN_BYTES)
            try:
                entries = self.log.entries(first, end)
            except NotCached:
                return True  # Unknown: wait until it is applied.
            for index, _, _, kind, _ in entries:
                if kind != ENTRY_NORMAL:
                    self._scanned_conf_index = index
            self._scanned_index = end
            first = end + 1
        return self._scanned_conf_index > self.raftlog.applied_index

    # Roles (Raft Figure 4).

    def become_follower(self, term: int, leader_id: NodeId) -> None:
        """Follow `leader_id`, or wait for one."""
        self.reset(term)
        self._enter(Role.FOLLOWER)
        self.leader_id = leader_id

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won, without disturbing anybody: term and vote stay (thesis §9.6)."""
        assert self.role is not Role.LEADER, "LEADER -> PRE_CANDIDATE"
        self.tracker.votes.clear()
        self._enter(Role.PRE_CANDIDATE)
        # Or a pre-candidate would refuse another one's request because it still believes in the dead leader.
        self.leader_id = NO_NODE

    def become_candidate(self, term: int) -> None:
        """Stand for election in a new term, and vote for oneself."""
        assert self.role is not Role.LEADER, "LEADER -> CANDIDATE"
        assert term > self.term
        self.reset(term)
        self.vote = self.id
        self._enter(Role.CANDIDATE)

    def become_leader(self) -> None:
        """Lead. The empty entry commits, as the first of this term, all that came before it (Raft §5.4.2, §8)."""
        assert self.role is Role.CANDIDATE, f"{self.role.name} -> LEADER"
        assert self.raftlog.commit_index <= self.log.last_index
        self.reset(self.term)
        self._enter(Role.LEADER)
        self.leader_id = self.id
        own = self.tracker.progress[self.id]
        own.become_replicate()
        own.recent_active = True
        # There may be an unapplied membership change in the log. Waiting is simpler than looking for it.
        self.pending_conf_index = self.log.last_index
        leader.append(self, ENTRY_NORMAL, (b"",))

    def _enter(self, role: Role) -> None:
        self.role = role
        self.handlers = HANDLERS[role]

    def reset(self, term: int) -> None:
        """Begin anew in `term`, which is this one or a later one."""
        assert term >= self.term, f"term {term} after {self.term}"
        if term != self.term:
            self.term = term
            self.vote = NO_NODE
        self.leader_id = NO_NODE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        self.timeout_ticks = ticks + ticks * (100 - self.config.priority) // 100 + self.random.randrange(ticks)
        self.transferee = NO_NODE
        self.handed_over = False
        self.needed = False
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadOnly()
        self.postponed_reads.clear()
        self.reads_to_confirm = False
        self.tracker.reset(self.log.last_index)

    # Messages.

    def send(self, message: Message) -> None:
        """Queue a message that may leave at once, with our term unless it has one."""
        assert message.to != self.id, f"{message.type.name} to itself"
        message.sender = self.id
        if not message.term:
            message.term = self.term
        self.messages.append(message)

    def forward(self, message: Message) -> None:
        """Queue for the leader what is the leader's business, in the name of who asked.

        Proposals and reads have no term: they are as good in a later one.
        """
        message.to = self.leader_id
        message.term = self.term if message.type is TRANSFER_LEADER else 0
        self.messages.append(message)

    def send_after_append(self, message: Message) -> None:
        """Queue an answer that may leave, or take effect here, only after all that came before it is on disk.

        A vote, a refusal and an acknowledgement tell of our term, vote and log: they must survive us (Raft Figure 2).
        """
        message.sender = self.id
        if not message.term:
            message.term = self.term
        self.after_append.append(message)

    def acknowledge(self, to: NodeId, index: int) -> None:
        """Tell a leader, which may be this node, that all up to `index` is stored here: once it is."""
        if self.after_append and not self.as_reference:
            last = self.after_append[-1]
            if last.type is APP_RESP and last.to == to and last.term == self.term and not last.reject:
                last.index = max(last.index, index)
                return
        message = new_message(APP_RESP, to, self.id, self.term)
        message.index = index
        self.after_append.append(message)

    def leaving(self, first: int, last: int) -> None:
        """Entries `first` to `last` are about to leave the log: drop the queued appends that name some of them.

        By the time they are sent the range could mean other entries, of another leader. To the peer they got lost on
        the way.
        """
        kept = []
        for message in self.messages:
            entries = message.entries
            if message.type is APP and entries and entries.first <= last and entries.last >= first:
                if not self.config.as_reference:
                    continue
                message.block = message.block or b"".join(self.log.spans(entries.first, entries.last))
            kept.append(message)
        self.messages = kept
        self.unsent_appends.clear()

    def step(self, message: Message) -> None:
        """Take a message in: first what its term says (Raft §5.1), then what it asks."""
        kind = message.type
        if self.promised_ticks and (kind is VOTE or kind is PRE_VOTE) and message.context != TRANSFER:
            return  # It belongs to a leader's lease. Stickiness does not suffice: with a later term it is forgotten.
        if message.term and message.term != self.term:
            if message.term > self.term:
                if not self._step_higher(message):
                    return
            else:
                self._step_lower(message)
                return
        # What comes for every entry goes its way directly; the rest by the table.
        if kind is APP_RESP and self.role is LEADER:
            leader.on_append_response(self, message)
        elif kind is APP and self.role is FOLLOWER:
            follower.on_append(self, message)
        elif kind is VOTE or kind is PRE_VOTE:
            self.election.answer(self, message)
        else:
            handler = self.handlers.get(kind)
            if handler is not None:
                handler(self, message)

    def promise(self) -> None:
        """A leader was heard of: with leases, vote for nobody for an election timeout."""
        if self.lease_reads:
            self.promised_ticks = self.config.election_ticks

    def _step_higher(self, message: Message) -> bool:
        """A later term; return False if the message is to be ignored."""
        kind = message.type
        if kind is PRE_VOTE:
            return not self.election.ignores(self, message)  # It asks about a term that has not begun.
        if kind is VOTE:
            if self.election.ignores(self, message):
                return False
            self.become_follower(message.term, NO_NODE)
        elif kind is PRE_VOTE_RESP and not message.reject:
            pass  # It grants a term that we asked about and have not begun.
        elif kind is APP or kind is HEARTBEAT or kind is SNAP:
            self.become_follower(message.term, message.sender)
        else:
            self.become_follower(message.term, NO_NODE)
        return True

    def _step_lower(self, message: Message) -> None:
        """An earlier term: mostly stale, but a stuck leader must learn that its time is over."""
        kind = message.type
        if kind is APP or kind is HEARTBEAT:
            # With stickiness, a node of a higher term cannot get through to the others: they ignore its requests while
            # they hear this leader. Only the leader can let it back in, by stepping down. Who abstains never requests.
            if self.config.check_quorum or self.config.pre_vote or self.abstains:
                self.send_after_append(Message(APP_RESP, to=message.sender))
        elif kind is PRE_VOTE:
            # Or two nodes of which one has the higher term, the other the better log, could wait for ever.
            self.send_after_append(Message(PRE_VOTE_RESP, to=message.sender, reject=True))

    # Answers of the driver's workers.

    def stored(self, message: Message) -> None:
        """The append worker has done a write that this answer was attached to.

        An acknowledgement of an earlier term says nothing of the entries: they may have been replaced since, and even
        replaced back (the ABA problem). A snapshot is committed state, whatever the term.
        """
        if message.index and message.term == self.term:
            self.raftlog.stable_to(message.index, message.log_term)
        if message.snapshot is not None:
            self.raftlog.snapshot_stored(message.snapshot.index)
            if self.raftlog.snapshot is None:
                self.superseded = None
            self._applied_more()

    def applied(self, index: int) -> None:
        """The state machine has applied all up to `index`."""
        payload_bytes = self.raftlog.applied_to(index)
        self.uncommitted_bytes = max(0, self.uncommitted_bytes - payload_bytes)
        self._applied_more()

    def _applied_more(self) -> None:
        if (
            self.role is LEADER
            and self.tracker.membership.auto_leave
            and self.raftlog.applied_index >= self.pending_conf_index
        ):
            leader.propose_leave(self)

    # Membership.

    def apply_conf_change(self, change: ConfChangeV2) -> ConfState:
        """Switch to the membership that a committed change makes.

        Raises:
            InvalidConfChange: it makes none; nothing has changed.
        """
        if self.superseded is not None:
            # Handed out before the snapshot came. It holds this change already; until it is stored, and if this node
            # crashes before that, the state machine is where its entries have brought it.
            self.superseded, _ = self.superseded.applied(change)
            return self.superseded.conf_state()
        membership, fresh = self.tracker.membership.applied(change)
        self.tracker.install(membership, fresh, self.log.last_index)
        self._membership_changed()
        return membership.conf_state()

    def found(self, conf_state: ConfState) -> None:
        """Take the first members for what the log says; nothing happens if they are known."""
        membership = Membership.restore(conf_state)
        if self.superseded is not None:
            self.superseded = membership
        elif membership != self.tracker.membership:
            assert self.role is not Role.LEADER, "a leader of others than the founders"
            self.tracker.install(membership, frozenset(), self.log.last_index)

    def _membership_changed(self) -> None:
        if self.role is not Role.LEADER:
            return
        own = self.tracker.progress.get(self.id)
        if own is None or own.is_learner:
            # Removed or demoted. Until it steps down it leads on without counting itself (thesis §4.2.2).
            if self.config.step_down_on_removal:
                self.become_follower(self.term, NO_NODE)
            return
        if leader.maybe_commit(self):
            leader.broadcast_append(self)
        else:
            for progress in self.tracker.peers:
                leader.maybe_send_append(self, progress, if_empty=False)
        if self.transferee and self.transferee not in self.tracker.membership.voters:
            self.transferee = NO_NODE
