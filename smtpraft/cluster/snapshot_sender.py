"""Snapshots on their way out: one connection and one task for each follower that gets one.

The core says who (SNAP) and hears the end (`report`). If a transfer breaks, the core asks again, and the follower says
how far it had come: so there is no second mechanism of retries here, only a pause that grows.

Memory: a window of chunks for each follower, in the connection's buffer. The copy is read chunk by chunk, on a thread.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from smtpraft.cluster.durations import SNAPSHOT_BUCKETS_S, Durations
from smtpraft.cluster.snapshot_format import Have, HaveState, SnapshotInfo, encode_begin, encode_chunk
from smtpraft.fastlog import crc32c
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

WINDOW_CHUNKS: Final = 8
STALL_S: Final = 10.0  # without an answer; the receiver syncs 8 MiB at a time, and hashes nothing anew
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0


class Pipe(Protocol):
    """The connection that one transfer has for itself."""

    failure: str
    closed: asyncio.Event

    def send(self, type: int, head: bytes, spans: Sequence[bytes | memoryview]) -> bool: ...

    def abort(self, failure: str, *, tell: bool = True) -> None: ...


@dataclass(eq=False)
class Copy:
    """A snapshot file of this node. It is removed when nobody uses it and nobody could."""

    info: SnapshotInfo
    path: str
    users: int = 0
    used_at: float = 0.0


class Pace:
    """Lets so many bytes a second pass, all transfers together; 0 is no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def wait(self, size_bytes: int) -> None:
        """Return when `size_bytes` more may go."""
        if not self._bytes_per_s:
            return
        now = monotonic()
        self._free_at = max(self._free_at, now) + size_bytes / self._bytes_per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


@dataclass(eq=False)
class _Transfer:
    copy: Copy
    term: int
    task: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    have: Have | None = None

    @property
    def acknowledged(self) -> int:
        """The receiver has all before this offset."""
        return self.have.offset if self.have is not None else 0


