"""Snapshots of one node: made when a follower is too far behind for the log, sent, received, installed.

    leader                                              follower
    core: what it needs is compacted ─▶ provide()
      copy made beside the applying, once for all
    core: SNAP ─▶ sender ── BEGIN, CHUNK … ───────────▶ receiver: to disk, checked, synced
                         ◀───────────────────── HAVE ──
                                                        core: SNAP ─▶ log in memory begins behind it
                                                        writer's thread, between two writes of the log:
                                                          mark │ apply thread: the machine's state is replaced
                                                               │ log on disk begins behind it
                                                          unmark
    core: appends what follows ◀──────────── APP_RESP ──

A crash before the mark leaves the old state; from the mark on, `resume_install` completes the new one at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic
from typing import Final, Protocol

from smtpraft import fastlog
from smtpraft.cluster.abstention import put_log_aside
from smtpraft.cluster.applier import Applier
from smtpraft.cluster.durations import SNAPSHOT_BUCKETS_S, Durations
from smtpraft.cluster.handshake import Channel
from smtpraft.cluster.machine import Applied, StateMachine
from smtpraft.cluster.sessions import Sessions
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.snapshot_files import MarkDamaged, SnapshotFiles
from smtpraft.cluster.snapshot_format import (
    FRAME_SNAPSHOT_HAVE,
    ID_BYTES,
    Have,
    SnapshotInfo,
    decode_have,
    encode_have,
)
from smtpraft.cluster.snapshot_receiver import SnapshotReceiver
from smtpraft.cluster.snapshot_sender import Copy, Pace, Pipe, SnapshotSender
from smtpraft.cluster.transport import Transport
from smtpraft.consensus import ConfState, Message, MessageType, RawNode, Role
from smtpraft.consensus.messages import SnapshotMeta
from smtpraft.errors import Fatal, SmtpRaftError
from smtpraft.storage import HardState, Wal, WalWriter
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

COPY_IDLE_S: Final = 60.0  # a follower that died in mid-transfer may be back by then, and go on
HOLD_S: Final = 10.0  # so long the log waits behind a copy whose transfer broke off
MAKE_AGAIN_S: Final = 5.0  # after an attempt that failed
_READ_BYTES: Final = 1024 * 1024


Interrupted = tuple[SnapshotInfo, HardState]
"""The install that a crash has interrupted: of which snapshot, and with which hard state."""


class SnapshotUnavailable(SmtpRaftError):
    """No snapshot can be made now; the text says why."""


def install(
    files: SnapshotFiles, wal: Wal, info: SnapshotInfo, hard_state: HardState, replace_state: Callable[[], None]
) -> None:
    """Put the snapshot that was received in the place of state and log. A crash leaves both old, or both to be made new
    by `resume_install` and `restart_log`.

    Raises:
        WalFull: no room; to be called again, with a `replace_state` that does nothing a second time.
    """
    files.mark(info, hard_state)
    replace_state()
    wal.restart(info.index, info.term, hard_state)
    files.unmark()


def resume_install(files: SnapshotFiles, machine: StateMachine) -> Interrupted | None:
    """Before the machine is opened: put the snapshot in its place if a crash has interrupted that.

    Returns what the log has to be restarted after, by `restart_log`; None if there is nothing to complete.

    Raises:
        MarkDamaged: the mark is not what was written.
    """
    pending = files.open()
    if pending is not None and files.ready():
        machine.install_snapshot(files.ready_path)
    return pending


def restart_log(
    files: SnapshotFiles,
    wal: Wal,
    entries: fastlog.Log,
    found: HardState,
    pending: Interrupted,
) -> HardState:
    """Complete what `resume_install` began; return the hard state, of which the log had recovered `found`."""
    info, marked = pending
    # The mark was made when nothing else was being written, so nothing promised since is newer.
    state = marked if marked.term >= found.term else HardState(found.term, found.vote, info.index)
    wal.restart(info.index, info.term, state)
    entries.restore(info.index, info.term)
    files.unmark()
    log.info("completed the install of a snapshot index=%d term=%d", info.index, info.term)
    return state


def begin_at(files: SnapshotFiles, machine: StateMachine) -> Interrupted | MarkDamaged | None:
    """As `resume_install`; if nobody knows what it was that was interrupted, return that."""
    try:
        return resume_install(files, machine)
    except MarkDamaged as error:
        return error


def complete(
    files: SnapshotFiles,
    wal: Wal,
    entries: fastlog.Log,
    found: HardState,
    pending: Interrupted | MarkDamaged,
    has_others: bool,
) -> HardState:
    """Complete what `begin_at` returned, and return the hard state.

    Without the mark nobody knows where the log has to begin: the state machine may be a new one, and entries that it
    has in another version may stand in the log. So the log goes, and with it the vote for a time, as in a node whose
    state machine is behind its log: all comes from the others.

    Raises:
        Fatal: there are no others.
    """
    if not isinstance(pending, MarkDamaged):
        return restart_log(files, wal, entries, found, pending)
    if not has_others:
        raise Fatal(
            f"{pending}: it is damaged, and nobody knows which snapshot was being installed. "
            "Restore one (`smtpraft snapshot restore`); nothing is changed"
        )
    log.error("damaged mark of an install: %s; the log is put aside, and all comes from the others", pending)
    state = put_log_aside(entries, wal)
    files.unmark()
    return state


class Host(Protocol):
    """What is needed of the driver."""

    reader: ThreadPoolExecutor

    def guard(self, act: Callable[[], object]) -> None: ...

    def step(self, message: Message) -> None: ...

    def fail(self, error: BaseException) -> None: ...


class Snapshots:
    """The snapshot side of one node. Loop thread, but for what runs on the threads named."""

    def __init__(
        self,
        files: SnapshotFiles,
        machine: StateMachine,
        applier: Applier,
        entries: fastlog.Log,
        wal: Wal,
        writer: WalWriter,
        options: NodeOptions,
        driver: Host,
    ) -> None:
        self._files = files
        self._machine = machine
        self._applier = applier
        self._entries = entries
        self._wal = wal
        self._writer = writer
        self._options = options
        self._guard = driver.guard
        self._step = driver.step
        self._on_failure = driver.fail
        self._core: RawNode
        self._transport: Transport
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="smtpraft-snapshot-out")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="smtpraft-snapshot-in")
        self._making = asyncio.Lock()
        self._freezes = 0
        self._copy: Copy | None = None
        self._task: asyncio.Task[None] | None = None
        self._make_at = 0.0
        self._ready: SnapshotInfo | None = None
        self.sender = SnapshotSender(
            connect=self._connect,
            reader=driver.reader,
            pace=Pace(options.snapshot_bytes_per_s),
            report=lambda peer, ok: self._guard(lambda: self._core.report_snapshot(peer, ok)),
            is_current=lambda term: self._core.term == term and self._core.role is Role.LEADER,
        )
        self.receiver = SnapshotReceiver(
            files,
            self._disk,
            answer=self._answer,
            wanted=self._wanted,
            complete=lambda peer, term, info: self._guard(lambda: self._received_whole(peer, term, info)),
            on_failure=self._on_failure,
        )
        self.installed_count = 0
        self.made = Durations(SNAPSHOT_BUCKETS_S)

    def start(self, core: RawNode, transport: Transport) -> None:
        """Begin to take part."""
        self._core = core
        self._transport = transport
        self.receiver.start()

    async def close(self) -> None:
        """End transfers and what is being made. What was received in part stays."""
        if self._task is not None:
            self._task.cancel()
        await self.sender.close()
        await self.receiver.close()
        # A copy in the making is short work next to a restart; there is no safe way to break into SQLite's.
        await asyncio.to_thread(self._maker.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self._disk.shutdown, wait=True)

    def times(self) -> dict[str, Durations]:
        """Return how long snapshots took to `save` here, to `send`, to `receive`."""
        return {"save": self.made, "send": self.sender.times, "receive": self.receiver.times}

    # ---- for the compaction -----------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Is a copy being made? What it needs may be in the log only: no entry may be forgotten meanwhile."""
        return self._freezes > 0

    @property
    def copy_bytes(self) -> int:
        """The size of the copy that others are sent; 0 if there is none."""
        return self._copy.info.size_bytes if self._copy is not None else 0

    def hold_index(self, now: float) -> int | None:
        """Return the index behind which the log is needed for whoever gets the copy; None if nobody does."""
        copy = self._copy
        if copy is not None and (copy.users or now - copy.used_at < HOLD_S):
            return copy.info.index
        return None

    # ---- leader -----------------------------------------------------------------------------------------------------

    def provide(self) -> SnapshotMeta | None:
        """Return a snapshot that the log goes on from, if there is one; else have one made, and answer None.

        The core asks again with every answer to a heartbeat.
        """
        copy = self._copy
        if copy is not None and copy.info.index >= self._entries.prev_index and self._has_all_members(copy):
            info = copy.info
            copy.used_at = monotonic()
            return SnapshotMeta(info.index, info.term, info.conf_state, bytes.fromhex(info.id))
        if self._task is None and monotonic() >= self._make_at:
            self._task = asyncio.get_running_loop().create_task(self._renew(), name="snapshot-make")
        return None

    def _has_all_members(self, copy: Copy) -> bool:
        """A member that was added since could not restore from it: it would be nobody there."""
        state = copy.info.conf_state
        known = {*state.voters, *state.learners, *state.voters_outgoing}
        return all(member.id in known for member in self._core.members())

    def send(self, message: Message) -> None:
        """The core's SNAP: it goes by a way of its own, or the core hears that it does not."""
        meta, copy = message.snapshot, self._copy
        assert meta is not None
        if copy is None or bytes.fromhex(copy.info.id) != meta.data:
            to = message.to
            asyncio.get_running_loop().call_soon(self._guard, lambda: self._core.report_snapshot(to, False))
            return
        self.sender.start(message.to, message.term, copy)

    def sweep(self, now: float) -> None:
        """Remove the copy when nobody uses it, and nobody could or has done so for long."""
        copy = self._copy
        if copy is None or copy.users:
            return
        if copy.info.index < self._entries.prev_index or now - copy.used_at > COPY_IDLE_S:
            self._copy = None
            self._remove(copy.path)

    async def _renew(self) -> None:
        try:
            copy = await self._make()
            old, self._copy = self._copy, copy
            if old is not None and not old.users:
                self._remove(old.path)
            elif old is not None:
                asyncio.get_running_loop().call_later(COPY_IDLE_S, self._remove, old.path)
        except SnapshotUnavailable as error:
            self._make_at = monotonic() + MAKE_AGAIN_S
            log.warning("no snapshot made reason=%r", str(error))
        except Exception as error:
            self._on_failure(error)
        finally:
            self._task = None

    # ---- making -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[Copy]:
        """Make a copy for the caller alone; it is removed afterwards.

        Raises:
            SnapshotUnavailable: it cannot be made.
        """
        copy = await self._make()
        try:
            yield copy
        finally:
            self._remove(copy.path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(RuntimeError):  # closed: the next start removes it
            self._maker.submit(self._files.remove, path)

    async def _make(self) -> Copy:
        """Have the machine write a copy, beside all else; one at a time."""
        loop = asyncio.get_running_loop()
        async with self._making:
            id = secrets.token_bytes(ID_BYTES).hex()
            path = self._files.copy_path(id)
            began = monotonic()
            self._freezes += 1
            work = loop.run_in_executor(self._maker, self._write, path)
            work.add_done_callback(self._thaw)  # not before the thread is done, whoever still waits for it
            try:
                applied, size_bytes, sha256 = await asyncio.shield(work)
                term = self._entries.term(applied.index) if applied.index else 0
            except (SmtpRaftError, OSError, fastlog.Compacted, fastlog.Unavailable) as error:
                self._remove(path)
                raise SnapshotUnavailable(f"{type(error).__name__}: {error}") from error
            if not applied.index:
                self._remove(path)
                raise SnapshotUnavailable("nothing was applied yet")
            info = SnapshotInfo(
                id,
                self._options.cluster_id.hex(),
                self._options.node_id,
                applied.index,
                term,
                self._conf_state(applied),
                size_bytes,
                sha256,
                created_ms=int(time.time() * 1000),
            )
            self.made.add(monotonic() - began)
            log.info("snapshot made index=%d bytes=%d seconds=%.2f", info.index, size_bytes, monotonic() - began)
            return Copy(info, path, used_at=monotonic())

    def _write(self, path: str) -> tuple[Applied, int, str]:
        """On the maker's thread."""
        applied = self._machine.write_snapshot(path)
        digest = hashlib.sha256()
        size_bytes = 0
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
                size_bytes += len(block)
        return applied, size_bytes, digest.hexdigest()

    def _thaw(self, work: asyncio.Future[tuple[Applied, int, str]]) -> None:
        self._freezes -= 1
        if not work.cancelled():
            work.exception()  # its awaiter may be gone

    def _conf_state(self, applied: Applied) -> ConfState:
        """Return the members as of the copy, not as of now: what follows it in the log changes them again."""
        members = Sessions.decode(applied.notes).members
        return members.conf_state if members.founded else self._core.conf_state

    # ---- frames -----------------------------------------------------------------------------------------------------

    def received(self, peer: NodeId, kind: int, head: bytes, tail: bytes) -> None:
        """Take one of the snapshot frames.

        Raises:
            CorruptFrame: it is none.
        """
        if kind == FRAME_SNAPSHOT_HAVE:
            self.sender.have(peer, decode_have(head, tail))
        else:
            self.receiver.received(peer, kind, head, tail)

    async def _connect(self, peer: NodeId) -> Pipe | None:
        return await self._transport.open_channel(peer, Channel.SNAPSHOT)

    def _answer(self, peer: NodeId, have: Have) -> None:
        self._transport.send(peer, *encode_have(have))  # if it is lost, the sender ends that transfer

    # ---- follower ---------------------------------------------------------------------------------------------------

    def _wanted(self, term: int, info: SnapshotInfo) -> bool | None:
        if term < self._core.term or self._ready is not None:
            return None
        return info.index > self._core.commit_index

    def _received_whole(self, peer: NodeId, term: int, info: SnapshotInfo) -> None:
        """All of it is here: now the core may decide whether it restores from it."""
        if self._ready is not None:
            return
        meta = SnapshotMeta(info.index, info.term, info.conf_state, bytes.fromhex(info.id))
        self._step(Message(MessageType.SNAP, to=self._core.id, sender=peer, term=term, snapshot=meta))
        if self._core.pending_snapshot_index == info.index:
            self._ready = info
        else:
            self._disk.submit(self._files.drop_ready)

    def install(self, meta: SnapshotMeta) -> None:
        """Have what was received installed, between two writes of the log: what is submitted next comes after it."""
        info, core = self._ready, self._core
        assert info is not None, "a snapshot that was not received"
        assert (info.index, info.term) == (meta.index, meta.term)
        hard_state = HardState(core.term, core.vote, info.index)
        in_place = False

        def replace_state() -> None:
            nonlocal in_place
            if not in_place:  # what comes after it may be repeated for want of room
                self._applier.run(lambda: self._applier.install(self._files.ready_path)).result()
                in_place = True

        def job() -> None:
            install(self._files, self._wal, info, hard_state, replace_state)

        self._writer.submit_job(job, lambda: self._installed(info))

    def _installed(self, info: SnapshotInfo) -> None:
        self._ready = None
        self.installed_count += 1
        log.info("installed a snapshot index=%d term=%d from=%s", info.index, info.term, info.node_id)
