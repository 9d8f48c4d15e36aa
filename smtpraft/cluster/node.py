"""One running node: the driver between the consensus core, the disk, the network and a state machine. It knows no mail.

Everything happens on one event loop, in *turns*: whatever arrived in one pass of the loop (frames, proposals, finished
writes, a tick) becomes one proposal batch, one disk write, one frame a peer. Three things run beside it, each on a thread
of its own: the WAL (write and sync), the state machine (apply), reads from disk. A turn never waits for any of them.

A part that fails takes the node down (`wait_failed`): a node that stops loses nothing.
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
from pathlib import Path
from typing import Any, Final

from smtpraft import fastlog
from smtpraft.cluster import envelope, wire
from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.applier import Applier, Batch, Result
from smtpraft.cluster.clock import StampClock
from smtpraft.cluster.compaction import Compaction
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.machine import StateMachine
from smtpraft.cluster.outbound import Outbound
from smtpraft.cluster.proposals import Proposals
from smtpraft.cluster.reads import Reads
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.status import NodeStatus, PeerStatus
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import Config as CoreConfig
from smtpraft.consensus import (
    ConfState,
    InvalidMessage,
    LocalMessage,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Role,
)
from smtpraft.consensus import HardState as CoreHardState
from smtpraft.consensus.messages import APPEND_THREAD, APPLY_THREAD
from smtpraft.errors import Fatal, NotReplicated, SmtpRaftError, Stopped
from smtpraft.storage import HardState, Identity, RealDisk, Wal, WalWriter
from smtpraft.types import NO_NODE, NodeId, node_order

log = logging.getLogger(__name__)

SWEEP_S: Final = 0.1  # how often deadlines and silence are looked at
TRANSFER_S: Final = 1.0
LEAVE_S: Final = 2.0
READ_THREADS: Final = 2


class NodeStopped(Stopped):
    """This node is stopping, or has not started."""


class Node:
    """A member of a cluster that replicates `machine`. Use from one event loop.

    `start`, then `replicate` and `read_index` as often as you like, then `stop`. If `wait_failed` returns, the node has
    stopped by itself and says why.
    """

    def __init__(self, options: NodeOptions, machine: StateMachine) -> None:
        self.options = options
        self.id = options.node_id
        self._machine = machine
        self._voters = tuple(sorted([options.node_id, *(peer.id for peer in options.peers)], key=node_order))
        self._random = random.Random(secrets.randbits(64))
        self._clock = StampClock()
        self._proposals = Proposals(self.id, max_pending_bytes=options.max_pending_bytes)
        self._reads = Reads(secrets.token_bytes(8))
        self._forwarded: list[tuple[int, bytes]] = []
        self._started = False
        self._stopping = False
        self._turning = False
        self._turn_wanted = False
        self._writes_out = 0
        self._applying: deque[Message] = deque()
        self._durable_index = 0
        self._role = Role.FOLLOWER
        self._leader = NO_NODE
        self._newest_stamp = 0
        self._tick_handle: asyncio.TimerHandle | None = None
        self._next_tick = 0.0
        self._next_sweep = 0.0
        self._leader_started_index = 0
        self._leader_since = 0.0
        self._contact_window_s = 2 * options.election_timeout_ms / 1000
        self.elections_started = 0
        self.leader_changes = 0
        self.proposals_committed = 0
        self.loop_lag_s = 0.0

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the last run left, open the port, take part.

        Raises:
            SmtpRaftError, OSError, ValueError: the data directory, the port or the state machine cannot be used; each
                says what to do.
        """
        options = self.options
        loop = self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = loop.create_future()
        data_dir = Path(options.data_dir)
        data_dir.mkdir(parents=True, exist_ok=True)
        self._identity = Identity.open(
            str(data_dir), cluster_id=options.cluster_id, node_id=self.id, election=options.election
        )
        self._log = fastlog.Log()
        disk = RealDisk()
        self._wal, recovery = await asyncio.to_thread(
            Wal.open,
            disk,
            str(data_dir / "wal"),
            cluster_id=options.cluster_id,
            node_id=self.id,
            log=self._log,
            segment_bytes=options.segment_bytes,
            cache_bytes=options.log_cache_bytes,
        )
        self._durable_index = self._log.last_index
        self._reader = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="smtpraft-read")
        self._writer = WalWriter(self._wal, deliver=loop.call_soon_threadsafe, on_failure=self._failed_elsewhere)
        self._applier = Applier(
            self._machine,
            self.id,
            deliver=loop.call_soon_threadsafe,
            on_result=self._applied,
            on_failure=self._fail,
            read_entries=self.read_entries_blocking,
        )
        applied, sessions = self._applier.open()
        if not self._log.prev_index <= applied <= self._log.last_index:
            raise Fatal(
                f"the state machine has applied index {applied}, the log holds {self._log.first_index} to "
                f"{self._log.last_index}: they are not of one run. Restore both, or start this node with an empty directory"
            )
        stored = recovery.hard_state
        commit = min(max(stored.commit, applied), self._log.last_index)
        self._heartbeats = Heartbeats(
            self.id,
            self._voters,
            lease_s=options.lease_ms / 1000,
            grant_window_s=self._contact_window_s,
            digest_at=self._machine.digest_at,
        )
        self._heartbeats.sessions = sessions
        self._compaction = Compaction(self._log, self._wal, self._machine, self._applier, self._reader, options)
        self._core = RawNode(
            CoreConfig(
                id=self.id,
                election_ticks=options.election_ticks,
                heartbeat_ticks=options.heartbeat_ticks,
                max_append_bytes=options.max_append_bytes,
                max_inflight_bytes=options.max_inflight_bytes,
                max_uncommitted_bytes=options.max_pending_bytes,
                election=options.election,
            ),
            self._log,
            ConfState(voters=self._voters),
            CoreHardState(stored.term, NodeId(stored.vote), commit),
            applied,
            self._random,
        )
        self._transport = Transport(
            node_id=self.id,
            cluster_id=options.cluster_id,
            secret=options.secret,
            listen=options.listen,
            peers=options.peers,
            receiver=self,
            incarnation=secrets.randbits(63),
            on_failure=self._fail,
        )
        self._outbound = Outbound(
            self._transport,
            self._log,
            read_entries=self.read_entries_blocking,
            reader=self._reader,
            is_current=lambda term: self._core.term == term and self._core.role is Role.LEADER,
            unreachable=self._unreachable,
        )
        if options.peers:
            await self._transport.start()
        self._proposals.open_wanted()
        self._started = True
        self._next_tick = loop.time() + options.tick_ms / 1000
        self._tick_handle = loop.call_at(self._next_tick, self._tick)
        if not options.peers:
            self._guard(self._core.campaign)  # alone: nobody to wait for
        log.info(
            "started node=%s cluster=%s term=%d last_index=%d applied_index=%d torn_bytes=%d",
            self.id,
            options.cluster_id.hex(),
            self._core.term,
            self._log.last_index,
            applied,
            recovery.torn_bytes,
        )

    async def stop(self) -> None:
        """Leave in good order: end this node's session so that others take over at once, hand leadership on, close.

        Bounded: about 3 s when nobody answers. Safe to call twice, and after a failure.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._started and self.options.peers and not self._failed.done():
            await self._leave()
        self._started = False
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._proposals.close()
        self._reads.close(NodeStopped("the node is stopping"))
        if hasattr(self, "_outbound"):
            self._outbound.close()
            await self._transport.close()
        if hasattr(self, "_applier"):
            await asyncio.to_thread(self._applier.close)
        if hasattr(self, "_writer"):
            await asyncio.to_thread(self._writer.close)
            self._reader.shutdown(wait=True, cancel_futures=True)
        if hasattr(self, "_wal"):
            await asyncio.to_thread(self._wal.close)
        if hasattr(self, "_identity"):
            self._identity.close()
        log.info("stopped node=%s", self.id)

    async def wait_failed(self) -> BaseException:
        """Wait until this node can go on no longer; return why."""
        return await asyncio.shield(self._failed)

    # ---- the library's face -----------------------------------------------------------------------------------------

    async def replicate(self, command: bytes, *, deadline_s: float = 10.0, give_up_after_s: float = 5.0) -> object:
        """Put `command` to the log; return what the state machine answered to it on this node.

        It is on the disks of a majority by then. Cancelling the caller does not undo the proposal. After `deadline_s` it
        is withdrawn; after `give_up_after_s` more nobody can say.

        Raises:
            NotReplicated: it is not applied and never will be.
            OutcomeUnknown: it may be applied or not.
            Stopped: nothing was handed to the cluster.
            ValueError: it is larger than an entry may be.
        """
        self._check_running()
        if len(command) > self.options.max_command_bytes:
            raise ValueError(f"a command of {len(command)} bytes; at most {self.options.max_command_bytes} fit an entry")
        deadline = self._loop.time() + deadline_s
        future = self._proposals.submit(command, self._loop, deadline, give_up_after_s)
        self._want_turn()
        return await asyncio.shield(future)

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        """Return once this node's state is at least as new as every write that had finished when this was called.

        Raises:
            NotReplicated: no majority answered in time; the state here may be old.
        """
        self._check_running()
        future = self._reads.ask(self._loop)
        self._want_turn()
        try:
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise NotReplicated("no majority confirmed the read in time") from None

    async def read_entry(self, index: int) -> bytes:
        """Return the command at `index` as the state machine was given it, from memory or disk, verified.

        Raises:
            Compacted: the log has forgotten it.
            Unavailable: the log does not reach so far, or no command stands there.
        """
        try:
            payload = self._log.entries(index, index)[0][4]
        except fastlog.NotCached:
            block = await self._loop.run_in_executor(self._reader, self.read_entries_blocking, index, index)
            payload = fastlog.decode_entries(block)[0][4]
        return self._command_of(index, payload)

    def read_entry_blocking(self, index: int) -> bytes:
        """As `read_entry`, for threads."""
        return self._command_of(index, fastlog.decode_entries(self.read_entries_blocking(index, index))[0][4])

    def read_entries_blocking(self, first: int, last: int) -> bytes:
        """Return the encoded entries `first` to `last`; for threads, never for the loop."""
        try:
            return b"".join(self._log.spans(first, last))
        except fastlog.NotCached:
            return self._wal.read(first, last, self._log)

    def lease_valid(self, margin_s: float = 0.0) -> bool:
        """Return whether this node may work on what it owns for at least `margin_s` more seconds."""
        return self.lease_expires_in_s() > margin_s

    def lease_expires_in_s(self) -> float:
        """Return how long this node's lease lasts; 0 if it holds none."""
        if not self._started:
            return 0.0
        session = self._proposals.session
        now = self._loop.time()
        if self._core.role is Role.LEADER and self._heartbeats.granter is not None:
            self._heartbeats.holder.granted_by_quorum(self._heartbeats.quorum_contact_at(now), session)
        return self._heartbeats.holder.remaining_s(now, session)

    def has_quorum(self) -> bool:
        """Return whether a proposal made now would likely commit: there is a leader, and contact is recent."""
        if not self._started:
            return False
        now = self._loop.time()
        if self._core.role is Role.LEADER:
            return now - self._heartbeats.quorum_contact_at(now) <= self._contact_window_s
        return self._core.leader_id != NO_NODE and now - self._heartbeats.leader_contact_at <= self._contact_window_s

    async def wait_quorum(self, timeout_s: float) -> bool:
        """Wait until `has_quorum`, at most `timeout_s`; return whether it came."""
        deadline = self._loop.time() + timeout_s
        while not self.has_quorum():
            if self._loop.time() >= deadline or self._stopping:
                return False
            await asyncio.sleep(self.options.tick_ms / 1000)
        return True

    async def transfer_leadership(self, to: NodeId | None = None) -> NodeId | None:
        """Hand leadership to `to`, or to the most caught-up reachable peer; return whom, None if nobody took it.

        Bounded by `TRANSFER_S`; proposals made meanwhile wait and are not lost.

        Raises:
            SmtpRaftError: this node does not lead, or `to` is no other reachable member.
        """
        if self._core.role is not Role.LEADER:
            leader = self._core.leader_id or "nobody"
            raise SmtpRaftError(f"node {self.id} does not lead, {leader} does; ask there")
        progress = self._core.status().progress
        matched = {
            peer.id: progress[peer.id].match_index
            for peer in self.options.peers
            if peer.id in progress and self._transport.connected(peer.id)
        }
        if to is None:
            to = max(matched, key=lambda node: matched[node], default=None)
        elif to not in matched:
            raise SmtpRaftError(f"{to} is no other reachable member of this cluster")
        if to is None:
            return None
        target = to
        self._guard(lambda: self._core.transfer_leader(target))
        await self._wait_until(lambda: self._core.role is not Role.LEADER, TRANSFER_S)
        return target if self._core.role is not Role.LEADER else None

    @property
    def leader_id(self) -> NodeId:
        """The leader as this node knows it, `NO_NODE` if none."""
        return self._core.leader_id

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""
        return self._core.role is Role.LEADER

    @property
    def applied_index(self) -> int:
        """The last index that this node's state machine has applied."""
        return self._applier.applied_index

    @property
    def writer_stats(self) -> Any:
        """The WAL writer's counters."""
        return self._writer.stats

    def status(self) -> NodeStatus:
        """Return the facts for operators."""
        core = self._core
        progress = core.status().progress
        leading = core.role is Role.LEADER
        beats = self._heartbeats
        peers = []
        for peer in self.options.peers:
            row = progress.get(peer.id) if leading else None
            round_trip_s = beats.round_trip_s.get(peer.id) if leading else None
            peers.append(
                PeerStatus(
                    id=peer.id,
                    address=f"{peer.host}:{peer.port}",
                    reachable=self._transport.connected(peer.id),
                    match_index=row.match_index if row else None,
                    next_index=row.next_index if row else None,
                    state=str(row.state.value) if row else None,
                    applied_index=beats.applied.get(peer.id) if leading else None,
                    round_trip_ms=round(round_trip_s * 1000, 3) if round_trip_s is not None else None,
                    disk_lag_ms=beats.disk_lag_ms.get(peer.id) if leading else None,
                )
            )
        expires_in_s = self.lease_expires_in_s()
        return NodeStatus(
            node_id=self.id,
            cluster_id=self.options.cluster_id.hex(),
            role=core.role.value,
            term=core.term,
            leader_id=core.leader_id or None,
            last_index=self._log.last_index,
            commit_index=core.commit_index,
            applied_index=self._applier.applied_index,
            durable_index=self._durable_index,
            first_index=self._log.first_index,
            voters=self._voters,
            peers=tuple(peers),
            lease_held=expires_in_s > 0,
            lease_expires_in_ms=int(expires_in_s * 1000),
            has_quorum=self.has_quorum(),
            nodes_up=tuple(sorted(beats.sessions, key=node_order)),
            proposals_pending=len(self._proposals),
            proposals_pending_bytes=self._proposals.pending_bytes,
            election=self.options.election,
            elections_started=self.elections_started,
            leader_changes=self.leader_changes,
            log_bytes=self._log.size_bytes(self._log.first_index, self._log.last_index) if self._log_len() else 0,
            log_cached_bytes=self._log.cached_bytes,
        )

    # ---- what the transport tells (Receiver) ------------------------------------------------------------------------

    def frames_received(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        """Take all frames of one read from `peer`.

        Raises:
            CorruptFrame, CorruptEntry: what came cannot be what a node sent; the transport ends that connection.
        """
        if not self._started:
            return
        try:
            self._receive(peer, frames)
        except (fastlog.CorruptFrame, fastlog.CorruptEntry):
            raise
        except Exception as error:
            self._fail(error)
        self._want_turn()

    def peer_connected(self, peer: NodeId) -> None:
        """`peer` can be reached again."""
        log.info("connected peer=%s", peer)
        if self._started and peer == self._core.leader_id:
            self._guard(self._proposals.retry_all)

    def peer_lost(self, peer: NodeId, reset: bool) -> None:
        """`peer` cannot be reached."""
        log.info("lost peer=%s reset=%s", peer, reset)
        if self._started:
            self._guard(lambda: self._core.report_unreachable(peer))

    # ---- one turn ---------------------------------------------------------------------------------------------------

    def _guard(self, act: Callable[[], object]) -> None:
        """Do `act`, then want a turn. What it raises is a broken invariant: the node stops."""
        try:
            act()
        except Exception as error:
            self._fail(error)
        self._want_turn()

    def _want_turn(self) -> None:
        if not self._turn_wanted and not self._turning and self._started:
            self._turn_wanted = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_wanted = False
        if not self._started or self._failed.done():
            return
        self._turning = True
        try:
            self._core.stamp = self._clock.now_ms()
            self._propose()
            self._ask_reads()
            while self._core.has_ready():
                output = self._core.ready()
                if output.soft_state is not None:
                    self._role_changed()
                    self._propose()
                for state in output.read_states:
                    self._reads.confirmed(state, self._applier.applied_index)
                for message in output.messages:
                    if message.to == APPEND_THREAD:
                        self._store(message, output.must_sync)
                    elif message.to == APPLY_THREAD:
                        self._apply(message)
                    else:
                        self._send(message)
            self._log.evict(self.options.log_cache_bytes, self._durable_index + 1)
        except Exception as error:
            self._fail(error)
        finally:
            self._turning = False

    def _propose(self) -> None:
        """Hand proposals to the leader, be it this node: all that gathered in one batch."""
        core = self._core
        now = self._loop.time()
        if core.role is Role.LEADER:
            # Out of touch with a majority, hold what is ours back: what was never appended can be refused for certain.
            fresh = now - max(self._heartbeats.quorum_contact_at(now), self._leader_since) <= self._contact_window_s
            payloads = self._proposals.take(now) if fresh else []
            if self._forwarded:
                payloads.extend(payload for _, payload in self._forwarded)
                self._forwarded.clear()
            if payloads:
                try:
                    core.propose(payloads)
                except ProposalDropped as error:
                    log.debug("dropped proposals=%d reason=%s", len(payloads), error)  # their senders repeat them
            return
        self._forwarded.clear()  # their senders repeat them, to whoever leads then
        leader = core.leader_id
        while leader != NO_NODE and self._proposals.has_work(now) and self._transport.connected(leader):
            payloads = self._proposals.take(now)
            if not payloads:
                return
            batch = tuple((fastlog.ENTRY_NORMAL, payload) for payload in payloads)
            self._send(Message(MessageType.PROP, to=leader, sender=self.id, payloads=batch))

    def _ask_reads(self) -> None:
        now = self._loop.time()
        if self._reads.has_work(now):
            for context in self._reads.contexts(now):
                with contextlib.suppress(ProposalDropped):  # no leader now: the round is repeated
                    self._core.read_index(context)

    def _store(self, message: Message, must_sync: bool) -> None:
        """Hand a STORAGE_APPEND to the WAL thread. Its responses leave when it, and all before it, is durable.

        A commit index that moved alone is not worth a write: it is learnt again from the leader, and from the machine.
        """
        if not must_sync:
            if not self._writes_out:
                self._stored(message)
                return
            self._writes_out += 1
            self._writer.submit([], 0, 0, None, False, lambda: self._write_done(message))
            return
        entries = message.entries
        spans = self._log.spans(entries.first, entries.last) if entries else []
        if entries:
            self._durable_index = min(self._durable_index, entries.first - 1)  # a conflicting suffix is being replaced
        hard_state = HardState(self._core.term, self._core.vote, self._core.commit_index)
        self._writes_out += 1
        self._writer.submit(
            spans, entries.first, entries.last, hard_state, True, lambda: self._write_done(message)
        )

    def _write_done(self, message: Message) -> None:
        self._writes_out -= 1
        if self._started and not self._failed.done():
            self._guard(lambda: self._stored(message))

    def _stored(self, message: Message) -> None:
        if message.entries:
            self._durable_index = message.entries.last
        for response in message.responses:
            if response.to == self.id:
                self._core.step(response)
            else:
                self._send(response)

    def _apply(self, message: Message) -> None:
        """Hand committed entries to the apply thread."""
        first, last = message.entries.first, message.entries.last
        try:
            spans = self._log.spans(first, last)
        except fastlog.NotCached:
            spans = None
        self._applying.append(message)
        self._applier.submit(Batch(first, last, self._log.size_bytes(first, last), spans))

    def _applied(self, result: Result) -> None:
        """The machine has applied some batches: wake who waited for them."""
        if not self._started:
            return
        self._newest_stamp = max(self._newest_stamp, result.stamp)
        self._heartbeats.digest = result.digest
        self.proposals_committed += len(result.mine)
        if result.opened is not None:
            self._proposals.session_opened(*result.opened)
        for session, seq, answer in result.mine:
            self._proposals.resolved(session, seq, answer)
        for session, seq in result.cancelled:
            self._proposals.cancelled(session, seq)
        if result.nodes_changed:
            self._heartbeats.sessions = result.open_sessions
            self._proposals.sessions_changed(result.open_sessions)
        self._reads.applied(result.last)
        self._guard(lambda: self._applied_core(result.batches))

    def _applied_core(self, batches: int) -> None:
        for _ in range(batches):
            for response in self._applying.popleft().responses:
                self._core.step(response)
        self._compaction.consider(self._retain_index(), self._failed_elsewhere)

    # ---- in and out -------------------------------------------------------------------------------------------------

    def _receive(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        for kind, head, tail in frames:
            if kind == fastlog.FRAME_HEARTBEAT:
                message, accepted = self._heartbeats.decode(peer, head)
                self._step(message)
                if self._core.leader_id == peer and self._core.term == message.term:
                    accepted(self._loop.time())
            elif kind == fastlog.FRAME_HEARTBEAT_RESPONSE:
                term = self._core.term if self._core.role is Role.LEADER else 0
                self._step(self._heartbeats.decode_response(peer, head, term, self._loop.time()))
            else:
                message = wire.decode_message(kind, head, tail, sender=peer, to=self.id)
                if message.type is MessageType.PROP:
                    self._forwarded.extend(message.payloads)
                    continue
                self._step(message)
                if message.type is MessageType.APP and self._core.leader_id == peer:
                    self._heartbeats.leader_contact_at = self._loop.time()

    def _step(self, message: Message) -> None:
        try:
            self._core.step(message)
        except ProposalDropped:
            pass
        except (PeerNotFound, LocalMessage, InvalidMessage) as error:
            log.warning("refused message=%s peer=%s reason=%s", message.type.name, message.sender, error)

    def _send(self, message: Message) -> None:
        kind = message.type
        if kind is MessageType.HEARTBEAT:
            now = self._loop.time()
            may_grant = self._applier.applied_index >= self._leader_started_index
            frame = self._heartbeats.encode(message, now, self._retain_index(), may_grant)
            self._transport.send_control(message.to, frame)
        elif kind is MessageType.HEARTBEAT_RESP:
            frame = self._heartbeats.encode_response(
                message, self._loop.time(), self._applier.applied_index, int(self._writer.oldest_unsynced_age_s() * 1000)
            )
            self._transport.send_control(message.to, frame)
        else:
            self._outbound.send(message)

    def _unreachable(self, peer: NodeId) -> None:
        self._loop.call_soon(self._guard, lambda: self._core.report_unreachable(peer))

    # ---- time -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._started or self._failed.done():
            return
        now = self._loop.time()
        self.loop_lag_s = max(0.0, now - self._next_tick)
        tick_s = self.options.tick_ms / 1000
        # After a pause the missed ticks are not made up: a burst of them would look like a silent leader.
        self._next_tick = max(self._next_tick + tick_s, now + tick_s / 2)
        self._tick_handle = self._loop.call_at(self._next_tick, self._tick)
        self._guard(self._core.tick)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._proposals.sweep(now)
            self._guard(lambda: self._judge_leases(now))

    def _judge_leases(self, now: float) -> None:
        """As leader: whose lease has run out is declared down, through the log."""
        beats = self._heartbeats
        if beats.granter is None or self._applier.applied_index < self._leader_started_index or self._stopping:
            return
        for node, session in beats.granter.expired(beats.sessions, self.id, now):
            live = beats.granter.live(beats.sessions, self.id, now)
            self._proposals.propose_down(session, envelope.encode_down(session, live))
            log.debug("lease expired node=%s session=%d", node, session)

    def _role_changed(self) -> None:
        core = self._core
        now = self._loop.time()
        if core.role is not self._role:
            log.info("role=%s was=%s term=%d leader=%s", core.role.value, self._role.value, core.term, core.leader_id or "-")
            if core.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
                self.elections_started += core.role is Role.CANDIDATE
            if core.role is Role.LEADER:
                self._clock.lead_from(self._newest_stamp)
                core.stamp = self._clock.now_ms()
                self._leader_started_index = self._log.last_index
                self._leader_since = now
                self._heartbeats.lead(now)
            elif self._role is Role.LEADER:
                self._heartbeats.follow()
                self._proposals.forget_downs()
            self._role = core.role
        if core.leader_id != self._leader:
            self._leader = core.leader_id
            if self._leader != NO_NODE:
                self.leader_changes += 1
                log.info("leader=%s term=%d", self._leader, core.term)
                self._heartbeats.leader_contact_at = now
                self._proposals.retry_all()

    # ---- leaving and failing ----------------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """End this node's session so that its work moves now, not when its lease runs out; then hand leadership on."""
        session = self._proposals.session
        self._heartbeats.holder.give_up()
        self._proposals.close_wanted()
        if session:
            others = [node for node in self._heartbeats.sessions if node != self.id and self._transport.connected(node)]
            self._proposals.propose_down(session, envelope.encode_down(session, others))
            self._want_turn()
            await self._wait_until(lambda: self._proposals.session != session, LEAVE_S)
        if self._core.role is Role.LEADER:
            to = await self.transfer_leadership()
            if to is not None:
                log.info("handed leadership over to=%s", to)
            else:
                log.warning("nobody took leadership over; the others elect a leader by themselves")

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = self._loop.time() + timeout_s
        while not condition() and self._loop.time() < deadline and not self._failed.done():
            await asyncio.sleep(self.options.tick_ms / 1000)

    def _failed_elsewhere(self, error: BaseException) -> None:
        """As `_fail`, from any thread."""
        self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            log.error("failed node=%s reason=%s: %s", self.id, type(error).__name__, error, exc_info=error)
            self._failed.set_result(error)
            self._heartbeats.holder.give_up()
            self._proposals.close()
            self._reads.close(NodeStopped("the node has failed"))

    # ---- small things -----------------------------------------------------------------------------------------------

    def _retain_index(self) -> int:
        """Return the index up to which no node needs the log: as leader what all have, as follower what the leader says."""
        if not self.options.peers:
            return self._durable_index
        if self._core.role is not Role.LEADER:
            return min(self._heartbeats.retain_index, self._durable_index)
        progress = self._core.status().progress
        return min(row.match_index for row in progress.values())

    def _check_running(self) -> None:
        if not self._started or self._stopping or self._failed.done():
            raise NodeStopped("the node is not running")

    def _log_len(self) -> int:
        return self._log.last_index - self._log.prev_index

    @staticmethod
    def _command_of(index: int, payload: bytes) -> bytes:
        if not payload or payload[0] != envelope.COMMAND:
            raise fastlog.Unavailable(f"no command stands at index {index}")
        return payload[envelope.COMMAND_HEADER_BYTES :]