class SnapshotSender:
    """The transfers of one node. Loop thread.

    `connect` dials a peer for one transfer, None if that fails; `report(peer, ok)` tells the core how it ended;
    `is_current(term)` says whether this node still leads in that term.
    """

    def __init__(
        self,
        *,
        connect: Callable[[NodeId], Awaitable[Pipe | None]],
        reader: Executor,
        pace: Pace,
        report: Callable[[NodeId, bool], None],
        is_current: Callable[[int], bool],
    ) -> None:
        self._connect = connect
        self._reader = reader
        self._pace = pace
        self._report = report
        self._is_current = is_current
        self._transfers: dict[NodeId, _Transfer] = {}
        self._failures: dict[NodeId, int] = {}
        self.sent_bytes = 0
        self.sent_count = 0
        self.times = Durations(SNAPSHOT_BUCKETS_S)

    def progress(self, peer: NodeId) -> tuple[int, int] | None:
        """Return (bytes that `peer` has, bytes there are) of the transfer to it, None if there is none."""
        transfer = self._transfers.get(peer)
        if transfer is None:
            return None
        return transfer.acknowledged, transfer.copy.info.size_bytes

    @property
    def active(self) -> bool:
        """Is anything under way?"""
        return bool(self._transfers)

    def start(self, peer: NodeId, term: int, copy: Copy) -> None:
        """Send `copy` to `peer`; the core has asked for it, and hears how it ends."""
        old = self._transfers.pop(peer, None)
        if old is not None and old.task is not None:
            old.task.cancel()  # of an earlier term: the core asks for one at a time
        transfer = _Transfer(copy, term)
        self._transfers[peer] = transfer
        copy.users += 1
        transfer.task = asyncio.get_running_loop().create_task(self._run(peer, transfer), name=f"snapshot-to-{peer}")

    def have(self, peer: NodeId, have: Have) -> None:
        """`peer` says how far it is."""
        transfer = self._transfers.get(peer)
        if transfer is not None and bytes.fromhex(transfer.copy.info.id) == have.id:
            transfer.have = have
            transfer.news.set()

    def stop(self) -> None:
        """End all transfers: this node leads no longer."""
        for transfer in self._transfers.values():
            if transfer.task is not None:
                transfer.task.cancel()

    async def close(self) -> None:
        """As `stop`, and wait for them."""
        self.stop()
        tasks = [transfer.task for transfer in self._transfers.values() if transfer.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, peer: NodeId, transfer: _Transfer) -> None:
        info = transfer.copy.info
        failures = self._failures.get(peer, 0)
        began = monotonic()
        ended = "given up: this node leads no longer"
        try:
            if failures:
                await asyncio.sleep(min(PAUSE_FIRST_S * 2 ** (failures - 1), PAUSE_MAX_S))
            pipe = await self._connect(peer)
            if pipe is None:
                ended = "not connected"
            else:
                try:
                    ended = await self._stream(peer, transfer, pipe)
                finally:
                    pipe.abort("the snapshot is over", tell=False)
                    await pipe.closed.wait()  # or the next one would find this channel taken
        except OSError as error:
            ended = f"cannot read the copy: {error}"
        finally:
            transfer.copy.users -= 1
            transfer.copy.used_at = monotonic()
            if self._transfers.get(peer) is transfer:
                del self._transfers[peer]
        if not self._is_current(transfer.term):
            return
        self._failures[peer] = 0 if not ended else failures + 1
        if not ended:
            self.sent_count += 1
            self.times.add(monotonic() - began)
            log.info(
                "snapshot sent peer=%s index=%d bytes=%d seconds=%.1f",
                peer,
                info.index,
                info.size_bytes,
                monotonic() - began,
            )
        else:
            log.warning("snapshot not sent peer=%s index=%d reason=%r", peer, info.index, ended)
        self._report(peer, not ended)

    async def _stream(self, peer: NodeId, transfer: _Transfer, pipe: Pipe) -> str:
        """Send what the peer lacks; return what went wrong, "" if nothing did."""
        info = transfer.copy.info
        id = bytes.fromhex(info.id)
        loop = asyncio.get_running_loop()
        kind, head, tail = encode_begin(transfer.term, info)
        if failure := _send(pipe, kind, head, tail):
            return failure
        watcher = loop.create_task(_tell_when_closed(pipe, transfer.news), name=f"snapshot-pipe-{peer}")
        file = await loop.run_in_executor(self._reader, os.open, transfer.copy.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            position = -1
            while True:
                try:
                    async with asyncio.timeout(STALL_S):
                        await transfer.news.wait()
                except TimeoutError:
                    return f"no answer for {STALL_S:.0f} s"
                transfer.news.clear()
                have = transfer.have
                if have is not None and have.state is HaveState.DONE:
                    return ""
                if have is not None and have.state is HaveState.REFUSED:
                    return "refused; the log of that node says why"
                if pipe.failure:
                    return pipe.failure
                if not self._is_current(transfer.term):
                    return "no longer leading"
                if have is None:
                    continue
                if position < 0:
                    position = have.offset
                    log.info("sending a snapshot peer=%s index=%d from_byte=%d of=%d", peer, info.index, position,
                             info.size_bytes)  # fmt: skip
                window = WINDOW_CHUNKS * info.chunk_bytes
                while position < info.size_bytes and position - transfer.acknowledged < window:
                    size = min(info.chunk_bytes, info.size_bytes - position)
                    await self._pace.wait(size)
                    chunk = await loop.run_in_executor(self._reader, os.pread, file, size, position)
                    if len(chunk) != size:
                        return f"the copy ends at {position + len(chunk)}"
                    kind, head = encode_chunk(id, position, crc32c(chunk))
                    if failure := _send(pipe, kind, head, chunk):
                        return failure
                    position += size
                    self.sent_bytes += size
        finally:
            watcher.cancel()
            os.close(file)


def _send(pipe: Pipe, kind: int, head: bytes, tail: bytes) -> str:
    """Return why it was not sent, "" if it was."""
    return "" if pipe.send(kind, head, [tail]) else pipe.failure or "not taken"


async def _tell_when_closed(pipe: Pipe, news: asyncio.Event) -> None:
    await pipe.closed.wait()
    news.set()
