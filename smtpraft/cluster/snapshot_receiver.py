"""The snapshot on its way in: one at a time, chunk by chunk to disk, on a thread, in the order of its arrival.

The core hears of it when all of it is here and sound, as etcd does it: until then it could only wait. A transfer that
breaks off leaves what it brought, also over a restart; the next BEGIN of the same copy goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from time import monotonic
from typing import Final, TypeVar

from smtpraft.cluster.durations import SNAPSHOT_BUCKETS_S, Durations
from smtpraft.cluster.snapshot_files import NO_SPACE, Part, SnapshotBroken, SnapshotFiles
from smtpraft.cluster.snapshot_format import (
    CHUNK_BYTES_MAX,
    FRAME_SNAPSHOT_BEGIN,
    Chunk,
    Have,
    HaveState,
    SnapshotInfo,
    decode_begin,
    decode_chunk,
)
from smtpraft.fastlog import CorruptFrame
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

T = TypeVar("T")

QUEUED_BYTES_MAX: Final = 4 * CHUNK_BYTES_MAX  # a sender that respects our answers has an eighth of it under way


class SnapshotReceiver:
    """What a node receives. Loop thread; `writer` is one thread.

    `answer(peer, have)` goes back to the sender. `wanted(term, info)` says whether a snapshot is of use: True, False
    (it is not: we are as far), or None (not now). `complete(peer, term, info)` is called when all of it is there.
    """

    def __init__(
        self,
        files: SnapshotFiles,
        writer: Executor,
        *,
        answer: Callable[[NodeId, Have], None],
        wanted: Callable[[int, SnapshotInfo], bool | None],
        complete: Callable[[NodeId, int, SnapshotInfo], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._files = files
        self._writer = writer
        self._answer = answer
        self._wanted = wanted
        self._complete = complete
        self._on_failure = on_failure
        self._queue: asyncio.Queue[tuple[NodeId, int, SnapshotInfo | Chunk]] = asyncio.Queue()
        self._queued_bytes = 0
        self._part: Part | None = None
        self._term = 0
        self._task: asyncio.Task[None] | None = None
        self.received_bytes = 0
        self.times = Durations(SNAPSHOT_BUCKETS_S)
        self._began = 0.0

    def start(self) -> None:
        """Begin to take frames."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="snapshot-receive")
        self._task.add_done_callback(self._ended)

    def progress(self) -> tuple[int, int] | None:
        """Return (bytes that are here, bytes there are) of what is being received; None: nothing is."""
        part = self._part
        return (part.offset, part.info.size_bytes) if part is not None else None

    async def close(self) -> None:
        """Take no more; what was received stays for the next run."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
        if self._part is not None:
            self._writer.submit(self._part.close)  # behind what it is still writing
            self._part = None

    def received(self, peer: NodeId, kind: int, head: bytes, tail: bytes) -> None:
        """Take a BEGIN or a CHUNK.

        Raises:
            CorruptFrame: it is neither, or more than our answers asked for.
        """
        if kind == FRAME_SNAPSHOT_BEGIN:
            term, info = decode_begin(head, tail)
            self._queue.put_nowait((peer, term, info))
            return
        chunk = decode_chunk(head, tail)
        self._queued_bytes += len(tail)
        if self._queued_bytes > QUEUED_BYTES_MAX:
            raise CorruptFrame(f"{self._queued_bytes} bytes of a snapshot that nobody asked for yet")
        self._queue.put_nowait((peer, 0, chunk))

    async def _run(self) -> None:
        while True:
            peer, term, item = await self._queue.get()
            try:
                if isinstance(item, Chunk):
                    await self._take(peer, item)
                else:
                    await self._begin(peer, term, item)
            except SnapshotBroken as error:
                log.warning("snapshot broken peer=%s reason=%r", peer, str(error))
                self._refuse(peer, item.id)
            except OSError as error:
                log.warning("snapshot cannot be stored peer=%s error=%r", peer, str(error))
                await self._drop(discard=error.errno in NO_SPACE)  # to give the room back to the log
                self._refuse(peer, item.id)
            finally:
                if isinstance(item, Chunk):
                    self._queued_bytes -= len(item.data)

    async def _begin(self, peer: NodeId, term: int, info: SnapshotInfo) -> None:
        wanted = self._wanted(term, info)
        if not wanted:
            have = Have(bytes.fromhex(info.id), 0, HaveState.REFUSED if wanted is None else HaveState.DONE)
            self._answer(peer, have)
            return
        await self._drop(discard=False)
        self._part = await self._on_disk(self._files.begin, info)
        self._term = term
        self._began = monotonic()
        log.info(
            "receiving a snapshot peer=%s index=%d term=%d bytes=%d from_byte=%d",
            peer,
            info.index,
            info.term,
            info.size_bytes,
            self._part.offset,
        )
        await self._go_on(peer)

    async def _take(self, peer: NodeId, chunk: Chunk) -> None:
        part = self._part
        if part is None or bytes.fromhex(part.info.id) != chunk.id:
            return  # of a transfer that another one has replaced
        await self._on_disk(part.write, chunk.offset, chunk.crc, chunk.data)
        self.received_bytes += len(chunk.data)
        await self._go_on(peer)

    async def _go_on(self, peer: NodeId) -> None:
        part = self._part
        assert part is not None
        id = bytes.fromhex(part.info.id)
        if not part.complete:
            self._answer(peer, Have(id, part.offset, HaveState.GO_ON))
            return
        self._part = None
        await self._on_disk(self._files.finish, part)
        self.times.add(monotonic() - self._began)
        log.info("received a snapshot peer=%s index=%d bytes=%d", peer, part.info.index, part.info.size_bytes)
        self._complete(peer, self._term, part.info)
        self._answer(peer, Have(id, part.offset, HaveState.DONE))

    async def _drop(self, *, discard: bool) -> None:
        """Let go of the part; `discard`: and of what it has brought."""
        part, self._part = self._part, None
        if part is not None:
            await self._on_disk(part.close)
        if discard:
            with contextlib.suppress(OSError):
                await self._on_disk(self._files.discard)

    async def _on_disk(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *arguments)

    def _refuse(self, peer: NodeId, id: str | bytes) -> None:
        self._answer(peer, Have(bytes.fromhex(id) if isinstance(id, str) else id, 0, HaveState.REFUSED))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
