"""What must be true after every event, whatever breaks. Each check looks at what changed and at nothing else.

R1 to R17 are Raft's promises (Figure 3; §5, §8; thesis §4), D1 to D7 those of the disk, S1 that all machines are the
same, S2 that reads are linearizable, S3 that a lease to read outlives no election, Q what a client was told. They are
judged from outside: what a node handed to its disk, what was there after the sync, what it said to whom. What a node
believes of itself counts for nothing; but for S3, which asks a leader whether it would read by its lease.

R7 and R8 say that what a message tells of a term, a vote or an entry is durable before it leaves. Two kinds of message
are exempt. A VOTE or PRE_VOTE request promises nothing: the vote that counts is the answer. A HEARTBEAT_RESP says only
that its sender follows this term now; a read or a lease that rests on it does not outlive a later term's election,
which needs durable votes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from smtpraft.consensus import Membership, Message, MessageType, RawNode, Role
from smtpraft.consensus.election import TRANSFER
from smtpraft.consensus.leader import _lease_stands as lease_stands
from smtpraft.consensus.messages import SnapshotMeta
from smtpraft.simulator.records import Committed, Mark
from smtpraft.simulator.violation import Violation
from smtpraft.storage import HardState
from smtpraft.types import NO_NODE, NodeId

if TYPE_CHECKING:
    from smtpraft.fastlog import Log
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process

APP, APP_RESP = MessageType.APP, MessageType.APP_RESP
HEARTBEAT, SNAP, TIMEOUT_NOW = MessageType.HEARTBEAT, MessageType.SNAP, MessageType.TIMEOUT_NOW
VOTE, VOTE_RESP = MessageType.VOTE, MessageType.VOTE_RESP
PRE_VOTE, PRE_VOTE_RESP = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP

PROMISES: Final = frozenset({APP, APP_RESP, HEARTBEAT, SNAP, TIMEOUT_NOW, VOTE_RESP})
"""Messages whose term must be durable at their sender."""


@dataclass(slots=True)
class Batch:
    """What one submission to the log's writer holds."""

    hard_state: HardState | None
    first: int
    entries: list[Mark]


class Before:
    """A node as it was when a request for its vote came. `silence_ticks`: since it heard its leader."""

    __slots__ = ("last", "leader", "silence_ticks", "term", "vote")

    def __init__(self, core: RawNode, silence_ticks: int) -> None:
        self.term, self.vote, self.leader = core.term, core.vote, core.leader_id
        self.last = (core.log.last_term, core.log.last_index)
        self.silence_ticks = silence_ticks


@dataclass(slots=True)
class Mirror:
    """One node's log as seen from outside: as handed to its disk, and as synced. Both begin after `base`."""

    base: int = 0
    base_term: int = 0
    log_base: int = 0
    """Before this a snapshot is on its way to the disk; else as `base`."""
    log_base_term: int = 0
    installing: tuple[int, int, HardState] | None = None
    """The log is about to begin after this index of this term: after a crash it does, or it does not."""
    log: dict[int, Mark] = field(default_factory=dict)
    log_last: int = 0
    durable: dict[int, Mark] = field(default_factory=dict)
    durable_last: int = 0
    hard_state: HardState = field(default_factory=HardState)
    reached: dict[int, int] = field(default_factory=dict)
    """By term: the last index that was durable when that was this node's term, and had not been replaced in it."""
    writing: tuple[Batch, ...] = ()
    """What is being written: after a crash it is there, or it is not."""
    lost: dict[int, Mark] = field(default_factory=dict)
    """What was synced, and the disk has lost by itself: until it is back this node helps to elect nobody."""
    lost_base: int = 0
    """So was all up to here."""
    applied_durable: int = 0
    """What the state machine had vouched for when the log was cut."""

    def has_durable(self, index: int, mark: Mark) -> bool:
        """Would this node have that entry after a crash?"""
        return index <= self.base or self.durable.get(index) == mark

    def vouches_for(self, index: int, mark: Mark) -> bool:
        """Can nobody be elected by this node who lacks that entry?"""
        return self.has_durable(index, mark) or self.lost.get(index) == mark or index <= self.lost_base


