"""The bugs: each a line of the real code, and what stands there in its place.

A patch that no longer applies is a failing test: then the code has changed, and the bug must be planted anew where it
would stand today.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug. `old` stands exactly once in `file` (below `smtpraft/`)."""

    name: str
    file: str
    old: str
    new: str
    pure: bool = False
    """Planted in the plain half, so that runs it."""
    quick: bool = False
    """Caught within a second or two: hunted in every run of the tests."""


BANK: Final = (
    # Elections (Raft §5.2, §5.4.1).
    Bug(
        "vote before sync",
        "consensus/election.py",
        "raft.send_after_append(Message(response, message.sender, term=message.term, context=context))",
        "raft.send(Message(response, message.sender, term=message.term, context=context))",
        quick=True,
    ),
    Bug(
        "vote forgotten within the term",
        "consensus/raft.py",
        "            self.term = term\n            self.vote = NO_NODE\n",
        "            self.term = term\n        self.vote = NO_NODE\n",
    ),
    Bug(
        "vote not recorded",
        "consensus/election.py",
        "            raft.vote = message.sender\n            raft.election_elapsed = 0",
        "            raft.election_elapsed = 0",
    ),
    Bug(
        "second vote in one term",
        "consensus/election.py",
        "or (not raft.vote and not raft.leader_id)",
        "or not raft.leader_id",
    ),
    Bug(
        "vote without a look at the log",
        "consensus/election.py",
        "return (message.log_term, message.index) >= (raft.log.last_term, raft.log.last_index)",
        "return True",
        quick=True,
    ),
    Bug(
        "vote by the length of the log alone",
        "consensus/election.py",
        "return (message.log_term, message.index) >= (raft.log.last_term, raft.log.last_index)",
        "return message.index >= raft.log.last_index",
    ),
    Bug(
        "vote by the last term alone",
        "consensus/election.py",
        "return (message.log_term, message.index) >= (raft.log.last_term, raft.log.last_index)",
        "return message.log_term >= raft.log.last_term",
    ),
    Bug("candidate does not vote for itself", "consensus/raft.py", "        self.vote = self.id\n", ""),
    Bug(
        "candidate leads before its own vote is stored",
        "consensus/election.py",
        "elif raft.id in votes or raft.config.as_reference:",
        "else:",
    ),
    Bug(
        "half the votes are enough",
        "consensus/tally.py",
        "needed = len(voters) // 2 + 1 if voters else 0",
        "needed = (len(voters) + 1) // 2 if voters else 0",
    ),
    Bug(
        "refusal counted as a vote",
        "consensus/election.py",
        "votes.setdefault(message.sender, not message.reject)",
        "votes.setdefault(message.sender, True)",
    ),
    Bug(
        "pre-vote changes the term",
        "consensus/raft.py",
        "            return not self.election.ignores(self, message)  # It asks about a term that has not begun.",
        "            self.become_follower(message.term, NO_NODE)",
    ),
    Bug(
        "pre-vote binds like a vote",
        "consensus/election.py",
        "        if real:\n            raft.vote",
        "        if True:\n            raft.vote",
    ),
    Bug(
        "no stickiness: a node that hears its leader lets others disturb it",
        "consensus/election.py",
        "and raft.election_elapsed < raft.config.election_ticks",
        "and raft.election_elapsed < 0",
    ),
    Bug(
        "no word to a stale leader",
        "consensus/raft.py",
        "                self.send_after_append(Message(APP_RESP, to=message.sender))",
        "                pass",
    ),
    Bug(
        "new leader without an empty entry",
        "consensus/raft.py",
        '        leader.append(self, ENTRY_NORMAL, (b"",))\n',
        "",
    ),
    # Replication and commit (§5.3, §5.4.2).
    Bug(
        "commit of an earlier term by counting",
        "consensus/leader.py",
        "or index > raft.log.last_index or raft.log.term(index) != raft.term:",
        "or index > raft.log.last_index:",
    ),
    Bug(
        "leader counts itself before its sync",
        "consensus/leader.py",
        "    raft.acknowledge(raft.id, raft.raftlog.last_index)\n",
        "    raft.tracker.progress[raft.id].update(raft.log.last_index)\n    maybe_commit(raft)\n",
        quick=True,
    ),
    Bug(
        "one less than a majority commits",
        "_purecodec.py",
        "return indexes[(len(indexes) - 1) // 2]",
        "return indexes[(len(indexes) + 1) // 2]",
        pure=True,
    ),
    Bug(
        "acknowledged before sync",
        "consensus/follower.py",
        "    raft.acknowledge(message.sender, last)\n",
        "    raft.send(Message(APP_RESP, message.sender, index=last))\n",
        quick=True,
    ),
    Bug(
        "what is there already is taken for what was sent",
        "consensus/follower.py",
        "    if not new:\n        return last\n    assert new",
        "    if not new or last <= raftlog.last_index:\n        return last\n    assert new",
    ),
    Bug(
        "committed before it was compared",
        "consensus/follower.py",
        "        hint, hint_term = log.find",
        "        raftlog.commit_to(min(message.commit, log.last_index))\n        hint, hint_term = log.find",
    ),
    Bug(
        "heartbeat commits what the follower may not have",
        "consensus/leader.py",
        "commit = min(progress.match_index, commit_index)",
        "commit = commit_index",
    ),
    Bug(
        "append without a look at the entry before it",
        "consensus/follower.py",
        "if prev > raftlog.last_index or log.term(prev) != message.log_term:",
        "if prev > raftlog.last_index:",
    ),
    Bug(
        "every append truncates",
        "consensus/follower.py",
        "    new, last = log.match(block)\n    if not new:\n        return last\n",
        "    new, last = log.match(block)\n    new = max(first, raft.raftlog.commit_index + 1)\n"
        "    if new > last:\n        return last\n",
        quick=True,
    ),
    Bug(
        "refusal taken for success",
        "consensus/leader.py",
        "    if message.reject:\n        hint",
        "    if message.reject and index > raft.log.last_index:\n        hint",
    ),
    Bug(
        "an answer of the disk counts for whatever stands there now",
        "consensus/raft.py",
        "        if message.index and message.term == self.term:\n"
        "            self.raftlog.stable_to(message.index, message.log_term)\n",
        "        if message.index:\n"
        "            index = min(message.index, self.log.last_index)\n"
        "            self.raftlog.stable_to(index, self.log.term(index))\n",
    ),
    Bug(
        "stored index without a look at its term",
        "consensus/raftlog.py",
        "(self.last_term if index == self.last_index else self.log.term(index)) != term:\n",
        "False:\n",
    ),
    Bug(
        "stored index stays when entries are replaced",
        "consensus/raftlog.py",
        "        self.stable_index = min(self.stable_index, first - 1)\n",
        "",
    ),
    Bug(
        "applied before it is stored",
        "consensus/raftlog.py",
        "self.commit_index if allow_unstable else min(self.commit_index, self.stable_index)",
        "self.commit_index",
    ),
    Bug(
        "queued appends keep naming entries that were replaced",
        "consensus/raft.py",
        "                if not self.config.as_reference:\n                    continue\n",
        "                if not self.config.as_reference:\n                    kept.append(message)\n"
        "                    continue\n",
    ),
    Bug(
        "leader without a quorum leads on",
        "consensus/leader.py",
        "    if not active:\n        raft.become_follower(raft.term, NO_NODE)\n",
        "",
    ),
    Bug(
        "a transfer that fails holds proposals up for ever",
        "consensus/leader.py",
        "        # Whoever could not take over in an election timeout will not: lead on.\n"
        "        raft.transferee = NO_NODE\n",
        "",
    ),
    Bug(
        "heartbeats do not calm a follower",
        "consensus/follower.py",
        "def _on_heartbeat(raft: Raft, message: Message) -> None:\n    raft.election_elapsed = 0\n",
        "def _on_heartbeat(raft: Raft, message: Message) -> None:\n",
    ),
    # Reads (§8, thesis §6.4).
    Bug(
        "read without asking the others",
        "consensus/leader.py",
        "    if alone or _lease_stands(raft):",
        "    if True:",
    ),
    Bug(
        "read before the leader has committed in its term",
        "consensus/leader.py",
        "    if raft.log.term(raft.raftlog.commit_index) != raft.term:",
        "    if False:",
    ),
    Bug(
        "any answer to a heartbeat confirms all reads",
        "consensus/leader.py",
        "    if message.context and raft.reads.acknowledge(message.sender, message.context):",
        "    if raft.reads.acknowledge(message.sender, raft.reads.heartbeat_context()):",
    ),
    Bug(
        "lease read without a look at the lease",
        "consensus/leader.py",
        "return raft.config.as_reference or (not raft.handed_over and raft.lease_held())",
        "return True",
    ),
    Bug(
        "lease read after handing over",
        "consensus/leader.py",
        "(not raft.handed_over and raft.lease_held())",
        "raft.lease_held()",
    ),
    Bug(
        "promise to a lease forgotten",
        "consensus/raft.py",
        "        if self.promised_ticks and (kind is VOTE or kind is PRE_VOTE) and message.context != TRANSFER:",
        "        if False:",
    ),
    Bug(
        "read answered before it is applied here",
        "cluster/reads.py",
        "            if index > applied_index:",
        "            if False:",
    ),
    # Node leases.
    Bug(
        "lease not fenced: a new leader does not wait for what its predecessor granted",
        "cluster/lease.py",
        "now > max(self._answered_at.get(node, 0.0), floor, known_at) + wait_s",
        "now > self._answered_at.get(node, 0.0) + wait_s",
    ),
    Bug(
        "lease counted from when it was granted",
        "cluster/lease.py",
        "        wait_s = self.lease_s * (100 + DRIFT_PERCENT) / 100",
        "        wait_s = self.lease_s / 2",
    ),
    # Membership (thesis §4).
    Bug(
        "learner counted",
        "consensus/tracker.py",
        "if node in membership.incoming)",
        "if node in membership.incoming | membership.learners)",
    ),
    Bug(
        "the old voters are not asked to commit",
        "consensus/tracker.py",
        "        if self._outgoing:\n            index = min(index",
        "        if False:\n            index = min(index",
    ),
    Bug(
        "the old voters are not asked to elect",
        "consensus/tally.py",
        "    if first is second:\n        return first\n",
        "    if first is not VoteResult.PENDING:\n        return first\n",
    ),
    Bug(
        "campaign with a change that is committed and not applied",
        "consensus/raft.py",
        "        if self.conf_change_unapplied():\n            return\n        self.election.campaign",
        "        self.election.campaign",
    ),
    Bug(
        "a change before the one before it is applied",
        "consensus/leader.py",
        "admissible = pending <= raft.raftlog.applied_index and leaves",
        "admissible = leaves",
    ),
    Bug(
        "a new leader forgets that changes may be under way",
        "consensus/raft.py",
        "        self.pending_conf_index = self.log.last_index\n",
        "",
    ),
    Bug(
        "a removed leader stops at the answer of its own disk",
        "consensus/rawnode.py",
        "            if message.sender == self.id and not self.raft.as_reference:\n                return",
        "            if False:\n                return",
    ),
    Bug(
        "who lost its disk stands for election under its old name",
        "consensus/raft.py",
        "        return not self.barred and not self.abstains and not self.stranger",
        "        return not self.barred and not self.abstains",
    ),
    # What is stored in which order.
    Bug(
        "answers overtake the writes before them",
        "cluster/appends.py",
        "        if not must_sync and not self._under_way:",
        "        if not must_sync:",
    ),
    Bug(
        "stale hard state: entries are written without it",
        "cluster/appends.py",
        "        return Write(spans, entries.first, entries.last, hard_state, sync=True)",
        "        return Write(spans, entries.first, entries.last, None if entries else hard_state, sync=True)",
    ),
    Bug(
        "votes are not synced",
        "cluster/appends.py",
        "        return Write(spans, entries.first, entries.last, hard_state, sync=True)",
        "        return Write(spans, entries.first, entries.last, hard_state, sync=bool(entries))",
    ),
    Bug(
        "a truncation within a batch",
        "storage/group.py",
        "            if last_index and item.first_index != last_index + 1:\n"
        "                break  # A truncation, which begins a batch.\n",
        "",
    ),
    Bug(
        "all of a long write is taken for done with its first piece",
        "cluster/appends.py",
        "                submit(*before, _nothing)",
        "                submit(*before, done)\n                done = _nothing",
    ),
    Bug(
        "a piece says that more is committed than it brings",
        "cluster/appends.py",
        "state._replace(commit=min(state.commit, to)) if state is not None else None",
        "state",
    ),
    # The log on disk.
    Bug(
        "write without sync", "storage/wal.py", "            if sync:\n                self._sync()", "            pass"
    ),
    Bug(
        "a failed sync passed over",
        "storage/wal.py",
        '            raise self._fail("sync", segment.file.path, error) from error',
        "            pass",
    ),
    Bug(
        "a batch vouches for itself: a torn tail is taken for corruption",
        "storage/wal.py",
        "segment.header.salt, number, self._durable, self._floor",
        "segment.header.salt, number, number, self._floor",
    ),
    Bug(
        "corruption taken for a torn tail",
        "storage/recovery.py",
        "    if vouched > state.number:",
        "    if False:",
    ),
    Bug(
        "a torn tail is left in place",
        "storage/recovery.py",
        "    segment.file.pwritev([bytes(torn_bytes)], segment.end_offset)\n",
        "",
    ),
    Bug(
        "the directory is not synced after a rename",
        "storage/segment.py",
        "    disk.sync_directory(directory)  # A new segment's name lives there, not in the file.\n",
        "",
    ),
    Bug(
        "a segment's header is not synced before it gets its name",
        "storage/segment.py",
        "        file.pwritev([encode_segment_header(header)], 0)\n        file.sync()\n",
        "        file.pwritev([encode_segment_header(header)], 0)\n",
    ),
    Bug(
        "segments are recycled before it is written down which still count",
        "storage/wal.py",
        "            self._sync()\n            self._marked = self._number\n",
        "            self._marked = self._number\n",
    ),
    Bug(
        "recovery believes what is in memory only",
        "storage/recovery.py",
        "        last.file.sync()\n        last.file.drop_cache()\n",
        "",
    ),
    Bug(
        "recovery passes over a batch whose entries are torn",
        "storage/recovery.py",
        "            if found is None:\n"
        "                _end(state, segment, header, following, until)\n"
        "                return\n",
        "",
    ),
    # Sessions and proposals.
    Bug(
        "a repeat is applied twice",
        "cluster/sessions.py",
        "if session is None or seq < session.done_below or seq in session.done:",
        "if session is None:",
        quick=True,
    ),
    Bug(
        "a withdrawal is not remembered",
        "cluster/sessions.py",
        "        if session is not None and seq >= session.done_below:\n            session.done.add(seq)",
        "        del session",
    ),
    Bug(
        "refused without withdrawing what is on its way",
        "cluster/proposals.py",
        "        if not proposal.handed_out:\n            del self._by_seq[proposal.seq]",
        "        if True:\n            del self._by_seq[proposal.seq]",
    ),
    Bug(
        "the notes of the sessions are those before the batch",
        "cluster/applier.py",
        "        answers = self._apply_when_there_is_room(items, self._sessions.encode())",
        '        answers = self._apply_when_there_is_room(items, b"")',
    ),
    # From the commit to the machine.
    Bug(
        "what is called committed is repeated and withdrawn all the same",
        "cluster/proposals.py",
        "            del self._by_seq[seq]\n            self._certain[seq] = index, proposal\n",
        "            self._certain[seq] = index, proposal\n",
    ),
    Bug(
        "a committed withdrawal does not keep its command from being called committed",
        "cluster/proposals.py",
        "            proposal.foreseen = proposal.committed = None",
        "            proposal.foreseen = None",
    ),
    Bug(
        "what is said after the end of its session is called committed",
        "cluster/foresight.py",
        "session not in self._ended and session >= self._reopened_at",
        "session >= self._reopened_at",
    ),
    Bug(
        "what follows on what was not seen is called committed",
        "cluster/foresight.py",
        "        return not self._blind_until and session",
        "        return session",
    ),
    Bug(
        "what nobody waits for is not applied until somebody does",
        "cluster/applier.py",
        "        elif now - self._lazy_since >= LAZY_S:\n            self.hurry()\n",
        "",
    ),
    # The spool.
    Bug(
        "applied index apart from the data",
        "spool/machine.py",
        "            store.set_meta(applied_index, stamp_ms, digest, newest, counters_json.decode(), notes)\n"
        "            store.commit()\n",
        "            store.commit()\n            store.begin()\n"
        "            store.set_meta(applied_index - len(items) % 2, stamp_ms, digest, newest, counters_json.decode(),"
        " notes)\n            store.commit()\n",
    ),
    Bug(
        "a clock in the machine",
        "spool/machine.py",
        "            now_ms = max(now_ms, item.stamp)",
        '            now_ms = max(now_ms, item.stamp, __import__("time").time_ns() // 10**6)',
    ),
    Bug(
        "which node it is decides what it stores",
        "spool/queue.py",
        "    def _set_node(self, node: NodeId, incarnation: int, *, up: bool) -> None:\n",
        "    def _set_node(self, node: NodeId, incarnation: int, *, up: bool) -> None:\n"
        "        incarnation += node == self._node\n",
    ),
    Bug(
        "the log is cut beyond what the spool has synced",
        "spool/machine.py",
        "        self._store.sync()\n        self._synced_index",
        "        self._synced_index",
    ),
    Bug(
        "bodies are not copied before the log forgets them",
        "spool/snapshot.py",
        "        store.put_body(part.number, content)\n",
        "",
    ),
    # Snapshots.
    Bug(
        "a snapshot is confirmed before it is installed",
        "consensus/follower.py",
        "        raft.acknowledge(message.sender, raft.log.last_index)\n    else:\n",
        "        raft.send(Message(APP_RESP, message.sender, index=raft.log.last_index))\n    else:\n",
    ),
    Bug(
        "a snapshot older than what is committed here is restored from",
        "consensus/follower.py",
        "    if snapshot.index <= raftlog.commit_index:\n        return False\n    state",
        "    state",
    ),
    Bug(
        "an install is taken for complete before the log begins behind it",
        "cluster/snapshots.py",
        "    wal.restart(info.index, info.term, hard_state)\n    files.unmark()\n",
        "    files.unmark()\n    wal.restart(info.index, info.term, hard_state)\n",
    ),
)

