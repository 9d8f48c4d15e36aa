"""The driver: carries inputs to the consensus core and its outputs to disk, network and state machine.

Everything happens on one event loop, in *turns*: whatever arrived in one pass of the loop (frames, proposals, finished
writes, a tick) becomes one proposal batch, one disk write, one frame a peer. Three things run beside it, each on a
thread of its own: the WAL (write and sync), the state machine (apply), reads from disk. A turn never waits for any of
them.

Times are `time.monotonic`, read when they are needed: a loop's own clock may stand still while callbacks run, and a
process that was stopped between two of them would still believe in its lease.

What fails here is a broken disk or a broken invariant: `failed` is set, and nothing is done any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster import envelope, retention, wire
from smtpraft.cluster.abstention import Abstention, open_machine, where_to_begin
from smtpraft.cluster.admission import first_members
from smtpraft.cluster.appends import Appends
from smtpraft.cluster.applier import Applier, Batch, Result
from smtpraft.cluster.clock import StampClock
from smtpraft.cluster.compaction import Compaction
from smtpraft.cluster.disk_health import DiskHealth
from smtpraft.cluster.enrolment import Enrolment
from smtpraft.cluster.foresight import Foresight
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.machine import StateDamaged, StateMachine
from smtpraft.cluster.outbound import Outbound
from smtpraft.cluster.proposals import Proposals
from smtpraft.cluster.proposing import Proposing
from smtpraft.cluster.reads import Reads
from smtpraft.cluster.requests import Handler
from smtpraft.cluster.scrubbing import Scrubbing
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.snapshot_files import SnapshotFiles
from smtpraft.cluster.snapshot_format import SNAPSHOT_FRAMES
from smtpraft.cluster.snapshots import Snapshots
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import (
    InvalidMessage,
    LocalMessage,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Role,
)
from smtpraft.consensus.messages import APPEND_THREAD, APPLY_THREAD
from smtpraft.errors import Removed, Stopped
from smtpraft.storage import HardState, Identity, Standing, Wal, begin_writing
from smtpraft.types import NO_NODE, NodeId

log = logging.getLogger(__name__)

JUDGE_S: Final = 0.02  # how often the disk is looked at: several times in an election timeout
SWEEP_S: Final = 0.1  # how often deadlines and silence are looked at
READ_THREADS: Final = 2


class Driver:
    """One node's moving parts. Made from what recovery found; `start` begins, `close` ends."""

    def __init__(
        self,
        options: NodeOptions,
        machine: StateMachine,
        entries: fastlog.Log,
        wal: Wal,
        stored: HardState,
        identity: Identity,
        carry_out: Handler,
        failed: asyncio.Future[BaseException],
        snapshot_files: SnapshotFiles,
    ) -> None:
        """Open the state machine and put the parts together.

        Raises:
            Fatal: the state machine and the log are not of one run.
            ValueError: the machine's notes cannot be read by this release.
        """
        self.options = options
        self.id = options.node_id
        self.failed = failed
        self.entries = entries
        self.wal = wal
        self.elections_started = self.leader_changes = 0
        self.loop_lag_s = 0.0
        self.proposals = Proposals(self.id, max_pending_bytes=options.max_pending_bytes)
        self._foresight = Foresight(self.id, self.proposals)
        self.reads = Reads(secrets.token_bytes(8))
        self._loop = asyncio.get_running_loop()
        self._running = self._turning = self._turn_wanted = False
        self._clock = StampClock()
        self._turned: asyncio.Future[None] | None = None
        self._applying: deque[Message] = deque()
        self._role, self._leader, self._term = Role.FOLLOWER, NO_NODE, 0
        self._tick_handle: asyncio.TimerHandle | None = None
        self._next_tick = self._next_judgement = self._next_sweep = 0.0
        self._leader_started_index = self._newest_stamp = 0
        self.leader_since = self.stand_aside_until = 0.0
        self._read_lease_s = options.read_lease_ms / 1000
        self.contact_window_s = 2 * options.election_timeout_ms / 1000

        deliver = self._loop.call_soon_threadsafe
        self.reader = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="smtpraft-read")
        self.writer = begin_writing(wal, self._loop, on_failure=self.fail)
        self.applier = Applier(
            machine,
            self.id,
            deliver=deliver,
            on_result=self._applied,
            on_failure=self.fail,
            read_entries=self.read_entries_blocking,
        )
        alone = not (options.has_company or identity.facts.company)
        sessions = open_machine(self.applier, entries, alone=alone)
        hard_state = where_to_begin(entries, wal, stored, self.applier, alone=alone)
        conf_state, members = first_members(options, identity.facts, self.applier.members)
        self.heartbeats = Heartbeats(
            self.id,
            conf_state,
            lease_s=options.lease_ms / 1000,
            grant_window_s=self.contact_window_s,
            digest_at=machine.digest_at,
        )
        self.heartbeats.sessions = sessions
        self.snapshots = Snapshots(snapshot_files, machine, self.applier, entries, wal, self.writer, options, self)
        self.core = RawNode(
            options.core_config,
            entries,
            conf_state,
            hard_state,
            self.applier.applied_index,
            random.Random(secrets.randbits(64)),
            self.snapshots.provide,
            abstains_through=wal.abstain_term,
        )
        self.core.lease_held = self._read_lease_held
        self.disk = DiskHealth(
            options, self.writer, self.applier, self.core, self.heartbeats, self.reader, self._connected
        )
        self._scrubbing = Scrubbing(wal, entries, self.reader, options.scrub_bytes_per_s, self.damaged)
        self._abstention = Abstention(wal, entries, self.core, self.reader, self._failed_elsewhere)
        self._appends = Appends(self.core, entries)
        self._compaction = Compaction(
            entries, wal, machine, self.applier, self.reader, options, self.snapshots, forget=self.core.compact
        )
        self.transport = Transport(
            node_id=self.id,
            cluster_id=options.cluster_id,
            secret=options.secret,
            listen=options.listen,
            advertise=options.advertise,
            receiver=self,
            incarnation=secrets.randbits(63),
            directory=identity.facts.incarnation,
            takes_part=identity.facts.standing is not Standing.FRESH,
            on_failure=self.fail,
        )
        self.enrolment = Enrolment(
            options,
            identity,
            members,
            self.applier.members,
            core=self.core,
            entries=entries,
            heartbeats=self.heartbeats,
            transport=self.transport,
            carry_out=carry_out,
            on_joined=self.proposals.open_wanted,
            on_failure=self.fail,
        )
        self._outbound = Outbound(
            self.transport,
            entries,
            read_entries=self.read_entries_blocking,
            reader=self.reader,
            is_current=lambda term: self.core.term == term and self.core.role is Role.LEADER,
            may_wait=self.core.commit_may_wait,
            unreachable=self._unreachable,
            on_failure=self.fail,
        )
        self._proposing = Proposing(
            self.core, self.proposals, self.heartbeats, self._outbound, self._connected, self.contact_window_s
        )

    async def start(self) -> None:
        """Open the port, start the clock, ask for a session."""
        self.snapshots.start(self.core, self.transport)
        if self.enrolment.roster.has_others or self.options.join or self.options.secret is not None:
            await self.transport.start()
        self._running = True
        self._next_tick = monotonic() + self.options.tick_ms / 1000
        self._tick_handle = self._loop.call_later(self.options.tick_ms / 1000, self._tick)
        self.guard(self.enrolment.start)

    async def close(self) -> None:
        """Stop everything; whoever waits is told. What is being written or applied is finished."""
        self._running = False
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._nobody_waits()
        self._tell_turned()
        self._outbound.close()
        await self.snapshots.close()
        self.enrolment.requests.close()
        await self.transport.close()
        await asyncio.to_thread(self.applier.close)
        await asyncio.to_thread(self.writer.close)
        self.reader.shutdown(wait=True, cancel_futures=True)

    @property
    def running(self) -> bool:
        """Do turns come?"""
        return self._running and not self.failed.done()

    def next_turn(self) -> asyncio.Future[None]:
        """Return a future that is done after the next turn; every tick brings one while `running`."""
        if self._turned is None:
            self._turned = self._loop.create_future()
        return self._turned

    def _tell_turned(self) -> None:
        if self._turned is not None:
            self._turned.set_result(None)
            self._turned = None

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def durable_index(self) -> int:
        """The last index whose entry is on this node's disk."""
        return self._appends.durable_index

    def read_entries_blocking(self, first: int, last: int) -> bytes:
        """Return the encoded entries `first` to `last` from disk; for threads, never for the loop.

        They must be committed, or their terms be compared with the log's: it is for the loop, no thread may look.
        """
        return self.wal.read(first, last, None)

    def lease_expires_in_s(self) -> float:
        """Return how long this node's lease lasts; 0 if it holds none."""
        session = self.proposals.session
        now = monotonic()
        # As for the others: until it knows what its predecessors left, a leader knows of no session, not of its own
        # either. The end of that one may be committed, even applied on its thread, and its work in others' hands.
        up_to_date = self.core.applied_index >= self._leader_started_index
        if self._role is Role.LEADER and self.core.role is Role.LEADER and up_to_date:
            self.heartbeats.holder.granted_by_quorum(self.heartbeats.quorum_contact_at(now), session)
        return self.heartbeats.holder.remaining_s(now, session)

    def has_quorum(self) -> bool:
        """Return whether a proposal made now would likely commit: there is a leader, and contact is recent."""
        now = monotonic()
        if self.core.role is Role.LEADER:
            return now - self.heartbeats.quorum_contact_at(now) <= self.contact_window_s
        return self.core.leader_id != NO_NODE and now - self.heartbeats.leader_contact_at <= self.contact_window_s

    def _read_lease_held(self) -> bool:
        """As leader: has a majority promised lately to vote for nobody else? By the clock of this moment."""
        now = monotonic()
        return now - self.heartbeats.quorum_contact_at(now) < self._read_lease_s

    # ---- what the transport tells (Receiver) ------------------------------------------------------------------------

    def frames_received(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        """Take all frames of one read from `peer`.

        Raises:
            CorruptFrame, CorruptEntry: what came cannot be what a node sent; the transport ends that connection.
        """
        if not self._running:
            return
        try:
            self._receive(peer, frames)
        except (fastlog.CorruptFrame, fastlog.CorruptEntry):
            raise
        except Exception as error:
            self.fail(error)
        if self._proposing.has_forwarded or self.core.has_ready():
            self.want_turn()

    def peer_connected(self, peer: NodeId) -> None:
        """`peer` can be reached again."""
        log.info("connected peer=%s", peer)
        if self._running and peer == self.core.leader_id:
            self.guard(self.proposals.retry_all)

    def peer_lost(self, peer: NodeId, reset: bool) -> None:
        """`peer` cannot be reached."""
        log.info("lost peer=%s reset=%s", peer, reset)
        self.enrolment.lost(peer)
        if self._running:
            self.guard(lambda: self.core.report_unreachable(peer))

    # ---- one turn ---------------------------------------------------------------------------------------------------

    def guard(self, act: Callable[[], object]) -> None:
        """Do `act`, then want a turn. What it raises is a broken invariant: the node stops."""
        try:
            act()
        except Exception as error:
            self.fail(error)
        self.want_turn()

    def _take_in(self, act: Callable[[], object]) -> None:
        """As `guard`, but want a turn only if there is something for one: most answers change nothing."""
        try:
            act()
        except Exception as error:
            self.fail(error)
        if self.core.has_ready():
            self.want_turn()

    def want_turn(self) -> None:
        if not self._turn_wanted and not self._turning and self._running:
            self._turn_wanted = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_wanted = False
        if not self._running or self.failed.done():
            return
        self._turning = True
        try:
            self.core.stamp = self._clock.now_ms()
            self._proposing.turn(self.leader_since)
            self._ask_reads()
            while self.core.has_ready():
                output = self.core.ready()
                if output.soft_state is not None or self.core.term != self._term:
                    self._role_changed()
                    self._proposing.turn(self.leader_since)
                for state in output.read_states:
                    self.reads.confirmed(state, self.applier.applied_index)
                if self.reads.waiting:
                    self.applier.hurry()
                for message in sorted(output.messages, key=lambda one: one.to != APPEND_THREAD):  # disk first
                    if message.to == APPEND_THREAD:
                        self._store(message, output.must_sync)
                    elif message.to == APPLY_THREAD:
                        self._apply(message)
                    else:
                        self._send(message)
            self.entries.evict(self.options.log_cache_bytes, self.durable_index + 1)
        except Exception as error:
            self.fail(error)
        finally:
            self._turning = False
            self._tell_turned()

    def _ask_reads(self) -> None:
        if self.reads.has_some and self.reads.has_work(now := monotonic()):
            for context in self.reads.contexts(now):
                with contextlib.suppress(ProposalDropped):  # no leader now: the round is repeated
                    self.core.read_index(context)

    def _store(self, message: Message, must_sync: bool) -> None:
        """Hand a STORAGE_APPEND to the WAL thread. Its responses leave when it, and all before it, is durable."""
        if message.snapshot is not None:
            self.snapshots.install(message.snapshot)
            self._foresight.unseen(message.snapshot.index)
        write = self._appends.take(message, must_sync)
        if write is None:
            self._stored(message)
        else:
            self._appends.submit(write, self.writer.submit, lambda: self._write_done(message))

    def _write_done(self, message: Message) -> None:
        self._appends.written()
        if self._running and not self.failed.done():
            self._take_in(lambda: self._stored(message))

    def _stored(self, message: Message) -> None:
        for response in self._appends.finished(message):
            if response.to == self.id:
                self.core.step(response)
            else:
                self._send(response)

    def _apply(self, message: Message) -> None:
        """Hand committed entries to the apply thread."""
        first, last = message.entries.first, message.entries.last
        try:
            spans = self.entries.spans(first, last)
            urgent = self._foresight.committed(spans)
        except fastlog.NotCached:
            spans, urgent = None, True
            self._foresight.unseen(last)
        self._applying.append(message)
        urgent = urgent or self.reads.waiting or self.proposals.waiting or self._foresight.blind
        self.applier.submit(Batch(first, last, self.entries.size_bytes(first, last), spans), urgent=urgent)

    def _applied(self, result: Result) -> None:
        """The machine has applied some batches: wake who waited for them."""
        if self._running:
            self._take_in(lambda: self._take_result(result))

    def _take_result(self, result: Result) -> None:
        self._newest_stamp = max(self._newest_stamp, result.stamp)
        self.heartbeats.digest = result.digest
        if result.overtaken is not None:
            self.proposals.overtaken(*result.overtaken)
        # First what was said in the session that this node knew, then its end, then the next one: if a late repeat of
        # the same OPEN has begun that, nothing of the old one may be said again in it.
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
            self.enrolment.change(changed)
        self._foresight.applied(result.last)
        self.reads.applied(result.last)
        for _ in range(result.batches):
            for response in self._applying.popleft().responses:
                self.core.step(response)
        self._compaction.consider(self._retain_index(), self._failed_elsewhere)

    # ---- in and out -------------------------------------------------------------------------------------------------

    def _receive(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        for kind, head, tail in frames:
            if not self.enrolment.receive(peer, kind, head):
                continue  # no message of Raft, or this node is nobody yet: it has no vote, and nothing to answer
            if kind == fastlog.FRAME_HEARTBEAT:
                message, accepted = self.heartbeats.decode(peer, head)
                self.step(message)
                if self.core.leader_id == peer and self.core.term == message.term:
                    accepted(monotonic())
            elif kind == fastlog.FRAME_HEARTBEAT_RESPONSE:
                term = self.core.term if self.core.role is Role.LEADER else 0
                self.step(self.heartbeats.decode_response(peer, head, term, monotonic()))
            elif kind in SNAPSHOT_FRAMES:
                self.snapshots.received(peer, kind, head, tail)
            else:
                message = wire.decode_message(kind, head, tail, sender=peer, to=self.id)
                if message.type is MessageType.PROP:
                    self._proposing.forwarded(peer, message.payloads)
                    continue
                if message.type is MessageType.READ_INDEX:
                    self._outbound.hurry(peer, self.core.commit_index)
                self.step(message)
                if message.type is MessageType.APP and self.core.leader_id == peer:
                    self.heartbeats.leader_contact_at = monotonic()

    def step(self, message: Message) -> None:
        """Give the core what a peer sent."""
        try:
            self.core.step(message)
        except ProposalDropped:
            pass
        except (PeerNotFound, LocalMessage, InvalidMessage) as error:
            log.warning("refused message=%s peer=%s reason=%s", message.type.name, message.sender, error)

    def _send(self, message: Message) -> None:
        kind = message.type
        if kind is MessageType.HEARTBEAT:
            now = monotonic()
            may_grant = self.core.applied_index >= self._leader_started_index
            frame = self.heartbeats.encode(message, now, self._retain_index(), may_grant)
            self.heartbeats.unsent += not self.transport.send_control(message.to, frame)
        elif kind is MessageType.HEARTBEAT_RESP:
            frame = self.heartbeats.encode_response(
                message, monotonic(), self.applier.applied_index, self.disk.report()
            )
            self.transport.send_control(message.to, frame)
        elif kind is MessageType.SNAP:
            self.snapshots.send(message)
        else:
            self._outbound.send(message)

    def _connected(self, peer: NodeId) -> bool:
        return self.transport.connected(peer)

    def _unreachable(self, peer: NodeId) -> None:
        self._loop.call_soon(self.guard, lambda: self.core.report_unreachable(peer))

    # ---- time -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._running or self.failed.done():
            return
        now = monotonic()
        self.loop_lag_s = max(0.0, now - self._next_tick)
        tick_s = self.options.tick_ms / 1000
        # After a pause the missed ticks are not made up: a burst of them would look like a silent leader.
        self._next_tick = max(self._next_tick + tick_s, now + tick_s / 2)
        self._tick_handle = self._loop.call_later(self._next_tick - now, self._tick)
        admission = self.enrolment.admission
        self._take_in(self.core.tick if admission.taking_part else admission.tick)
        if self._turned is not None or self.reads.has_work(now) or self._proposing.has_some:
            self.want_turn()
        self.applier.hurry_old(now)
        if now >= self._next_judgement:
            self._next_judgement = now + JUDGE_S
            self._take_in(lambda: self.disk.judge(now, stand_aside=now < self.stand_aside_until))
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self.proposals.sweep(now)
            self.guard(lambda: self._judge_leases(now))
            self.snapshots.sweep(now)
            self.guard(lambda: self._abstention.watch(self.durable_index))
            self.guard(lambda: self._scrubbing.sweep(now, min(self.durable_index, self.core.commit_index)))
            self.guard(lambda: self.enrolment.sweep(now))

    def _judge_leases(self, now: float) -> None:
        """As leader: whose lease has run out is declared down, through the log."""
        beats = self.heartbeats
        if beats.granter is None or self.core.applied_index < self._leader_started_index:
            return
        for node, session in beats.granter.expired(beats.sessions, self.id, now):
            live = beats.granter.live(beats.sessions, self.id, now)
            self.proposals.propose_down(session, envelope.encode_down(session, live), self.core.term)
            log.debug("lease expired node=%s session=%d", node, session)

    def _role_changed(self) -> None:
        core = self.core
        now = monotonic()
        if core.role is not self._role:
            log.info(
                "role=%s was=%s term=%d leader=%s", core.role.value, self._role.value, core.term, core.leader_id or "-"
            )
            if core.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
                self.elections_started += core.role is Role.CANDIDATE
            if core.role is Role.LEADER:
                self._clock.lead_from(self._newest_stamp)
                core.stamp = self._clock.now_ms()
                self._leader_started_index = self.entries.last_index
                self.leader_since = now
                self.heartbeats.lead(now)
            elif self._role is Role.LEADER:
                self.heartbeats.follow()
                self.proposals.forget_downs()
                self.snapshots.sender.stop()
            self._role = core.role
        if (core.leader_id, core.term) != (self._leader, self._term):  # another may have led in between, unseen
            self._leader, self._term = core.leader_id, core.term
            if self._leader != NO_NODE:
                self.leader_changes += 1
                log.info("leader=%s term=%d", self._leader, core.term)
                self.heartbeats.leader_contact_at = now
                self.proposals.retry_all()

    # ---- failing ----------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Stop taking part: a node that stops loses nothing, a node that goes on might."""
        if not self.failed.done():
            if not isinstance(error, Removed):
                log.error("failed node=%s reason=%s: %s", self.id, type(error).__name__, error, exc_info=error)
            if isinstance(error, StateDamaged) and self.enrolment.roster.has_others:
                error.note()  # the next start need not find it again
            self.failed.set_result(error)
            self.heartbeats.holder.give_up()
            self._nobody_waits()
            self._tell_turned()

    def damaged(self, error: BaseException) -> None:
        """From a thread. With other members this node stops, and heals at its next start; alone that would not help."""
        if self.enrolment.roster.has_others:
            self._failed_elsewhere(error)

    def _failed_elsewhere(self, error: BaseException) -> None:
        """As `fail`, from any thread."""
        self._loop.call_soon_threadsafe(self.fail, error)

    def _nobody_waits(self) -> None:
        self.proposals.close()
        self.reads.close(Stopped("the node is stopping"))

    # ---- small things -----------------------------------------------------------------------------------------------

    def _retain_index(self) -> int:
        """Return the index up to which no node that is there needs the log; a follower knows it from its leader."""
        if self.core.role is not Role.LEADER:
            return min(self.heartbeats.retain_index, self.durable_index)
        now = monotonic()
        last_words = self.heartbeats.contact_at if now - self.leader_since > retention.PRESENT_S else lambda _: now
        return retention.retain_index(
            self.core, last_words, now, self.entries.prev_index, self.snapshots.hold_index(now)
        )