class Invariants:
    """The judge of one cluster."""

    def __init__(self, hosts: dict[NodeId, Host]) -> None:
        self._hosts = hosts
        self.checks = 0
        self._leaders: dict[int, NodeId] = {}
        self._entries: dict[tuple[int, int], tuple[int, int]] = {}
        """(index, term) to (checksum, term before it) of every entry that was ever in a log (R3)."""
        self.committed: list[Mark] = [Mark(0, 0)]
        self._committed_by: list[Membership] = [Membership()]
        self._committed_in: list[int] = [0]
        """The term of the leader that committed each index."""
        self._changes: set[tuple[int, int]] = set()
        """Index and term of every entry that changes the members."""
        self._applied: dict[int, Committed] = {}
        self._digests: dict[int, int] = {}
        self.votes: dict[tuple[int, NodeId, int], NodeId] = {}
        """By term, node and data directory."""

    @property
    def commit_index(self) -> int:
        """The highest index that any node took for committed."""
        return len(self.committed) - 1

    # What goes to the disk, and what is there.

    def handed_out(self, process: Process, batch: Batch) -> None:
        """The core wants entries stored: what the log held from `batch.first` on is replaced."""
        mirror, first = process.host.mirror, batch.first
        log = mirror.log
        if first > mirror.log_last + 1 or first <= mirror.log_base:
            raise Violation("R3", f"{process.id} stores from {first}, its log is {mirror.base}..{mirror.log_last}")
        if first <= mirror.log_last:
            self._truncated(process, batch)
        before = log[first - 1].term if first - 1 in log else mirror.log_base_term
        known = self._entries
        for offset, mark in enumerate(batch.entries):
            index = first + offset
            fact = (mark.crc, before)
            if known.setdefault((index, mark.term), fact) != fact:
                raise Violation("R3", f"{process.id} has another entry {index} of term {mark.term}, or before it")
            if mark.term < before:
                raise Violation("R3", f"{process.id} stores term {mark.term} after {before} at {index}")
            log[index] = mark
            before = mark.term
        last = first + len(batch.entries) - 1
        for index in range(last + 1, mirror.log_last + 1):
            del log[index]
        mirror.log_last = last
        self.checks += len(batch.entries)

    def change_handed_out(self, process: Process, index: int) -> None:
        """R15: the entry just handed out changes the members. A leader has one such at a time (thesis §4.1)."""
        core, log = process.core, process.host.mirror.log
        self._changes.add((index, log[index].term))
        if core.role is not Role.LEADER or log[index].term != core.term:
            return
        for other in range(max(core.applied_index, process.host.mirror.log_base) + 1, index):
            if (other, log[other].term) in self._changes:
                raise Violation("R15", f"{process.id} begins change {index}, and has not applied change {other}")

    def _campaigns(self, process: Process) -> None:
        """R15: who has a change committed and not applied might ask the wrong voters.

        R17: who lost its data directory has no part in anything under its name until it is admitted anew.
        """
        core = process.core
        if process.host.stranger:
            raise Violation("R17", f"{process.id} lost its directory, and campaigns before it is a member again")
        if core.role is Role.CANDIDATE or core.role is Role.PRE_CANDIDATE:
            for index in range(core.applied_index + 1, min(core.commit_index, self.commit_index) + 1):
                if (index, self.committed[index].term) in self._changes:
                    raise Violation("R15", f"{process.id} campaigns, and has not applied the committed change {index}")

    def _truncated(self, process: Process, batch: Batch) -> None:
        mirror, first = process.host.mirror, batch.first
        if first <= process.seen_commit:
            raise Violation("R13", f"{process.id} replaces {first}, committed there is {process.seen_commit}")
        if mirror.log[first] == batch.entries[0]:
            raise Violation("R13", f"{process.id} cuts its log at {first}, where nothing contradicts it")
        if process.led_term == process.core.term and process.core.role is Role.LEADER:
            raise Violation("R2", f"{process.id} leads term {process.led_term} and replaces its entry {first}")

    def synced(self, host: Host, batches: Sequence[Batch]) -> None:
        """The write of these has returned from its sync."""
        mirror = host.mirror
        durable = mirror.durable
        lost: list[int] = []
        for batch in batches:
            if batch.hard_state is not None:
                mirror.hard_state = batch.hard_state
                mirror.reached.setdefault(batch.hard_state.term, mirror.durable_last)
            if not batch.entries:
                continue
            mirror.reached[mirror.hard_state.term] = batch.first + len(batch.entries) - 1
            for offset, mark in enumerate(batch.entries):
                index = batch.first + offset
                old = durable.get(index)
                if old is not None and old != mark and index <= self.commit_index and self.committed[index] == old:
                    lost.append(index)
                durable[index] = mark
            last = batch.first + len(batch.entries) - 1
            for index in range(last + 1, mirror.durable_last + 1):
                old = durable.pop(index)
                if index <= self.commit_index and self.committed[index] == old:
                    lost.append(index)
            mirror.durable_last = last
        mirror.writing = ()
        for index in lost:
            self._still_durable(index, f"{host.id} replaced it")

    def _still_durable(self, index: int, why: str) -> None:
        """R9, for ever after: an entry that one node gave up is still on a majority's disks."""
        mark = self.committed[index]
        if self._lacking(index, mark, self._committed_by[index]):
            raise Violation("R9", f"entry {index} was committed and is on no majority's disks any more: {why}")

    def _lacking(self, index: int, mark: Mark, membership: Membership) -> str:
        """Return which voters do not have the entry on a majority's disks; nothing if all do."""
        for voters in (membership.incoming, membership.outgoing):
            have = sum(self._hosts[node].mirror.vouches_for(index, mark) for node in voters)
            if voters and have <= len(voters) // 2:
                return f"durable on {have} of {len(voters)} voters"
        return ""

    def recovered(
        self, host: Host, hard_state: HardState, log: Log, found: Iterable[tuple[int, Mark]], *, abstains: bool
    ) -> None:
        """D1, R6, R7, R8: what comes back is what was synced, or that and what was being written; nothing else.

        D5: unless the disk lost some of it by itself, and the node knows: then it is what once was, in a new term.
        """
        mirror = host.mirror
        if mirror.installing is not None and (log.prev_index, log.last_index) == (mirror.installing[0],) * 2:
            self.installed(host)
        mirror.log_base, mirror.log_base_term = mirror.base, mirror.base_term
        old = mirror.hard_state
        entries = dict(found)
        for index, mark in entries.items():
            if log.term(index) != mark.term:
                raise Violation("D1", f"{host.id} reads entry {index} back as another than is on its disk")
        if log.prev_index > mirror.base:
            raise Violation("D1", f"{host.id}: its log begins after {log.prev_index}, not after {mirror.base}")
        # A compaction that a crash cut short may bring entries back that were not needed any more.
        here = {index: mark for index, mark in entries.items() if index > mirror.base}
        states = [(mirror.durable, mirror.durable_last, old)]
        if mirror.writing:
            after = _after(mirror, mirror.writing)
            # Terms and votes are promised in a place of their own as well, before the log has them.
            states += [after, (mirror.durable, mirror.durable_last, after[2])]
        if mirror.installing is not None:
            states.append((mirror.durable, mirror.durable_last, mirror.installing[2]))
            mirror.installing = None
        state = HardState(hard_state.term, hard_state.vote, 0)
        for durable, last, hard in states:
            if log.last_index == last and here == durable and state == HardState(hard.term, hard.vote, 0):
                break
        else:
            if not abstains:
                raise Violation("D1", _difference(host, hard_state, log, here, states))
            self._damaged(host, hard_state, here)
            if log.last_index < mirror.base:
                # Segments that were to be recycled were still there, and it is back in one of those.
                lost = range(log.last_index + 1, mirror.base + 1)
                mirror.lost.update({index: self.committed[index] for index in lost})
                mirror.base = mirror.log_base = log.prev_index
                mirror.base_term = mirror.log_base_term = log.prev_term
                here = entries
        mirror.log = dict(here)
        mirror.durable = here
        mirror.log_last = mirror.durable_last = log.last_index
        mirror.hard_state = hard_state
        mirror.writing = ()
        self.checks += 1

    def _damaged(self, host: Host, hard_state: HardState, here: dict[int, Mark]) -> None:
        mirror = host.mirror
        if not host.damaged:
            raise Violation("D5", f"{host.id} abstains, and nothing has damaged its disk")
        if hard_state.term < mirror.hard_state.term or (hard_state.term == mirror.hard_state.term and hard_state.vote):
            text = f"{hard_state.term}, {hard_state.vote!r}; synced was {mirror.hard_state}"
            raise Violation("D5", f"{host.id} lost part of its log, and comes back in term {text}")
        for index, mark in here.items():
            if (index, mark.term) not in self._entries:
                raise Violation("D5", f"{host.id} comes back with an entry {index} that nobody ever had")
        mirror.lost.update({index: mark for index, mark in mirror.durable.items() if here.get(index) != mark})

    def healed(self, host: Host) -> None:
        """D5: the node says that what its disk had lost is back: all of it that was committed."""
        mirror = host.mirror
        for index, mark in mirror.lost.items():
            committed = index <= self.commit_index and self.committed[index] == mark
            if committed and not mirror.has_durable(index, mark):
                raise Violation("D5", f"{host.id} takes itself for whole, and lacks the committed entry {index}")
        mirror.lost.clear()

    def compacted(self, host: Host, to_index: int, term: int) -> None:
        """The node let go of its entries up to `to_index`."""
        mirror = host.mirror
        if to_index <= mirror.base:
            return  # A crash had brought back what was cut before.
        if to_index > self.commit_index or mirror.log.get(to_index) != self.committed[to_index]:
            raise Violation("D8", f"{host.id} cuts its log at {to_index}, which is not committed")
        for index in range(mirror.base + 1, to_index + 1):
            mirror.log.pop(index, None)
            mirror.durable.pop(index, None)
        mirror.base, mirror.base_term = to_index, term
        if mirror.log_base < to_index:
            mirror.log_base, mirror.log_base_term = to_index, term

    # Snapshots.

    def restores(self, process: Process, meta: SnapshotMeta) -> None:
        """R16: a snapshot takes the place of a log that has less; it is of what is committed."""
        mirror, index = process.host.mirror, meta.index
        if index <= process.seen_commit:
            raise Violation("R16", f"{process.id} restores from {index}, committed there is {process.seen_commit}")
        if index > self.commit_index or self.committed[index].term != meta.term:
            raise Violation("R16", f"{process.id} restores from {index} of term {meta.term}, which is not committed")
        mirror.log.clear()
        mirror.log_last = mirror.log_base = index
        mirror.log_base_term = meta.term
        self.checks += 1

    def installed(self, host: Host) -> None:
        """The log on the disk begins behind the snapshot."""
        mirror = host.mirror
        assert mirror.installing is not None
        mirror.base, mirror.base_term, mirror.hard_state = mirror.installing
        mirror.durable.clear()
        mirror.durable_last = mirror.base
        mirror.lost = {index: mark for index, mark in mirror.lost.items() if index > mirror.base}
        mirror.installing = None

    def completed(self, host: Host) -> None:
        """As `installed`, of an install that a crash had interrupted: at the start, when there is no log but this."""
        self.installed(host)
        mirror = host.mirror
        mirror.log.clear()
        mirror.log_last = mirror.log_base = mirror.base
        mirror.log_base_term = mirror.base_term

    # What is said.

    def sent(self, process: Process, message: Message) -> None:
        """A message is about to leave (R7, R8)."""
        self.checks += 1
        kind = message.type
        mirror = process.host.mirror
        if process.host.write_failed:
            raise Violation("D4", f"{process.id} says {kind.name} after a write or sync of its log failed")
        if kind in PROMISES and message.term > mirror.hard_state.term:
            raise Violation(
                "R7", f"{process.id} says {kind.name} of term {message.term}, durable is {mirror.hard_state.term}"
            )
        if message.reject:
            if kind is PRE_VOTE_RESP and message.term > mirror.hard_state.term:
                raise Violation("R7", f"{process.id} refuses in term {message.term}, which is not durable")
            return
        if kind is APP_RESP:
            self._acknowledged(process, message)
        elif kind is APP and message.entries and process.log.term(message.entries.last) > message.term:
            raise Violation("R3", f"{process.id} says APP of term {message.term} with entries of a later term")
        elif kind is VOTE_RESP:
            self.voted(process, message.to, message.term)
        elif kind is VOTE or kind is PRE_VOTE:
            self._campaigns(process)

    def _acknowledged(self, process: Process, message: Message) -> None:
        mirror, index = process.host.mirror, message.index
        if message.term < mirror.hard_state.term and index <= mirror.reached.get(message.term, 0):
            return  # True when it was written; only what has come since has replaced it. The network is as late.
        if index > mirror.durable_last:
            raise Violation("R8", f"{process.id} confirms {index}, durable is {mirror.durable_last}")
        leader = self._hosts.get(message.to)
        if index > mirror.base and leader is not None:
            other = leader.process
            if other is not None and other.core.role is Role.LEADER and other.core.term == message.term:
                theirs = leader.mirror.log.get(index)
                if theirs is not None and theirs != mirror.durable[index]:
                    raise Violation("R8", f"{process.id} confirms {index}, but has another entry than {message.to}")

    def voted(self, process: Process, candidate: NodeId, term: int) -> None:
        """A vote leaves, or is counted by its own node: durable, and the only one of this term."""
        durable = process.host.mirror.hard_state
        if (durable.term == term and durable.vote != candidate) or durable.term < term:
            raise Violation(
                "R7",
                f"{process.id} votes for {candidate} in term {term}; durable is {durable.vote or 'nobody'} in "
                f"{durable.term}",
            )
        other = self.votes.setdefault((term, process.id, process.host.member.incarnation), candidate)
        if other != candidate:
            raise Violation("R7", f"{process.id} votes for {other} and for {candidate} in term {term}")

    def answered(self, process: Process, message: Message, before: Before) -> None:
        """R12: a request for a vote was taken in. L6: who hears its leader lets nobody disturb it (thesis §4.2.3)."""
        core = process.core
        term, vote = before.term, before.vote
        changed = (core.term, core.vote) != (term, vote)
        if message.type is PRE_VOTE:
            if changed:
                raise Violation("R12", f"{process.id}: a pre-vote changed term {term} to {core.term}, or the vote")
            return
        hears = before.leader != NO_NODE and before.silence_ticks < process.plan.election_ticks
        if changed and hears and message.context != TRANSFER and core.role is not Role.LEADER:
            raise Violation("L6", f"{process.id} hears {before.leader}, and lets {message.sender} disturb it")
        granted = core.vote == message.sender and core.term == message.term and changed
        if granted and (message.log_term, message.index) < before.last:
            raise Violation("R12", f"{process.id} votes for {message.sender}, whose log is older than its own")

    # What a node is and knows.

    def after_turn(self, process: Process) -> None:
        """A node has done something."""
        self.checks += 1
        raft = process.core.raft
        raftlog, mirror = raft.raftlog, process.host.mirror
        term, commit = raft.term, raftlog.commit_index
        if term != process.seen_term:
            if term < process.seen_term:
                raise Violation("R6", f"{process.id} goes from term {process.seen_term} back to {term}")
            process.seen_term = term
        leads = raft.role is Role.LEADER
        if leads and process.led_term != term:
            self._new_leader(process, term)
        if commit != process.seen_commit:
            self._commit_moved(process, commit, leading=leads and process.led_term == term)
        if leads:
            process.led_term = term
            own = raft.tracker.progress.get(process.id)
            if own is not None and own.match_index > mirror.durable_last:
                raise Violation("R8", f"{process.id} counts {own.match_index}, durable is {mirror.durable_last}")
        log, stable = raft.log, raftlog.stable_index
        if stable > mirror.base and raftlog.snapshot is None:
            mark = mirror.durable.get(stable)
            if mark is None or mark.term != log.term(stable):
                raise Violation("D1", f"{process.id} takes entry {stable} for stored: its disk has another, or none")
        if commit > log.last_index or raftlog.applied_index > commit:
            raise Violation("R11", f"{process.id}: applied, commit, last index are not in this order")

    def _new_leader(self, process: Process, term: int) -> None:
        other = self._leaders.setdefault(term, process.id)
        if other != process.id:
            raise Violation("R1", f"{other} and {process.id} both lead term {term}")
        self._leases_are_over(process, term)
        membership = process.core.raft.tracker.membership
        for voters in (membership.incoming, membership.outgoing):
            known = process.roster.members
            granted = sum(self.votes.get((term, node, known[node].incarnation)) == process.id for node in voters)
            if voters and granted <= len(voters) // 2:
                raise Violation("R14", f"{process.id} leads term {term} by {granted} votes of {len(voters)} voters")
        mirror = process.host.mirror
        index = self.commit_index
        log = process.core.log
        base = max(mirror.base, log.prev_index)
        while index > base and self._committed_in[index] >= term:
            index -= 1
        if index <= base:
            return
        if index > log.last_index or log.term(index) != self.committed[index].term:
            raise Violation("R4", f"{process.id} leads term {term} without {index}, which is committed")

    def _leases_are_over(self, process: Process, term: int) -> None:
        """S3: who may answer reads on its word alone is the only leader there is that can commit (thesis §6.4.1).

        One of an older term may be elected late, by votes that waited while it stood still. It can commit nothing: of
        each majority somebody is in the newer term.
        """
        if not process.plan.lease_reads:
            return
        for host in self._hosts.values():
            other = host.process
            if other is None or other is process or other.core.role is not Role.LEADER:
                continue
            if other.core.term < term and lease_stands(other.core.raft):
                raise Violation("S3", f"{process.id} leads term {term} while {other.id} may read by its lease")

    def _commit_moved(self, process: Process, commit: int, *, leading: bool) -> None:
        core = process.core
        log = core.log
        old = process.seen_commit
        if commit < old:
            raise Violation("R6", f"{process.id} takes back what it knew as committed: {old}, {commit}")
        if commit > log.last_index:
            raise Violation("R11", f"{process.id} knows {commit} committed, its log ends at {log.last_index}")
        if leading and log.term(commit) != core.term:
            raise Violation("R10", f"{process.id} commits {commit} of term {log.term(commit)} in term {core.term}")
        mirror = process.host.mirror
        for index in range(max(old, mirror.base, log.prev_index) + 1, min(commit, self.commit_index) + 1):
            if log.term(index) != self.committed[index].term:
                raise Violation("R5", f"{process.id} takes another entry {index} for committed")
        for index in range(self.commit_index + 1, commit + 1):
            self._committed_first(process, index, leading=leading)
        process.seen_commit = commit

    def _committed_first(self, process: Process, index: int, *, leading: bool) -> None:
        """R9: at the moment of commit the entry is durable on majorities of the configuration that commits it."""
        mark = process.host.mirror.log.get(index)
        if mark is None:
            raise Violation("R9", f"{process.id} commits {index}, which it has handed to no disk")
        if not leading:
            raise Violation("R9", f"{process.id} knows {index} committed before any leader does")
        membership = process.core.raft.tracker.membership
        if lacking := self._lacking(index, mark, membership):
            raise Violation("R9", f"{process.id} commits {index}, {lacking}")
        self._committed_by.append(membership)
        self.committed.append(mark)
        self._committed_in.append(process.core.term)

    # The state machine.

    def applying(self, process: Process, entries: Iterable[Committed]) -> None:
        """R5: no two nodes apply different entries, nothing is left out, and only what is committed and durable."""
        host = process.host
        for entry in entries:
            index = entry.at
            if index <= host.replays_to and self.committed[index] == entry.mark:
                continue  # Its log was behind its machine, which passes it over.
            if index != host.applied + 1:
                raise Violation("R5", f"{process.id} applies {index} after {host.applied}")
            if index > process.core.commit_index or index > self.commit_index:
                raise Violation("R11", f"{process.id} applies {index}, which is not committed")
            if self.committed[index] != entry.mark or self._applied.setdefault(index, entry) != entry:
                raise Violation("R5", f"{process.id} applies another entry {index} than is committed")
            if not host.mirror.has_durable(index, entry.mark):
                raise Violation("D1", f"{process.id} applies {index}, which is not on its disk")
            host.applied = index

    def answered_at(self, process: Process, index: int) -> None:
        """D1: what a client is told is committed, and on a majority's disks."""
        if index > self.commit_index:
            raise Violation("D1", f"{process.id} answers for entry {index}, which is not committed")
        self._still_durable(index, f"{process.id} answers for it")

    @property
    def applied_index(self) -> int:
        """The highest index that any node has applied."""
        return len(self._applied)

    def entry(self, index: int) -> Committed:
        """Return the entry that was applied at `index`."""
        return self._applied[index]

    def digest(self, node: NodeId, index: int, digest: int) -> None:
        """S1: machines that applied the same entries are the same."""
        if index and self._digests.setdefault(index, digest) != digest:
            raise Violation("S1", f"{node} differs from others at index {index}")

    def vote_of(self, process: Process, message: Message) -> None:
        """A node counts its own vote."""
        if message.type is VOTE_RESP and message.to == process.id and not message.reject:
            self.voted(process, process.id, message.term)