HARMLESS: Final = (
    Bug(
        "acknowledged beyond what was compared",
        "consensus/follower.py",
        "    raft.acknowledge(message.sender, last)\n",
        "    raft.acknowledge(message.sender, raft.log.last_index)\n",
    ),
    Bug(
        "committed beyond what was compared",
        "consensus/follower.py",
        "raftlog.commit_to(min(message.commit, last))",
        "raftlog.commit_to(min(message.commit, log.last_index))",
    ),
)
"""What looks like a bug and is none, so that no day shows it: all beyond an append that was taken is its leader's.

Let `m` be the last index where the log of a follower and that of the leader of its term agree. Until the first append
of this term is taken, the follower's log stays as it is (one that a disk lost some of begins a new term). The leader
begins to probe at its own end, and goes back by rejections alone: a follower it has no match of is not taken for
unreachable in any other way. None goes back behind `m`: its term is the same in both logs, and terms never decrease, so
it is at most the term at the index that was asked for, and at most that of the hint; neither side's
`find_conflict_by_term` passes it. What is asked for behind `m` is refused. So the first append that is taken asks for
`m` itself, and holds an entry, since a leader's log ends with an entry of its own term, which the follower has not yet.
That entry follows the end of the follower's log, or contradicts what is there and replaces it and all that follows:
from then on, all that the follower has is the leader's. A snapshot changes nothing: it is sent to whom the leader
believes behind the beginning of its own log, and so is one of later than `m`, which replaces the whole log; or the
appends have come in the meantime.
"""
