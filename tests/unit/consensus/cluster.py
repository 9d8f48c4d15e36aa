"""A cluster of cores in memory, driven by a seed: messages get lost, late and twice, links are cut, nodes crash.

What a node has synced is kept apart from what it has only been told; a crash leaves the first. After every event the
safety properties of Raft (Figure 3) are checked against what all nodes did.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from random import Random

from smtpraft.consensus import (
    APPEND_THREAD,
    APPLY_THREAD,
    LEAVE_JOINT,
    ChangeSingle,
    ChangeType,
    ConfChangeV2,
    Config,
    ConfState,
    HardState,
    InvalidConfChange,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Role,
    SnapshotMeta,
    Transition,
    decode_conf_change,
)
from smtpraft.consensus.tally import VoteResult, majority_vote
from smtpraft.fastlog import ENTRY_NORMAL, Log
from smtpraft.types import NodeId


@dataclass
class Write:
    """What an append worker has not synced yet."""

    hard_state: HardState | None
    snapshot: SnapshotMeta | None
    block: bytes
    responses: tuple[Message, ...]


@dataclass
class Disk:
    """What survives a crash."""

    log: Log
    conf_state: ConfState
    """The membership at `applied`."""
    hard_state: HardState = field(default_factory=HardState)
    applied: int = 0
    abstains_through: int = 0
    past: list[tuple[int, int, bytes, HardState]] = field(default_factory=list)
    """What the log was after each write: what is left of it when all later writes are lost."""

    def sync(self, write: Write) -> None:
        """Make a write durable."""
        if write.hard_state is not None:
            self.hard_state = write.hard_state
        if write.snapshot is not None:
            self.log.restore(write.snapshot.index, write.snapshot.term)
            self.applied, self.conf_state = write.snapshot.index, write.snapshot.conf_state
        if write.block:
            self.log.append_block(write.block)
        self.past.append((self.log.prev_index, self.log.prev_term, _contents(self.log), self.hard_state))

    @property
    def abstains(self) -> bool:
        """Would a node that starts from this disk abstain?"""
        return self.abstains_through > 0 and self.log.last_term <= self.abstains_through

    def lose(self, count: int, *, abstain: bool) -> None:
        """Lose the last `count` writes, though they were synced; with `abstain` do what a careful node does then."""
        del self.past[len(self.past) - min(count, len(self.past)) :]
        prev_index, prev_term, block, left = self.past[-1] if self.past else (0, 0, b"", HardState())
        log = Log(prev_index, prev_term)
        if block:
            log.append_block(block)
        base, base_term = self.log.prev_index, self.log.prev_term
        if prev_index < base:
            # No log is cut behind an entry that a later write replaces.
            if base <= log.last_index and log.term(base) == base_term:
                log.compact(base)
            else:
                log.restore(base, base_term)
        self.log = log
        commit = max(log.prev_index, min(left.commit, log.last_index))
        if abstain:  # The highest term is known from its second copy.
            self.abstains_through = self.hard_state.term
            self.hard_state = HardState(self.hard_state.term + 1, NodeId(""), commit)
        else:
            self.hard_state = HardState(left.term, left.vote, commit)


def _contents(log: Log) -> bytes:
    if log.last_index == log.prev_index:
        return b""
    return b"".join(log.spans(log.first_index, log.last_index))


class Violation(AssertionError):
    """A promise of Raft was broken."""


class Server:
    """A node with its disk and its two workers."""

    def __init__(self, cluster: Cluster, node: NodeId, disk: Disk) -> None:
        self.cluster = cluster
        self.id = node
        self.disk = disk
        self.up = True
        self.start()

    def start(self) -> None:
        """Begin with what the disk has."""
        disk = self.disk
        log = Log(disk.log.prev_index, disk.log.prev_term)
        if block := _contents(disk.log):
            log.append_block(block)
        self.log = log
        self.applied = disk.applied
        self.conf_state = disk.conf_state
        self.writes: deque[Write] = deque()
        self.applies: deque[tuple[list[tuple[int, int, int, int, bytes]], tuple[Message, ...]]] = deque()
        self.was_leader = False
        self.core = RawNode(
            self.cluster.config(self.id),
            log,
            disk.conf_state,
            disk.hard_state,
            # A state machine may be ahead of a log that lost its end; what comes again it has.
            min(disk.applied, max(log.prev_index, min(disk.hard_state.commit, log.last_index)))
            if disk.abstains_through or self.cluster.careless
            else disk.applied,
            self.cluster.random,
            snapshot_provider=self._snapshot,
            abstains_through=disk.abstains_through,
        )

    def _snapshot(self) -> SnapshotMeta | None:
        if not self.applied or self.applied < self.log.prev_index:
            return None
        return SnapshotMeta(self.applied, self.log.term(self.applied), self.conf_state)

    def step(self, message: Message) -> None:
        """Take a message in; what a correct core refuses is no matter."""
        with contextlib.suppress(PeerNotFound, ProposalDropped):
            self.core.step(message)

    def pump(self, *, lazy: bool = False) -> None:
        """Do what the core says, as far as it needs no disk; if `lazy`, sometimes only the next time."""
        if lazy and self.cluster.random.random() < 0.3:
            self.cluster.check(self)
            return
        while self.core.has_ready():
            output = self.core.ready()
            for message in output.messages:
                if message.to == APPEND_THREAD:
                    self._append(message)
                elif message.to == APPLY_THREAD:
                    entries = self.log.entries(message.entries.first, message.entries.last)
                    self.applies.append((entries, message.responses))
                else:
                    if message.entries:
                        message.block = b"".join(self.log.spans(message.entries.first, message.entries.last))
                    if message.type is MessageType.SNAP:
                        self.core.report_snapshot(message.to, ok=True)
                    self.cluster.send(message)
            for state in output.read_states:
                self.cluster.check_read(self, state.context, state.index)
        self.cluster.check(self)

    def _append(self, message: Message) -> None:
        hard_state = HardState(message.term, message.vote, message.commit) if message.term else None
        block = b"".join(self.log.spans(message.entries.first, message.entries.last)) if message.entries else b""
        self.writes.append(Write(hard_state, message.snapshot, block, message.responses))

    def sync(self) -> None:
        """The disk is done with the oldest write."""
        write = self.writes.popleft()
        self.disk.sync(write)
        if write.snapshot is not None:
            self.applied, self.conf_state = write.snapshot.index, write.snapshot.conf_state
            self.cluster.check_conf_state(self.applied, self.conf_state)
        for response in write.responses:
            if response.to == self.id:
                self.step(response)
            else:
                self.cluster.send(response)

    def apply(self) -> None:
        """The state machine is done with the oldest range."""
        entries, responses = self.applies.popleft()
        for index, term, _, kind, payload in entries:
            if index <= self.applied:
                continue  # A snapshot came meanwhile.
            self.cluster.check_applied(self, index, term, payload)
            self.applied = index
            if kind != ENTRY_NORMAL:
                try:
                    self.conf_state = self.core.apply_conf_change(decode_conf_change(kind, payload))
                except InvalidConfChange as error:
                    self.cluster.refused.setdefault(index, str(error))
                self.cluster.check(self)
            self.cluster.check_conf_state(index, self.conf_state)
        for response in responses:
            self.step(response)

    def compact(self, to_index: int) -> None:
        """Drop entries from log and disk; what was applied up to there is durable."""
        if self.log.prev_index < to_index <= min(self.applied, self.core.applied_index, self.core.stable_index):
            conf_state = self.cluster.conf_states[to_index]
            if to_index <= self.disk.log.last_index and self.disk.log.prev_index < to_index:
                self.disk.applied, self.disk.conf_state = max(
                    (self.disk.applied, self.disk.conf_state), (to_index, conf_state), key=lambda pair: pair[0]
                )
                self.disk.log.compact(to_index)
                self.core.compact(to_index)

    def crash(self) -> None:
        """Lose all that is not on disk; some of what was being written may be there."""
        if self.cluster.random.random() < 0.5:
            for _ in range(self.cluster.random.randint(0, len(self.writes))):
                self.disk.sync(self.writes.popleft())
        self.up = False

    def lose(self, count: int) -> None:
        """While it is down, its last writes rot."""
        assert not self.up
        self.disk.lose(count, abstain=not self.cluster.careless)

    def sync_some(self) -> None:
        """The disk gets on."""
        for _ in range(self.cluster.random.randint(0, len(self.writes))):
            self.sync()
            self.pump()

    def apply_some(self) -> None:
        """The state machine gets on."""
        for _ in range(self.cluster.random.randint(0, len(self.applies))):
            self.apply()
            self.pump()


class Cluster:
    """All of them, and the network between them."""

    def __init__(self, seed: int, size: int = 3, **settings: object) -> None:
        self.random = Random(seed)
        self.settings = settings
        self.now: int = 0
        self.flight: list[Message] = []
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.leaders: dict[int, NodeId] = {}
        self.committed: dict[int, int] = {1: 1}
        """Index to term of all that any node took for committed."""
        self.payloads: dict[int, bytes] = {}
        self.commit_index = 1
        self.conf_states: dict[int, ConfState] = {}
        self.refused: dict[int, str] = {}
        self.reads: dict[bytes, int] = {}
        self.damaged: set[NodeId] = set()
        self.careless = False
        """Nodes that lost something go on as though it had never been there."""
        self.proposed = 0
        ids = [NodeId(f"n{number}") for number in range(1, size + 1)]
        self.ids = ids
        self.conf_state = ConfState(tuple(ids))
        # The first members are what entry 1 says, and it is compacted: who joins later gets it in a snapshot.
        self.conf_states[1] = self.conf_state
        self.servers = {node: Server(self, node, Disk(Log(1, 1), self.conf_state, applied=1)) for node in ids}

    def config(self, node: NodeId) -> Config:
        """The settings of one node."""
        settings: dict[str, object] = {
            "election_ticks": 5,
            "heartbeat_ticks": 1,
            "max_append_bytes": 200,
            "max_inflight_messages": 4,
            "max_inflight_bytes": 1000,
            "max_apply_bytes": 300,
            **self.settings,
        }
        return Config(id=node, **settings)  # type: ignore[arg-type]

    # The network.

    def send(self, message: Message) -> None:
        """Put a message on its way, or not, or twice."""
        chance = self.random.random()
        if (message.sender, message.to) in self.cut or chance < self.loss:
            return
        self.flight.append(message)
        if chance > 1 - self.repeat:
            self.flight.append(message)

    loss = 0.0
    repeat = 0.0

    def deliver(self, position: int) -> None:
        """Let a message arrive."""
        message = self.flight.pop(position)
        server = self.servers.get(message.to)
        if server is not None and server.up and (message.sender, message.to) not in self.cut:
            server.step(copy(message))
            server.pump(lazy=True)

    # Promises.

    def check(self, server: Server) -> None:
        """Look at a node after it did something."""
        core, raftlog = server.core, server.core.raft.raftlog
        if (raftlog.last_index, raftlog.last_term) != (server.log.last_index, server.log.last_term):
            raise Violation(f"{server.id} takes its log for ending at {raftlog.last_index}, term {raftlog.last_term}")
        leads = core.role is Role.LEADER
        if leads and not server.was_leader:
            self._check_new_leader(server)
        server.was_leader = leads
        if leads and self.leaders.get(core.term) != server.id:
            raise Violation(f"Election Safety: {self.leaders.get(core.term)} and {server.id} lead term {core.term}")
        while self.commit_index < core.commit_index:
            self._check_commit(server, self.commit_index + 1)
        low = max(server.log.prev_index, core.applied_index)
        for index in range(low + 1, core.commit_index + 1):
            if self.committed[index] != server.log.term(index):
                raise Violation(f"State Machine Safety: {server.id} has another entry committed at {index}")

    def _check_new_leader(self, server: Server) -> None:
        core = server.core
        other = self.leaders.setdefault(core.term, server.id)
        if other != server.id:
            raise Violation(f"Election Safety: {other} and {server.id} lead term {core.term}")
        for index in range(server.log.prev_index + 1, self.commit_index + 1):
            if index > server.log.last_index or server.log.term(index) != self.committed[index]:
                raise Violation(f"Leader Completeness: {server.id} leads term {core.term} without {index}")

    def _check_commit(self, server: Server, index: int) -> None:
        """What commits first is on the disks of a majority: of both majorities while joint."""
        term = server.log.term(index)
        has = {
            node: each.disk.log.prev_index >= index
            or (index <= each.disk.log.last_index and each.disk.log.term(index) == term)
            or node in self.damaged  # It said so before it lost it.
            for node, each in self.servers.items()
        }
        state = server.core.conf_state
        for voters in (state.voters, state.voters_outgoing):
            if majority_vote(voters, has) is not VoteResult.WON:
                raise Violation(f"Durability: {server.id} commits {index}, which only {has} have of {voters}")
        self.committed[index] = term
        self.commit_index = index

    def check_applied(self, server: Server, index: int, term: int, payload: bytes) -> None:
        """The state machines see the same, without gaps."""
        if index != server.applied + 1:
            raise Violation(f"{server.id} applies {index} after {server.applied}")
        if self.committed.get(index) != term or self.payloads.setdefault(index, payload) != payload:
            raise Violation(f"State Machine Safety: {server.id} applies another entry at {index}")
        if index > server.disk.log.last_index:
            raise Violation(f"{server.id} applies {index} before it is on its disk")

    def check_conf_state(self, index: int, state: ConfState) -> None:
        """Memberships are the same at the same index."""
        if self.conf_states.setdefault(index, state) != state:
            raise Violation(f"memberships differ at {index}: {self.conf_states[index]}, {state}")

    def check_read(self, server: Server, context: bytes, index: int) -> None:
        """A read sees what was committed anywhere when it was asked for (thesis §6.4)."""
        if index < self.reads[context]:
            raise Violation(f"{server.id} reads at {index}, but {self.reads[context]} was committed")

    # Events.

    def live(self) -> list[Server]:
        """The nodes that run."""
        return [server for server in self.servers.values() if server.up]

    def tick(self, server: Server) -> None:
        """Time passes for one node."""
        server.core.tick()
        server.pump()

    def tick_all(self) -> None:
        """Time passes for all of them."""
        for server in self.live():
            self.tick(server)

    def propose(self, server: Server, count: int = 1) -> None:
        """A client asks for something."""
        self.proposed += 1
        payloads = [b"%d/%d" % (self.proposed, number) for number in range(count)]
        try:
            server.core.propose(payloads)
        except ProposalDropped:
            return
        server.pump()

    def read(self, server: Server) -> None:
        """A client asks for a linearizable read."""
        context = b"read %d" % len(self.reads)
        self.reads[context] = self.commit_index
        try:
            server.core.read_index(context)
        except ProposalDropped:
            return
        server.pump()

    def change_membership(self, server: Server) -> None:
        """An operator changes who votes; a fourth and a fifth node may come in."""
        if server.core.role is not Role.LEADER:
            return
        random = self.random
        change = LEAVE_JOINT
        if not server.core.conf_state.voters_outgoing or random.random() < 0.2:
            nodes = random.sample(self.ids, random.randint(1, 3))
            kinds = (ChangeType.ADD_NODE, ChangeType.ADD_NODE, ChangeType.ADD_LEARNER, ChangeType.REMOVE_NODE)
            changes = tuple(ChangeSingle(random.choice(kinds), node) for node in nodes)
            change = ConfChangeV2(changes, random.choice(tuple(Transition)))
        try:
            server.core.propose_conf_change(change)
        except ProposalDropped:
            return
        server.pump()

    def restart(self, server: Server) -> None:
        """A crashed node comes back."""
        server.up = True
        server.start()
        server.pump()

    def add_spare(self, node: NodeId) -> None:
        """A node that is no member yet starts with an empty disk."""
        self.ids.append(node)
        self.servers[node] = Server(self, node, Disk(Log(), ConfState()))

    def partition(self) -> None:
        """Cut some links, in one direction or both."""
        nodes = list(self.servers)
        side = set(self.random.sample(nodes, self.random.randint(1, len(nodes) - 1)))
        leader = self.leader()
        if leader is not None and self.random.random() < 0.5:
            side = {leader.id}
        one_way = self.random.random() < 0.3
        self.cut = {(a, b) for a in side for b in nodes if b not in side}
        if not one_way:
            self.cut |= {(b, a) for a, b in self.cut}

    def heal(self) -> None:
        """Everything works again."""
        self.cut.clear()
        self.loss = self.repeat = 0.0
        for server in self.servers.values():
            if not server.up:
                self.restart(server)

    def settle(self, rounds: int) -> None:
        """Let everything arrive, sync and tick, in order."""
        for _ in range(rounds):
            for server in self.live():
                self.tick(server)
            self.drain()

    def drain(self) -> None:
        """Let everything that is under way end, without a tick."""
        busy = True
        while busy:
            busy = False
            while self.flight:
                busy = True
                self.deliver(0)
            for server in self.live():
                server.pump()
                while server.writes or server.applies:
                    busy = True
                    if server.writes:
                        server.sync()
                        server.pump()
                    if server.applies:
                        server.apply()
                        server.pump()

    def leaders_now(self) -> list[Server]:
        """All that believe they lead."""
        return [server for server in self.live() if server.core.role is Role.LEADER]

    def leader(self) -> Server | None:
        """The leader of the highest term that runs."""
        return max(self.leaders_now(), key=lambda server: server.core.term, default=None)

    def some(self, servers: Sequence[Server]) -> Server | None:
        """One of them."""
        return self.random.choice(servers) if servers else None
