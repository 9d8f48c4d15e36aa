"""Snapshots of one node in virtual time: made, sent, received and installed in the order of `cluster.snapshots`.

Real are the copies, the frames, the files that are received, the order of an install and what a crash leaves of it.
The two coroutines that stream a copy are not here, for there is no event loop: one chunk at a time is on its way, and
a sender that hears nothing for a while gives up.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from smtpraft import fastlog
from smtpraft.cluster.sessions import Sessions
from smtpraft.cluster.snapshot_files import NO_SPACE, READY, Part, SnapshotBroken, SnapshotFiles
from smtpraft.cluster.snapshot_format import (
    FRAME_SNAPSHOT_BEGIN,
    FRAME_SNAPSHOT_HAVE,
    Chunk,
    Have,
    HaveState,
    SnapshotInfo,
    decode_begin,
    decode_chunk,
    decode_have,
    encode_begin,
    encode_chunk,
    encode_have,
)
from smtpraft.cluster.snapshots import install
from smtpraft.consensus import Message, MessageType, Role
from smtpraft.consensus.messages import SnapshotMeta
from smtpraft.simulator.timeline import S
from smtpraft.storage import HardState
from smtpraft.types import NodeId

if TYPE_CHECKING:
    from smtpraft.simulator.host import Host
    from smtpraft.simulator.process import Process

DIRECTORY: Final = "snapshot"
CHUNK_BYTES: Final = 32 * 1024
SILENCE_US: Final = 1 * S
"""After this the sender gives up."""


class Files(SnapshotFiles):
    """The directory on the simulated disk. What the machine installs, it needs as a real file."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.disk, DIRECTORY)
        self._host = host

    @property
    def ready_path(self) -> str:
        """Put what was received whole where SQLite can take it."""
        path = f"{self._host.spool.path}.snap"
        with open(path, "wb") as file:
            file.write(self._host.disk.contents(f"{DIRECTORY}/{READY}"))
        return path

    def drop_ready(self) -> None:
        self.remove(f"{DIRECTORY}/{READY}")


@dataclass
class _Transfer:
    """One copy on its way to one peer; `number` of what was sent last."""

    info: SnapshotInfo
    data: bytes
    term: int
    number: int = 0


