"""Messages on their way out: a message of the core becomes a frame on the right connection.

An APP names entries by range. What is in memory leaves at once, without a copy; what is not is read from the WAL on a
thread, and until it has been read everything else for that peer waits behind it, so that appends keep their order. A
read that outlives its leadership is thrown away: the range may mean other entries by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

from smtpraft import fastlog
from smtpraft.cluster import wire
from smtpraft.consensus.messages import Message, MessageType
from smtpraft.errors import Stopped
from smtpraft.types import NodeId

URGENT: Final = frozenset(
    {
        MessageType.VOTE,
        MessageType.VOTE_RESP,
        MessageType.PRE_VOTE,
        MessageType.PRE_VOTE_RESP,
        MessageType.READ_INDEX,
        MessageType.READ_INDEX_RESP,
    }
)
"""Small and never to wait behind bulk: an election, a read."""

QUEUED_MAX: Final = 256  # appends that wait behind a read from disk, a peer; past it the peer counts as unreachable


class Sender(Protocol):
    """What is needed of the transport."""

    def send(self, peer: NodeId, type: int, head: bytes, spans: Sequence[bytes | memoryview] = ()) -> bool: ...

    def send_control(self, peer: NodeId, frame: bytes) -> bool: ...


class Outbound:
    """Sends for one node. `is_current(term)` says whether it still leads in `term`, `may_wait(peer)` whether the news
    of a commit index may wait a while; `unreachable` tells the core.

    `on_failure` hears of a log that cannot be read: to go on would leave a follower behind for ever, without a word.
    """

    def __init__(
        self,
        transport: Sender,
        log: fastlog.Log,
        *,
        read_entries: Callable[[int, int], bytes],
        reader: Executor,
        is_current: Callable[[int], bool],
        may_wait: Callable[[NodeId], bool],
        unreachable: Callable[[NodeId], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._transport = transport
        self._log = log
        self._read_entries = read_entries
        self._reader = reader
        self._is_current = is_current
        self._may_wait = may_wait
        self._unreachable = unreachable
        self._on_failure = on_failure
        self._waiting: dict[NodeId, deque[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: dict[NodeId, Message] = {}
        self._awaited: dict[NodeId, int] = {}
        self._commit_said: dict[NodeId, int] = {}  # in the last append that was sent, or held

    def send(self, message: Message) -> None:
        """Send `message` (no heartbeat, no answer to one) to its recipient, or tell the core that it is lost."""
        # A TIMEOUT_NOW keeps its place behind the appends before it: its recipient campaigns with what they bring.
        if message.type is not MessageType.APP and message.type is not MessageType.TIMEOUT_NOW:
            self._send_small(message)
            return
        queue = self._waiting.get(message.to)
        if queue is not None:
            if len(queue) >= QUEUED_MAX:
                self._unreachable(message.to)
            else:
                queue.append(message)
            return
        if message.type is MessageType.TIMEOUT_NOW:
            self._send_small(message)
            return
        if not message.entries:
            news = message.commit > self._commit_said.get(message.to, 0)
            if news and message.to not in self._awaited and self._may_wait(message.to):
                # It tells a new commit index and nothing else, and nobody there waits for that: the next append will
                # tell it, or the next heartbeat. The answer to it is saved too. (One without news is a probe.)
                self._held[message.to] = message
                self._commit_said[message.to] = message.commit
            else:
                self._send_append(message, [])
            return
        try:
            spans = self._log.spans(message.entries.first, message.entries.last)
        except fastlog.NotCached:
            self._waiting[message.to] = deque([message])
            self._read_for(message.to)
            return
        self._send_append(message, spans)

    def hurry(self, peer: NodeId, index: int) -> None:
        """Somebody at `peer` waits until `index` is committed: tell it that much without delay."""
        self._awaited[peer] = max(index, self._awaited.get(peer, 0))
        message = self._held.pop(peer, None)
        if message is not None and self._is_current(message.term):
            self._send_append(message, [])

    def close(self) -> None:
        """Stop reading for peers."""
        for task in self._tasks:
            task.cancel()

    def _send_small(self, message: Message) -> None:
        kind, head, spans = wire.encode_message(message)
        if message.type in URGENT:
            sent = self._transport.send_control(message.to, fastlog.encode_frame(kind, head))
        else:
            sent = self._transport.send(message.to, kind, head, spans)
        if not sent:
            self._unreachable(message.to)

    # Reading for peers: a thread, and a task that waits for it. The simulator has another way to wait.

    def _read_for(self, peer: NodeId) -> None:
        task = asyncio.get_running_loop().create_task(self._drain(peer), name=f"read-for-{peer}")
        self._tasks.add(task)
        task.add_done_callback(self._drained)

    async def _drain(self, peer: NodeId) -> None:
        """Send what waits for `peer`, in order, reading from disk what is not in memory."""
        loop = asyncio.get_running_loop()
        try:
            while (message := self._next_to_read(peer)) is not None:
                first, last = message.entries.first, message.entries.last
                self._was_read(message, *await loop.run_in_executor(self._reader, self._read, first, last))
        except (fastlog.Compacted, fastlog.Unavailable):
            self._unreachable(peer)  # the core probes again, from where the log now begins
        finally:
            del self._waiting[peer]

    def _next_to_read(self, peer: NodeId) -> Message | None:
        """Send what waits for `peer` up to the first append whose entries are not in memory; return that."""
        queue = self._waiting[peer]
        while queue:
            message = queue.popleft()
            if not self._is_current(message.term):
                continue
            if message.type is MessageType.TIMEOUT_NOW:
                self._send_small(message)
                continue
            if message.index < self._log.prev_index:
                continue
            if not message.entries:
                self._send_append(message, [])
                continue
            try:
                spans = self._log.spans(message.entries.first, message.entries.last)
            except fastlog.NotCached:
                return message
            self._send_append(message, spans)
        return None

    def _was_read(self, message: Message, block: bytes, last_term: int) -> None:
        """Send the entries that were read for `message`, if they are still those that it means."""
        if not self._is_current(message.term):
            return
        last = message.entries.last
        if last_term != self._log.term(last):
            raise fastlog.Unavailable(f"index {last} was replaced, and that is not written yet")
        self._send_append(message, [block])

    def _read(self, first: int, last: int) -> tuple[bytes, int]:
        block = self._read_entries(first, last)
        return block, fastlog.block_range(block)[3]

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Stopped):
            self._on_failure(error)

    def _send_append(self, message: Message, spans: Sequence[bytes | memoryview]) -> None:
        self._commit_said[message.to] = message.commit
        self._held.pop(message.to, None)  # this one tells the same commit index, or a later one
        if self._awaited and message.commit >= self._awaited.get(message.to, message.commit + 1):
            del self._awaited[message.to]
        kind, head, _ = wire.encode_message(message)
        if not self._transport.send(message.to, kind, head, spans):
            self._unreachable(message.to)
