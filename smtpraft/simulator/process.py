"""One run of a node, from its start to its crash: what `cluster.driver` does, with virtual time in place of threads.

The parts are the real ones: the consensus core, the write-ahead log and its group commit, the order of writes and
answers, sessions, proposals, reads, leases, the spool. What is here is the wiring, turn by turn as in the driver, and
the places where it may crash.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from smtpraft import fastlog
from smtpraft.cluster import envelope, wire
from smtpraft.cluster.abstention import Abstention, where_to_begin
from smtpraft.cluster.appends import Appends
from smtpraft.cluster.applier import Applier, Result
from smtpraft.cluster.clock import StampClock
from smtpraft.cluster.foresight import Foresight
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.members import Changed, encode_found
from smtpraft.cluster.proposals import Proposals
from smtpraft.cluster.proposing import Proposing
from smtpraft.cluster.reads import Reads
from smtpraft.cluster.snapshot_format import SNAPSHOT_FRAMES, SnapshotInfo
from smtpraft.cluster.snapshots import restart_log, resume_install
from smtpraft.consensus import (
    APPEND_THREAD,
    APPLY_THREAD,
    ConfChangeV2,
    Config,
    EntryRange,
    InvalidMessage,
    LocalMessage,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Role,
)
from smtpraft.consensus.messages import SnapshotMeta
from smtpraft.errors import Stopped
from smtpraft.simulator import invariants, records
from smtpraft.simulator.applying import Applying
from smtpraft.simulator.compaction import Compaction
from smtpraft.simulator.futures import AtOnce
from smtpraft.simulator.invariants import Before
from smtpraft.simulator.logwriter import LogWriter
from smtpraft.simulator.network import Frame
from smtpraft.simulator.snapshots import Files, Snapshots
from smtpraft.simulator.timeline import MS
from smtpraft.simulator.wiping import Directories
from smtpraft.simulator.wires import VirtualOutbound, Wires
from smtpraft.storage import HardState, Wal
from smtpraft.types import NO_NODE, NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host

SWEEP_US: Final = 100 * MS
FOUND_TICKS: Final = 40
LEASE_S: Final = 2.0
PENDING_BYTES_MAX: Final = 200_000


HEARS: Final = frozenset({MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP})
"""What only a leader says."""


class Crash(Exception):
    """The process dies here: raised at a place where crashes are aimed, caught by its host."""


class Process:
    """What a node has in memory, and does. `host` is what outlives it."""

    def __init__(self, host: Host) -> None:
        """Start from what the disk holds.

        Raises:
            Fatal: recovery refuses.
        """
        world, plan = host.world, host.world.plan
        self.host = host
        self.world = world
        self._judge: invariants.Invariants = world.invariants
        self._crashes_at_sends = plan.has("crash-send")
        self.plan = plan
        self.id = host.id
        self.random = world.random
        self.now_s = host.monotonic_s
        """The time on this node's monotonic clock."""
        self._after: Callable[..., None] = world.timeline.after
        self._run: Callable[..., None] = host.run
        self.failed = False
        self.forgets = False
        """What becomes of commands that are known to be committed, nobody here will learn."""
        self.log: fastlog.Log = fastlog.Log()
        self.machine = host.spool.machine(host.id, host.monotonic_s)
        pending = self._resume_install()
        self.wal, recovery = Wal.open(
            host.disk,
            "wal",
            cluster_id=world.cluster_id,
            node_id=host.id,
            log=self.log,
            segment_bytes=plan.segment_bytes,
            cache_bytes=plan.cache_bytes,
            background=False,
            promises="data",
            heal=plan.nodes > 1,
        )
        found = records.marks([self._on_disk(self.log.first_index, self.log.last_index)])
        world.invariants.recovered(host, recovery.hard_state, self.log, found, abstains=self.wal.abstain_term > 0)
        hard_state = recovery.hard_state
        if pending is not None:
            info, marked = pending
            newer = marked if marked.term >= hard_state.term else hard_state
            host.mirror.installing = (info.index, info.term, newer)
            hard_state = restart_log(self.snapshot_files, self.wal, self.log, hard_state, pending)
            world.invariants.completed(host)
        self.machine.read_entry = self._command_at
        self.applier = Applier(
            self.machine,
            host.id,
            deliver=self._deliver,
            on_result=self._take_result,
            on_failure=host.fail,
            read_entries=self.read,
        )
        self.applying = Applying(self)
        applied, sessions = self.applier.open(background=False, summon=self.applying.summon)
        host.reopened(self.machine, applied)
        begins = where_to_begin(self.log, self.wal, hard_state, self.applier, alone=plan.nodes == 1)
        host.replays_to = applied if self.applier.applied_index < applied else 0
        # The log knows the members best; before it does, the founders' record (`cluster.admission`).
        members = self.applier.members
        self.conf_state = members.conf_state if members.founded else host.founders
        founders = {node: world.founders[node] for node in host.founders.voters}
        known = members.by_id if members.founded else founders
        host.members_are(members.index, self.conf_state, known)
        self.core: RawNode = RawNode(
            Config(
                id=host.id,
                election_ticks=plan.election_ticks,
                heartbeat_ticks=plan.heartbeat_ticks,
                max_append_bytes=plan.append_bytes,
                max_inflight_messages=plan.inflight_messages,
                max_inflight_bytes=16_000,
                max_uncommitted_bytes=100_000,
                max_apply_bytes=20_000,
                lease_reads=plan.lease_reads,
            ),
            self.log,
            self.conf_state,
            begins,
            self.applier.applied_index,
            Random(self.random.getrandbits(32)),
            self._provide_snapshot,
            abstains_through=self.wal.abstain_term,
        )
        self.core.lease_held = self._read_lease_held
        self.seen_commit = self.core.commit_index
        self.seen_term = self.core.term
        self.led_term = 0
        self.ticks = 0
        self.heard_at = -1_000_000
        """The tick at which this process heard its leader last."""
        self.appends = Appends(self.core, self.log, piece_bytes_max=plan.piece_bytes)
        self.loop = world.loop
        self.clock = StampClock(host.wall_s, host.monotonic_s)
        self.proposals = Proposals(host.id, max_pending_bytes=PENDING_BYTES_MAX, random_bytes=self.random.randbytes)
        self.reads = Reads(self.random.randbytes(8))
        # As `NodeOptions.read_lease_ms`: a margin for short ticks, and for clocks that run at different rates.
        self._read_lease_s = max(0, plan.election_ticks - 2) * plan.tick_us * 9 // 10 / 1e6
        self.contact_window_s = 2 * plan.election_ticks * plan.tick_us / 1e6
        self.heartbeats = Heartbeats(
            host.id,
            self.conf_state,
            lease_s=LEASE_S,
            grant_window_s=self.contact_window_s,
            digest_at=self.machine.digest_at,
        )
        self.heartbeats.sessions = sessions
        self.directories = Directories(host.member.incarnation)
        self.roster = self.directories.roster(host.id, known, members, self.core, self.heartbeats)
        self.wires = Wires(self)
        self.outbound = VirtualOutbound(self, self.wires)
        self.proposing = Proposing(
            self.core,
            self.proposals,
            self.heartbeats,
            self.outbound,
            self.wires.connected,
            self.contact_window_s,
            clock=host.monotonic_s,
        )
        self.foresight = Foresight(host.id, self.proposals)
        self.writer = LogWriter(self, self.wal)
        self.snapshots = Snapshots(self, self.snapshot_files)
        self.compaction = Compaction(self)
        self._abstention = Abstention(self.wal, self.log, self.core, AtOnce(), host.fail)
        self._role = Role.FOLLOWER
        self._leader = NO_NODE
        self._newest_stamp = 0
        self._leader_started_index = 0
        self._leader_since = 0.0
        self._found_at = 0
        self._next_sweep = 0

    def start(self) -> None:
        """Begin: ask for a session, tick."""
        self.proposals.open_wanted()
        self.after(self.random.randrange(self.plan.tick_us), self._tick)
        if self.conf_state.voters == (self.id,):
            self.core.campaign()
            self.turn()

    def after(self, delay_us: int, act: Callable[..., object], *arguments: object) -> None:
        """Do something later, if this process still runs then."""
        self._after(delay_us, self._run, self, act, *arguments)

    def abandon(self) -> None:
        """The process is dead: its clients know what they knew."""
        self.forgets = True
        self.proposals.close()
        self.reads.close(Stopped("the node has died"))

    def aim(self, fault: str, *, times: int = 1) -> None:
        """Crash here, perhaps."""
        if fault in self.plan.faults and self.host.aimed(fault, times=times):
            raise Crash(fault)

    # ---- one turn, as in the driver ---------------------------------------------------------------------------------

    def turn(self, *, lazy: bool = False) -> None:
        """Do what the core wants done. If `lazy`, perhaps only the next time."""
        if lazy and self.plan.lazy_ppm and self.random.random() * 1_000_000 < self.plan.lazy_ppm:
            if self.core.role is Role.LEADER:
                self._judge.after_turn(self)  # It may lead no longer when its turn comes.
            return
        core = self.core
        core.stamp = self.clock.now_ms()
        self.proposing.turn(self._leader_since)
        if self.reads.has_some and self.reads.has_work(now := self.now_s()):
            self._ask_reads(now)
        if not core.has_ready():
            self._judge.after_turn(self)
            return
        while core.has_ready():
            output = core.ready()
            if output.snapshot is not None:
                self.world.invariants.restores(self, output.snapshot)
            if output.entries:
                self._handed_out(output.entries)
            if output.soft_state is not None:
                self._role_changed()
                self.proposing.turn(self._leader_since)
            self._judge.after_turn(self)
            for state in output.read_states:
                self.reads.confirmed(state, self.applier.applied_index)
            if self.reads.waiting:
                self.applier.hurry()
            for message in output.messages:
                if message.to == APPEND_THREAD:
                    self._store(message, output.must_sync)
                elif message.to == APPLY_THREAD:
                    self.applying.apply(message)
                else:
                    self._send(message)
        self.log.evict(self.plan.cache_bytes, self.appends.durable_index + 1)
        self._judge.after_turn(self)
        self.world.mix(self.host.number, core.term, core.commit_index, self.log.last_index)

    def _ask_reads(self, now: float) -> None:
        for context in self.reads.contexts(now):
            with contextlib.suppress(ProposalDropped):
                self.core.read_index(context)

    # ---- storing ----------------------------------------------------------------------------------------------------

    def _handed_out(self, entries: EntryRange) -> None:
        """Tell the judges what is to be stored, before they hear what the node makes of it."""
        spans = self.log.spans(entries.first, entries.last)
        found = [mark for _, mark in records.marks(spans)]
        self.world.invariants.handed_out(self, invariants.Batch(None, entries.first, found))
        if self.plan.has("membership"):
            for index in records.changes(spans):
                self.world.invariants.change_handed_out(self, index)

    def _store(self, message: Message, must_sync: bool) -> None:
        if message.snapshot is not None:
            self.snapshots.install(message.snapshot)
            self.foresight.unseen(message.snapshot.index)
        write = self.appends.take(message, must_sync)
        if write is None:
            self._stored(message)
            return
        self.appends.submit(write, self.writer.submit, partial(self._write_done, message))

    def _write_done(self, message: Message) -> None:
        self.appends.written()
        self._stored(message)

    def _stored(self, message: Message) -> None:
        for response in self.appends.finished(message):
            if response.to == self.id:
                self.world.invariants.vote_of(self, response)
                self._step_own(response)
            else:
                self._send(response)

    def _step_own(self, message: Message) -> None:
        self.core.step(message)

    # ---- applying ---------------------------------------------------------------------------------------------------

    def _deliver(self, deliver: Callable[[], None]) -> None:
        """The machine has committed its transaction; its thread tells the loop."""
        self.aim("crash-apply")
        deliver()

    def _take_result(self, result: Result) -> None:
        self._newest_stamp = max(self._newest_stamp, result.stamp)
        self.world.invariants.digest(self.id, *result.digest)
        self.heartbeats.digest = result.digest
        if result.overtaken is not None:
            self.forgets = True
            self.proposals.overtaken(*result.overtaken)
            self.forgets = False
        for session, seq, answer in result.mine:
            self.proposals.resolved(session, seq, answer)
        for session, seq in result.cancelled:
            self.proposals.cancelled(session, seq)
        if result.nodes_changed:
            self.heartbeats.sessions = result.open_sessions
            self.proposals.sessions_changed(result.open_sessions)
        if result.opened is not None:
            self.proposals.session_opened(*result.opened)
        for changed in result.changes:
            self._members_changed(changed)
        self.foresight.applied(result.last)
        self.reads.applied(result.last)
        for _ in range(result.batches):
            for response in self.applying.under_way.popleft().responses:
                self.core.step(response)
        self.turn()
        self.compaction.consider()

    def _members_changed(self, changed: Changed) -> None:
        """Core and heartbeats hear of it before it is reported as applied."""
        self.roster.change(changed)
        self.host.members_are(changed.index, changed.conf_state, changed.members)

    # ---- snapshots --------------------------------------------------------------------------------------------------

    def _resume_install(self) -> tuple[SnapshotInfo, HardState] | None:
        """As `cluster.node`: an install that a crash has interrupted is completed before anything else."""
        self.snapshot_files = Files(self.host)
        if not self.plan.has("snapshot"):
            return None
        pending = resume_install(self.snapshot_files, self.machine)
        if pending is not None:
            self.host.put_in_place(pending[0].index)
        return pending

    def _provide_snapshot(self) -> SnapshotMeta | None:
        return self.snapshots.provide() if self.plan.has("snapshot") else None

    # ---- in and out -------------------------------------------------------------------------------------------------

    def receive(self, peer: NodeId, frame: Frame) -> None:
        """A frame has come."""
        kind, head, tail, directories = frame
        beats = self.heartbeats
        if directories is not None:
            if not self.directories.lets_in(peer, *directories):
                return
            self.host.admitted()
        if kind in SNAPSHOT_FRAMES:
            self.snapshots.received(peer, kind, head, tail)
            self.turn()
            return
        if kind == fastlog.FRAME_HEARTBEAT:
            message, accepted = beats.decode(peer, head)
            self.step(message)
            if self.core.leader_id == peer and self.core.term == message.term:
                accepted(self.now_s())
        elif kind == fastlog.FRAME_HEARTBEAT_RESPONSE:
            term = self.core.term if self.core.role is Role.LEADER else 0
            self.step(beats.decode_response(peer, head, term, self.now_s()))
        else:
            message = wire.decode_message(kind, head, tail, sender=peer, to=self.id)
            if message.type is MessageType.PROP:
                self.proposing.forwarded(peer, message.payloads)
            else:
                if message.type is MessageType.READ_INDEX:
                    self.outbound.hurry(peer, self.core.commit_index)
                self.step(message)
                if message.type is MessageType.APP and self.core.leader_id == peer:
                    beats.leader_contact_at = self.now_s()
        self.turn(lazy=True)

    def step(self, message: Message) -> None:
        core = self.core
        asks = message.type is MessageType.VOTE or message.type is MessageType.PRE_VOTE
        before = Before(core, self.ticks - self.heard_at) if asks else None
        try:
            core.step(message)
        except ProposalDropped:
            pass
        except (PeerNotFound, LocalMessage, InvalidMessage) as error:
            self.world.refused(self, message, error)
        if before is not None:
            self.world.invariants.answered(self, message, before)
        elif message.type in HEARS and core.leader_id == message.sender and core.term == message.term:
            self.heard_at = self.ticks

    def _send(self, message: Message) -> None:
        kind = message.type
        self._judge.sent(self, message)
        if self._crashes_at_sends:
            self.aim("crash-send")
        if kind is MessageType.HEARTBEAT:
            may_grant = self.core.applied_index >= self._leader_started_index
            frame = self.heartbeats.encode(message, self.now_s(), self.compaction.retain_index(), may_grant)
            self.wires.send_control(message.to, frame)
        elif kind is MessageType.HEARTBEAT_RESP:
            lag_ms = int(self.writer.write_age_s() * 1000)
            frame = self.heartbeats.encode_response(message, self.now_s(), self.applier.applied_index, lag_ms)
            self.wires.send_control(message.to, frame)
        elif kind is MessageType.SNAP:
            self.snapshots.send(message)
        else:
            self.outbound.send(message)

    # ---- what an operator does --------------------------------------------------------------------------------------

    def transfer(self, to: NodeId) -> None:
        """Ask for leadership to go to `to`."""
        self.core.transfer_leader(to)
        self.turn()

    def campaign(self) -> None:
        """Stand for election now."""
        self.core.campaign()
        self.turn()

    def forget_leader(self) -> None:
        """Believe no more in the leader."""
        self.core.forget_leader()
        self.turn()

    # ---- small things -----------------------------------------------------------------------------------------------

    def unreachable(self, peer: NodeId) -> None:
        """Tell the core, soon, that a message to `peer` is lost."""
        self.after(0, self._report_unreachable, peer)

    def _report_unreachable(self, peer: NodeId) -> None:
        self.core.report_unreachable(peer)
        self.turn()

    def read(self, first: int, last: int) -> bytes:
        """Return entries from the disk."""
        return self.wal.read(first, last, None)

    def _on_disk(self, first: int, last: int) -> bytes:
        return self.wal.read(first, last, None) if first <= last else b""

    def _command_at(self, index: int) -> bytes:
        payload = fastlog.decode_entries(self.read(index, index))[0][4]
        return payload[envelope.COMMAND_HEADER_BYTES :]

    # ---- time -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.after(self.host.tick_us, self._tick)
        self.ticks += 1
        self.core.tick()
        now, now_us = self.now_s(), self.world.timeline.now
        self.applier.hurry_old(now)
        if now_us >= self._next_sweep:
            self._next_sweep = now_us + SWEEP_US
            self.proposals.sweep(now)
            self._judge_leases(now)
            self._judge_disk()
            self._found()
            self._watch_abstention()
            self.turn()
        elif self.core.has_ready() or self.proposals.has_work(now):
            self.turn()

    def _found(self) -> None:
        """As `cluster.steward`: the first leader writes the founders into the log."""
        if self.core.role is Role.LEADER and not self.applier.members.founded and self.ticks >= self._found_at:
            self._found_at = self.ticks + FOUND_TICKS
            members = [self.world.founders[node] for node in self.host.founders.voters]
            with contextlib.suppress(ProposalDropped):
                self.core.propose([encode_found(members)])

    def _watch_abstention(self) -> None:
        if self.host.damaged and self.wal.abstain_term:
            self._abstention.watch(self.appends.durable_index)
            if not self.wal.abstain_term:
                self.host.healed()

    def change_members(self, change: ConfChangeV2) -> None:
        """Ask for other members."""
        with contextlib.suppress(ProposalDropped):
            self.core.propose_conf_change(change)
        self.turn()

    def _judge_leases(self, now: float) -> None:
        beats = self.heartbeats
        if beats.granter is None or self.core.applied_index < self._leader_started_index:
            return
        for _node, session in beats.granter.expired(beats.sessions, self.id, now):
            live = beats.granter.live(beats.sessions, self.id, now)
            self.proposals.propose_down(session, envelope.encode_down(session, live), self.core.term)

    def lease_expires_in_s(self) -> float:
        """Return how long this node's lease lasts; 0 if it holds none."""
        session = self.proposals.session
        now = self.now_s()
        up_to_date = self.core.applied_index >= self._leader_started_index
        if self._role is Role.LEADER and self.core.role is Role.LEADER and up_to_date:
            self.heartbeats.holder.granted_by_quorum(self.heartbeats.quorum_contact_at(now), session)
        return self.heartbeats.holder.remaining_s(now, session)

    def _read_lease_held(self) -> bool:
        now = self.now_s()
        return now - self.heartbeats.quorum_contact_at(now) < self._read_lease_s

    def _judge_disk(self) -> None:
        age_s = self.writer.write_age_s()
        self.core.barred = age_s > self.contact_window_s
        if not self.core.barred or self.core.role is not Role.LEADER:
            return
        lag_ms, half_ms = self.heartbeats.disk_lag_ms, age_s * 500
        connected = self.world.network.connected
        voters = self.core.conf_state.voters
        healthy = [node for node in voters if lag_ms.get(node, half_ms) < half_ms and connected(self.id, node)]
        if healthy:
            progress = self.core.status().progress
            self.core.transfer_leader(max(healthy, key=lambda node: progress[node].match_index))

    def _role_changed(self) -> None:
        core = self.core
        now = self.now_s()
        if core.role is not self._role:
            self.world.note(self.id, "role", f"{self._role.value} to {core.role.value} in term {core.term}")
            if core.role is Role.LEADER:
                self.clock.lead_from(self._newest_stamp)
                core.stamp = self.clock.now_ms()
                self._leader_started_index = self.log.last_index
                self._leader_since = now
                self.heartbeats.lead(now)
                self.world.led(self)
            elif self._role is Role.LEADER:
                self.heartbeats.follow()
                self.proposals.forget_downs()
            self._role = core.role
        if core.leader_id != self._leader:
            self._leader = core.leader_id
            if self._leader != NO_NODE:
                self.heartbeats.leader_contact_at = now
                self.proposals.retry_all()