class Snapshots:
    """What `cluster.snapshots.Snapshots`, its sender and its receiver are, for one process."""

    def __init__(self, process: Process, files: Files) -> None:
        self._process = process
        self._files = files
        self._copy: tuple[SnapshotInfo, bytes] | None = None
        self._making = False
        self._transfers: dict[NodeId, _Transfer] = {}
        self._part: Part | None = None
        self._term = 0
        self._ready: SnapshotInfo | None = None
        self._complete = False
        """All of one was received just now."""

    # The leader.

    def hold_index(self) -> int | None:
        """Return the index behind which the log is needed; None if for nobody."""
        return min((transfer.info.index for transfer in self._transfers.values()), default=None)

    def provide(self) -> SnapshotMeta | None:
        """As the core asks for it."""
        process = self._process
        if self._copy is not None:
            info = self._copy[0]
            known = {*info.conf_state.voters, *info.conf_state.learners, *info.conf_state.voters_outgoing}
            members = all(member.id in known for member in process.core.members())
            if info.index >= process.log.prev_index and members:
                return SnapshotMeta(info.index, info.term, info.conf_state, bytes.fromhex(info.id))
        if not self._making:
            self._making = True
            process.after(process.host.apply_latency_us(), self._make)
        return None

    def _make(self) -> None:
        process = self._process
        self._making = False
        path = f"{process.host.spool.path}.copy"
        if os.path.exists(path):
            os.unlink(path)
        applied = process.machine.write_snapshot(path)
        with open(path, "rb") as file:
            data = file.read()
        os.unlink(path)
        if not applied.index or applied.index < process.log.prev_index:
            return
        members = Sessions.decode(applied.notes).members
        info = SnapshotInfo(
            process.random.randbytes(16).hex(),
            process.world.cluster_id.hex(),
            process.id,
            applied.index,
            process.log.term(applied.index),
            members.conf_state if members.founded else process.core.conf_state,
            len(data),
            hashlib.sha256(data).hexdigest(),
            created_ms=0,
            chunk_bytes=CHUNK_BYTES,
        )
        self._copy = info, data

    def send(self, message: Message) -> None:
        """The core's SNAP."""
        meta, copy = message.snapshot, self._copy
        assert meta is not None
        if copy is None or bytes.fromhex(copy[0].id) != meta.data:
            self._process.after(0, self._report, message.to, False)
            return
        transfer = self._transfers[message.to] = _Transfer(*copy, message.term)
        self._put(message.to, transfer, *encode_begin(message.term, transfer.info))

    def _put(self, peer: NodeId, transfer: _Transfer, kind: int, head: bytes, tail: bytes) -> None:
        process = self._process
        transfer.number += 1
        if process.plan.has("crawl") and not process.world.calm and process.random.random() < 0.5:
            # A connection of its own, and a slow one: meanwhile the log may bring the same, and more.
            process.after(process.random.randrange(SILENCE_US), self._wire, peer, kind, head, tail)
        else:
            self._wire(peer, kind, head, tail)
        process.after(SILENCE_US, self._give_up, peer, transfer, transfer.number)

    def _wire(self, peer: NodeId, kind: int, head: bytes, tail: bytes) -> None:
        self._process.wires.send(peer, kind, head, [tail])

    def _give_up(self, peer: NodeId, transfer: _Transfer, number: int) -> None:
        if self._transfers.get(peer) is transfer and transfer.number == number:
            self._ended(peer, transfer, ok=False)

    def _ended(self, peer: NodeId, transfer: _Transfer, *, ok: bool) -> None:
        del self._transfers[peer]
        core = self._process.core
        if core.term == transfer.term and core.role is Role.LEADER:
            self._report(peer, ok)

    def _report(self, peer: NodeId, ok: bool) -> None:
        self._process.core.report_snapshot(peer, ok)
        self._process.turn()

    def _has(self, peer: NodeId, have: Have) -> None:
        transfer = self._transfers.get(peer)
        if transfer is None or bytes.fromhex(transfer.info.id) != have.id:
            return
        if have.state is not HaveState.GO_ON:
            self._ended(peer, transfer, ok=have.state is HaveState.DONE)
            return
        chunk = transfer.data[have.offset : have.offset + CHUNK_BYTES]
        self._put(peer, transfer, *encode_chunk(have.id, have.offset, fastlog.crc32c(chunk)), chunk)

    # The follower.

    def received(self, peer: NodeId, kind: int, head: bytes, tail: bytes) -> None:
        """Take one of the frames."""
        if kind == FRAME_SNAPSHOT_HAVE:
            self._has(peer, decode_have(head, tail))
            return
        with self._process.host.aiming("crash-persist", operations=8, times=4, early=False):
            if kind == FRAME_SNAPSHOT_BEGIN:
                term, info = decode_begin(head, tail)
                have = self._guarded(info.id, lambda: self._begin(term, info))
            else:
                chunk = decode_chunk(head, tail)
                if self._part is None or bytes.fromhex(self._part.info.id) != chunk.id:
                    return  # Of a transfer that another one has replaced.
                part = self._part
                info = part.info
                have = self._guarded(info.id, lambda: self._take(part, chunk))
            if self._complete:
                self._complete = False
                self._whole(peer, info)
        self._process.wires.send(peer, *encode_have(have))

    def _guarded(self, id: str, act: Callable[[], Have]) -> Have:
        try:
            return act()
        except SnapshotBroken:
            return Have(bytes.fromhex(id), 0, HaveState.REFUSED)
        except OSError as error:
            part, self._part = self._part, None
            if part is not None:
                part.close()
            if error.errno in NO_SPACE:
                with contextlib.suppress(OSError):
                    self._files.discard()
            return Have(bytes.fromhex(id), 0, HaveState.REFUSED)

    def _begin(self, term: int, info: SnapshotInfo) -> Have:
        core = self._process.core
        if term < core.term or self._ready is not None:
            return Have(bytes.fromhex(info.id), 0, HaveState.REFUSED)
        if info.index <= core.commit_index:
            return Have(bytes.fromhex(info.id), 0, HaveState.DONE)
        if self._part is not None:
            self._part.close()
            self._part = None
        self._part = self._files.begin(info)
        self._term = term
        return self._go_on(self._part)

    def _take(self, part: Part, chunk: Chunk) -> Have:
        part.write(chunk.offset, chunk.crc, chunk.data)
        return self._go_on(part)

    def _go_on(self, part: Part) -> Have:
        id = bytes.fromhex(part.info.id)
        if not part.complete:
            return Have(id, part.offset, HaveState.GO_ON)
        self._part = None
        self._files.finish(part)
        self._complete = True
        return Have(id, part.offset, HaveState.DONE)

    def _whole(self, peer: NodeId, info: SnapshotInfo) -> None:
        """All of it is here: the core decides whether it restores from it."""
        process = self._process
        meta = SnapshotMeta(info.index, info.term, info.conf_state, bytes.fromhex(info.id))
        process.step(Message(MessageType.SNAP, to=process.id, sender=peer, term=self._term, snapshot=meta))
        if process.core.pending_snapshot_index == info.index:
            self._ready = info
        else:
            self._files.drop_ready()

    def install(self, meta: SnapshotMeta) -> None:
        """Between two writes of the log."""
        process, info = self._process, self._ready
        assert info is not None, "a snapshot that was not received"
        assert (info.index, info.term) == (meta.index, meta.term)
        core, host = process.core, process.host
        hard_state = HardState(core.term, core.vote, info.index)
        in_place = False

        def replace_state() -> None:
            nonlocal in_place
            if not in_place:
                process.applying.finish()
                host.installing(info, hard_state)
                process.applier.install(self._files.ready_path)
                in_place = True

        def done() -> None:
            self._ready = None
            host.installed()
            process.world.note(process.id, "snapshot", f"to {info.index} from {info.node_id}")

        process.writer.submit_job(lambda: install(self._files, process.wal, info, hard_state, replace_state), done)
