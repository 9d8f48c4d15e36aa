"""One member of a cluster: its life, and the face of the library. How it works inside: `driver`. It knows no mail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

from smtpraft import fastlog
from smtpraft._version import __version__
from smtpraft.cluster import envelope, snapshots
from smtpraft.cluster.asking import Answer, encode_answer
from smtpraft.cluster.changes import Changes, role_of
from smtpraft.cluster.commits import CommitTimes
from smtpraft.cluster.driver import Driver
from smtpraft.cluster.durations import Durations
from smtpraft.cluster.heartbeats import Heartbeats
from smtpraft.cluster.inquiry import Inquiries
from smtpraft.cluster.joining import with_cluster
from smtpraft.cluster.link import PeerStats
from smtpraft.cluster.machine import StateDamaged, StateMachine
from smtpraft.cluster.members import rows_of
from smtpraft.cluster.proposals import PATIENCE_S, Committed, Done, settle
from smtpraft.cluster.requests import Arguments
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.snapshot_files import SnapshotFiles
from smtpraft.cluster.snapshot_sender import Copy
from smtpraft.cluster.standing import check_standing
from smtpraft.cluster.status import NodeStatus, PeerStatus
from smtpraft.consensus import Role
from smtpraft.consensus.config import ELECTION_RAFT
from smtpraft.errors import NotReplicated, SmtpRaftError, Stopped
from smtpraft.storage import Identity, RealDisk, Wal, WalStats
from smtpraft.types import NodeId, node_order

log = logging.getLogger(__name__)

TRANSFER_S: Final = 1.0
LEAVE_S: Final = 2.0


class Node:
    """A member of a cluster that replicates `machine`. Use from one event loop.

    `start`, then `replicate` and `read_index` as often as you like, then `stop`. If `wait_failed` returns, the node has
    stopped by itself and says why.
    """

    def __init__(self, options: NodeOptions, machine: StateMachine) -> None:
        self.options = options
        self.id = options.node_id
        self._machine = machine
        self.commit_times = CommitTimes()
        """From a call of `replicate` to its answer."""
        self.inquiries = Inquiries(self.id)
        """What members answer each for itself."""
        self._stopping = False
        self._identity: Identity | None = None
        self._wal: Wal | None = None
        self._driver: Driver
        self._started = False
        self._seeking: asyncio.Task[None] | None = None
        self._started_at = monotonic()

    # ---- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Recover what the last run left, open the port, take part.

        Raises:
            SmtpRaftError, OSError, ValueError: the data directory, the port or the state machine cannot be used; each
                says what to do.
        """
        options = self.options
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[BaseException] = self._loop.create_future()
        options = await with_cluster(options)
        data_dir = Path(options.data_dir)
        await asyncio.to_thread(data_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._identity = Identity.open(
            str(data_dir),
            cluster_id=options.cluster_id,
            node_id=self.id,
            election=options.election,
            cluster_name=options.cluster_name,
        )
        # A directory keeps the id of its cluster, whatever the list of peers has become since.
        options = self.options = replace(options, cluster_id=self._identity.facts.cluster_id)
        files = SnapshotFiles(disk := RealDisk(), str(data_dir / "snapshot"))
        pending = await asyncio.to_thread(snapshots.begin_at, files, self._machine)
        entries = fastlog.Log()
        wal, recovery = await asyncio.to_thread(
            Wal.open,
            disk,
            str(data_dir / "wal"),
            cluster_id=options.cluster_id,
            node_id=self.id,
            log=entries,
            segment_bytes=options.segment_bytes,
            cache_bytes=options.log_cache_bytes,
            promises=str(data_dir),
            heal=(heals := (options.has_company or self._identity.facts.company) and options.election == ELECTION_RAFT),
        )
        self._wal = wal
        if recovery.damage is not None:
            log.error(
                "damaged log file=%s offset=%d reason=%r lost_from=%d: what comes before is kept, the rest put aside; "
                "this node abstains until it has it from the others",
                recovery.damage.file,
                recovery.damage.offset,
                recovery.damage.reason,
                recovery.last_index + 1,
            )
        check_standing(self._identity.facts, entries, options.data_dir)
        hard_state = recovery.hard_state
        if pending is not None:
            hard_state = await asyncio.to_thread(snapshots.complete, files, wal, entries, hard_state, pending, heals)
        self._driver = Driver(
            options, self._machine, entries, wal, hard_state, self._identity, self._carry_out, self._failed, files
        )
        self._driver.transport.describe = self._describe
        self._changes = Changes(self._driver, self._hand_over)
        self._started = True
        log.info(
            "started node=%s cluster=%s term=%d last_index=%d applied_index=%d torn_bytes=%d",
            self.id,
            options.cluster_id.hex(),
            self._driver.core.term,
            entries.last_index,
            self._driver.applier.applied_index,
            recovery.torn_bytes,
        )
        await self._driver.start()
        self._seeking = self._loop.create_task(self._changes.seek(), name="preference")
        self._seeking.add_done_callback(self._sought)

    def _sought(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._driver.fail(error)

    async def stop(self) -> None:
        """Leave in good order: end this node's session so that others take over at once, hand leadership on, close.

        Bounded: about 3 s when nobody answers. Safe to call twice, after a failure, and after a start that failed.
        """
        if self._stopping:
            return
        self._stopping = True
        if self._seeking is not None:
            self._seeking.cancel()
        if self._started:
            if self._driver.enrolment.roster.has_others and not self._failed.done():
                await self._leave()
            await self._driver.close()
        if self._wal is not None:
            await asyncio.to_thread(self._wal.close)
        if self._identity is not None:
            self._identity.close()
        log.info("stopped node=%s", self.id)

    async def wait_failed(self) -> BaseException:
        """Wait until this node can go on no longer; return why."""
        return await asyncio.shield(self._failed)

    # ---- the library's face -----------------------------------------------------------------------------------------

    async def replicate(
        self,
        command: bytes,
        *,
        deadline_s: float = 10.0,
        give_up_after_s: float = 5.0,
        foreseen: Callable[[int], object] | None = None,
        committed: Committed | None = None,
    ) -> object:
        """Put `command` to the log; return what the state machine answered to it on this node.

        It is on the disks of a majority by then. Cancelling the caller does not undo the proposal. After `deadline_s`
        it is withdrawn; after `give_up_after_s` more nobody can say.

        `foreseen` returns what the machine is certain to answer, given the index of the entry. Then this returns as
        soon as the command is committed and certain to be applied; should the machine answer something else, the node
        stops. Or `committed` is called then, and what the machine answers comes in its time, some 0.1 s later if its
        disk has room; it is not withdrawn any more.

        Raises:
            NotReplicated: it is not applied and never will be.
            OutcomeUnknown: it may be applied or not.
            Stopped: nothing was handed to the cluster.
            ValueError: it is larger than an entry may be.
        """
        future: asyncio.Future[object] = self._loop.create_future()
        self.propose(command, partial(settle, future), deadline_s, give_up_after_s, foreseen, committed)
        return await future  # cancelling it withdraws nothing: `Proposals` goes on, and answers nobody

    def propose(
        self,
        command: bytes,
        done: Done,
        deadline_s: float = 10.0,
        give_up_after_s: float = 5.0,
        foreseen: Callable[[int], object] | None = None,
        committed: Committed | None = None,
    ) -> None:
        """As `replicate`, for callbacks: no task, no future. `done` is called once, with the answer or the error.

        In the middle of the node's own work: both are quick, raise and propose nothing (`call_soon` what would).

        Raises:
            NotReplicated, Stopped, ValueError: as `replicate` would, at once; `done` is not called then.
        """
        self._check_running()
        bytes_max = self.options.max_command_bytes
        if len(command) > bytes_max:
            raise ValueError(f"a command of {len(command)} bytes; at most {bytes_max} fit an entry")
        began = monotonic()
        done, committed = self.commit_times.timed(began, done, committed)
        self._driver.proposals.propose(command, done, began + deadline_s, give_up_after_s, foreseen, committed)
        if committed is None:
            self._driver.want_turn()
        else:
            self._loop.call_later(PATIENCE_S, self._driver.proposals.hurry, self._driver.want_turn)

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        """Return once this node's state is at least as new as every write that had finished when this was called.

        Raises:
            NotReplicated: no majority answered in time; the state here may be old.
        """
        self._check_running()
        future = self._driver.reads.ask(self._loop)
        self._driver.want_turn()
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
            payload = self._driver.entries.entries(index, index)[0][4]
        except fastlog.NotCached:
            block = await self._loop.run_in_executor(
                self._driver.reader, self._driver.read_entries_blocking, index, index
            )
            payload = fastlog.decode_entries(block)[0][4]
        return self._command_of(index, payload)

    def read_entry_blocking(self, index: int) -> bytes:
        """As `read_entry`, for threads."""
        return self._command_of(index, fastlog.decode_entries(self._driver.read_entries_blocking(index, index))[0][4])

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Copy]:
        """Make a snapshot of this node's state as of now, in a file that is removed afterwards.

        Raises:
            SnapshotUnavailable: it cannot be made now.
            Stopped: the node is not running.
        """
        self._check_running()
        async with self._driver.snapshots.fresh() as copy:
            yield copy

    def damaged(self, error: StateDamaged) -> None:
        """The state machine has read what it did not write: stop, and heal at the next start. From any thread.

        Without other members the node goes on: stopping would help nobody.
        """
        if self._started:
            self._driver.damaged(error)

    def lease_valid(self, margin_s: float = 0.0) -> bool:
        """Return whether this node may work on what it owns for at least `margin_s` more seconds."""
        return self.lease_expires_in_s() > margin_s

    def lease_expires_in_s(self) -> float:
        """Return how long this node's lease lasts; 0 if it holds none."""
        return self._driver.lease_expires_in_s() if self._is_running() else 0.0

    def has_quorum(self) -> bool:
        """Return whether a proposal made now would likely commit: a leader, recent contact, room on disk."""
        driver = self._driver
        return (
            self._is_running()
            and driver.enrolment.roster.is_member
            and driver.has_quorum()
            and not (driver.writer.waiting_for_room or driver.core.abstains)
        )

    @property
    def short_of_room(self) -> bool:
        """Whether this node's disk has too little room for new commands of its own; votes and reads go on."""
        return self._driver.disk.short_of_room and self._is_running()

    async def wait_quorum(self, timeout_s: float) -> bool:
        """Wait until `has_quorum`, at most `timeout_s`; return whether it came."""
        return await self._wait_until(self.has_quorum, timeout_s) and self.has_quorum()

    async def transfer_leadership(self, to: NodeId | None = None) -> NodeId | None:
        """Hand leadership to `to`, or to the furthest peer with a quick disk; return whom, None if nobody took it.

        Bounded by `TRANSFER_S`; proposals made meanwhile wait and are not lost.

        Raises:
            SmtpRaftError: this node does not lead, or `to` is no other reachable member.
        """
        if self._driver.core.role is not Role.LEADER:
            leader = self._driver.core.leader_id
            advice = f"{leader} does; ask there" if leader else "and knows no leader; try again later"
            raise SmtpRaftError(f"node {self.id} does not lead, {advice}")
        progress = self._driver.core.status().progress
        matched = {
            node: row.match_index
            for node, row in progress.items()
            if node != self.id and not row.is_learner and self._driver.transport.connected(node)
        }
        if to is None:
            beats, limit_ms = self._driver.heartbeats, self.options.election_timeout_ms // 2
            slow = {node for node, lag_ms in beats.disk_lag_ms.items() if lag_ms >= limit_ms} | set(beats.short_of_room)
            to = max(matched, key=lambda node: (node not in slow, matched[node]), default=None)
        elif to not in matched:
            raise SmtpRaftError(f"{to} is no other reachable member of this cluster")
        if to is None:
            return None
        target = to
        self._driver.guard(lambda: self._driver.core.transfer_leader(target))
        return target if await self._wait_until(lambda: not self.is_leader, TRANSFER_S) else None

    async def step_down(self, seconds: float) -> NodeId | None:
        """Hand leadership to the best, and stand in no election for so long; return who leads then, None if unknown.

        Raises:
            SmtpRaftError: this node does not lead, or nobody is there to take over.
        """
        self._check_running()
        self._driver.stand_aside_until = monotonic() + seconds
        try:
            to = await self.transfer_leadership()
            if to is None:
                raise NotReplicated("nobody took leadership over; this node leads on")
        except SmtpRaftError:
            self._driver.stand_aside_until = 0.0
            raise
        return to

    def forget_leader(self) -> None:
        """The leader is known to be gone: let this node vote for another at once (it must not lead itself).

        Raises:
            SmtpRaftError: reads rest on the leader's lease, which is this node's promise not to do that.
        """
        self._check_running()
        if self.options.lease_reads:
            raise SmtpRaftError("lease_reads is on: no node may forget its leader before an election timeout is over")
        self._driver.guard(self._driver.core.forget_leader)

    async def _hand_over(self, to: NodeId | None) -> NodeId | None:
        return await self.transfer_leadership(to)

    async def change_members(self, operation: str, **arguments: object) -> object:
        """Have the leader carry out a change of the members; any node may be asked. Returns what it says.

        `add` (`members`: "ID=HOST:PORT" each, `learner`: never promote), `promote`, `remove`, `replace` (`node`,
        `address`), `list`; `force` insists on what is unwise. See `changes.py`.

        Raises:
            Declined: the text has the reasons.
            NotReplicated: nothing was changed.
            OutcomeUnknown: look at the members.
        """
        self._check_running()
        return await self._changes.request(operation, arguments)

    def members(self) -> list[dict[str, object]]:
        """Return the members as far as this node has applied the log; the leader's `list` knows more of each."""
        state = self._driver.core.conf_state
        members = self._driver.enrolment.roster.members
        return [
            {
                "id": node,
                "address": members[node].address,
                "incarnation": f"{members[node].incarnation:016x}",
                "role": role_of(node, state.voters, state.voters_outgoing, state.learners),
                "leader": node == self.leader_id,
            }
            for node in sorted(members, key=node_order)
        ]

    @property
    def has_others(self) -> bool:
        """Whether this node knows of other members."""
        return self._driver.enrolment.roster.has_others

    @property
    def leader_id(self) -> NodeId:
        """The leader as this node knows it, `NO_NODE` if none."""
        return self._driver.core.leader_id

    @property
    def is_leader(self) -> bool:
        """Whether this node leads."""
        return self._driver.core.role is Role.LEADER

    @property
    def applied_index(self) -> int:
        """The last index that this node's state machine has applied."""
        return self._driver.applier.applied_index

    @property
    def writer_stats(self) -> WalStats:
        """The WAL's counters."""
        return self._driver.writer.stats

    def wal_usage(self) -> tuple[int, int]:
        """Return how many files of the log are in use, and their bytes."""
        return self._driver.wal.usage()

    @property
    def heartbeats(self) -> Heartbeats:
        """The heartbeat side: counters and times for metrics."""
        return self._driver.heartbeats

    def snapshot_times(self) -> dict[str, Durations]:
        """Return how long snapshots took to `save`, `send` and `receive`."""
        return self._driver.snapshots.times()

    def leader_contact_s(self) -> float:
        """Return for how long this node has had no contact with its leader; as leader, with a majority."""
        now = monotonic()
        beats = self._driver.heartbeats
        contact_at = beats.quorum_contact_at(now) if self.is_leader else beats.leader_contact_at
        return max(0.0, now - max(contact_at, self._started_at))

    @property
    def proposals_failed(self) -> int:
        """How many proposals of this node were not applied, or nobody knows, since the start."""
        return self._driver.proposals.failed_count

    def traffic(self) -> dict[NodeId, PeerStats]:
        """Return the transport's counters of each peer."""
        return self._driver.transport.traffic()

    @property
    def loop_lag_s(self) -> float:
        """How late the last tick was: what keeps the loop busy delays heartbeats too."""
        return self._driver.loop_lag_s

    @property
    def term(self) -> int:
        """The current term."""
        return self._driver.core.term

    def status(self) -> NodeStatus:
        """Return the facts for operators."""
        core, entries = self._driver.core, self._driver.entries
        progress = core.status().progress
        leading = core.role is Role.LEADER
        beats, usual_s = self._driver.heartbeats, self._driver.enrolment.distances.usual_s
        peers = []
        for peer in (member.peer for member in self._driver.enrolment.roster.members.values() if member.id != self.id):
            row = progress.get(peer.id) if leading else None
            round_trip_s = (beats.round_trip_s.get if leading else usual_s)(peer.id)
            peers.append(
                PeerStatus(
                    id=peer.id,
                    address=f"{peer.host}:{peer.port}",
                    reachable=self._driver.transport.connected(peer.id),
                    match_index=row.match_index if row else None,
                    next_index=row.next_index if row else None,
                    state=str(row.state.value) if row else None,
                    applied_index=beats.applied.get(peer.id) if leading else None,
                    round_trip_ms=round(round_trip_s * 1000, 3) if round_trip_s is not None else None,
                    disk_lag_ms=beats.disk_lag_ms.get(peer.id) if leading else None,
                    disk_full=peer.id in beats.short_of_room if leading else None,
                    snapshot=self._driver.snapshots.sender.progress(peer.id),
                )
            )
        first, last, expires_in_s = entries.first_index, entries.last_index, self.lease_expires_in_s()
        return NodeStatus(
            node_id=self.id,
            cluster_id=self.options.cluster_id.hex(),
            role=core.role.value,
            term=core.term,
            leader_id=core.leader_id or None,
            last_index=last,
            commit_index=core.commit_index,
            applied_index=self._driver.applier.applied_index,
            durable_index=self._driver.durable_index,
            first_index=first,
            voters=core.conf_state.voters,
            peers=tuple(peers),
            lease_held=expires_in_s > 0,
            lease_expires_in_ms=int(expires_in_s * 1000),
            has_quorum=self.has_quorum(),
            disk=self._driver.disk.state.value,
            abstains=core.abstains,
            snapshot=self._driver.snapshots.receiver.progress(),
            nodes_up=tuple(sorted(beats.sessions, key=node_order)),
            proposals_pending=len(self._driver.proposals),
            proposals_pending_bytes=self._driver.proposals.pending_bytes,
            election=self.options.election,
            elections_started=self._driver.elections_started,
            leader_changes=self._driver.leader_changes,
            log_bytes=entries.size_bytes(first, last) if last >= first else 0,
            log_cached_bytes=entries.cached_bytes,
        )

    # ---- small things -----------------------------------------------------------------------------------------------

    async def ask_members(
        self, operation: str, arguments: Arguments, *, timeout_s: float
    ) -> dict[NodeId, object | None]:
        """Return what each member, this one too, answers to a question of `inquiries`; None: no answer in time."""
        self._check_running()
        enrolment = self._driver.enrolment
        return await self.inquiries.ask_all(
            enrolment.requests, enrolment.roster.members, operation, arguments, timeout_s
        )

    async def _carry_out(self, operation: str, arguments: Arguments) -> object:
        self._check_running()
        if self.inquiries.knows(operation):
            return await self.inquiries.carry_out(operation, arguments)
        return await self._changes.carry_out(operation, arguments)

    def _describe(self) -> bytes:
        """Return the frame for whoever asks who is here."""
        assert self._identity is not None
        driver, facts = self._driver, self._identity.facts
        known = driver.enrolment.roster.members.values() if driver.enrolment.admission.taking_part else ()
        return encode_answer(
            Answer(
                self.id,
                facts.cluster_id,
                self.options.cluster_name,
                facts.incarnation,
                driver.enrolment.admission.taking_part,
                __version__,
                rows_of(known),
                list(driver.core.conf_state.voters),
            )
        )

    async def _leave(self) -> None:
        """End this node's session so that its work moves now, not when its lease runs out; then hand leadership on."""
        session = self._driver.proposals.session
        self._driver.heartbeats.holder.give_up()
        self._driver.proposals.close_wanted()
        if session:
            others = [
                node
                for node in self._driver.heartbeats.sessions
                if node != self.id and self._driver.transport.connected(node)
            ]
            self._driver.proposals.propose_down(session, envelope.encode_down(session, others))
            self._driver.want_turn()
            await self._wait_until(lambda: self._driver.proposals.session != session, LEAVE_S)
        if self._driver.core.role is Role.LEADER:
            to = await self.transfer_leadership()
            if to is not None:
                log.info("handed leadership over to=%s", to)
            else:
                log.warning("nobody took leadership over; the others elect a leader by themselves")

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Look at `condition` after every turn; return whether it came true in time."""
        deadline = monotonic() + timeout_s
        while not condition():
            if monotonic() >= deadline or not self._driver.running:
                return False
            await asyncio.shield(self._driver.next_turn())
        return True

    def _is_running(self) -> bool:
        return self._started and not self._stopping and not self._failed.done()

    def _check_running(self) -> None:
        if not self._is_running():
            raise Stopped("the node is not running")

    @staticmethod
    def _command_of(index: int, payload: bytes) -> bytes:
        if not payload or payload[0] != envelope.COMMAND:
            raise fastlog.Unavailable(f"no command stands at index {index}")
        return payload[envelope.COMMAND_HEADER_BYTES :]