def _after(mirror: Mirror, batches: Sequence[Batch]) -> tuple[dict[int, Mark], int, HardState]:
    durable, last, hard = dict(mirror.durable), mirror.durable_last, mirror.hard_state
    for batch in batches:
        hard = batch.hard_state or hard
        if not batch.entries:
            continue
        for index in range(batch.first, last + 1):
            durable.pop(index, None)
        durable.update((batch.first + offset, mark) for offset, mark in enumerate(batch.entries))
        last = batch.first + len(batch.entries) - 1
    return durable, last, hard


def _difference(
    host: Host,
    hard_state: HardState,
    log: Log,
    here: dict[int, Mark],
    states: Sequence[tuple[dict[int, Mark], int, HardState]],
) -> str:
    durable, last, hard = states[0]
    if (hard_state.term, hard_state.vote) != (hard.term, hard.vote) and len(states) == 1:
        return (
            f"{host.id} comes back in term {hard_state.term} with its vote for {hard_state.vote or NO_NODE!r}; "
            f"synced was {hard.term}, {hard.vote!r}"
        )
    wrong = sorted(index for index in durable.keys() | here.keys() if durable.get(index) != here.get(index))
    return (
        f"{host.id} comes back with {log.first_index}..{log.last_index}, term {hard_state.term}; "
        f"synced was up to {last}, term {hard.term}; {len(wrong)} differ, from {wrong[0] if wrong else '-'} on"
    )
