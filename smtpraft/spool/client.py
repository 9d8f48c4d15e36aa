"""The typed face of the replicated mail queue: what `smtp`, `delivery`, `admin` and `cli` call, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.spool import commands
from smtpraft.spool.commands import OPERATOR_BATCH_MAX, AcceptHeader, NewerCommand, Refusal
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.message import Message
from smtpraft.spool.reports import Committed, Reports
from smtpraft.spool.scrub import scrub
from smtpraft.spool.types import (
    CHUNK_BYTES,
    ORDINAL_BITS,
    ORDINAL_MAX,
    WHENEVER_MS,
    Changes,
    EndedMessage,
    Envelope,
    MessageId,
    MessageInfo,
    MessageNotFound,
    Outcome,
    id_of_entry,
    number_of,
)
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

UPLOAD_WINDOW: Final = 4  # chunks of one message under way at a time: about 4 MiB
OPERATOR_DEADLINE_S: Final = 10.0
GATHER_S: Final = 0.01
"""So long committed messages wait for company before they are told of: their delivery takes processor time from the
next message's `250`, and together they take less."""
READ_DEADLINE_S: Final = 10.0

_T = TypeVar("_T")

Submitted = Callable[[MessageId | None, Exception | None], None]
"""Hears what became of a submitted message: its id, or an error."""


class Replicator(Protocol):
    """What the client needs of `cluster.Node`."""

    async def replicate(
        self,
        command: bytes,
        *,
        deadline_s: float = 10.0,
        foreseen: Callable[[int], object] | None = None,
        committed: Callable[[], object] | None = None,
    ) -> object:
        """Return the machine's result, or, as soon as the command is certain to be applied, `foreseen` of its index.

        Or call `committed` then, and return the machine's result when it comes. Raises NotReplicated, OutcomeUnknown or
        Stopped.
        """

    def propose(
        self,
        command: bytes,
        done: Callable[[object, Exception | None], None],
        *,
        deadline_s: float = 10.0,
        foreseen: Callable[[int], object] | None = None,
    ) -> None:
        """The same with a callback, which hears the result or the error; what is wrong at once is raised instead."""

    async def read_index(self, *, deadline_s: float = 10.0) -> int:
        """Return once this node has applied everything that was committed when it was called."""

    async def read_entry(self, index: int) -> bytes:
        """Return the command in the entry at `index`, verified. Raises a LookupError once the log has forgotten it."""


class SpoolClient:
    """The queue, for code on the event loop. One per node."""

    def __init__(self, node: Replicator, machine: SpoolMachine) -> None:
        self._node = node
        self._machine = machine
        self._subscribers: list[Callable[[Changes], None]] = []
        self._reports = Reports(
            lambda command, deadline_s, committed: node.replicate(command, deadline_s=deadline_s, committed=committed)
        )
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._committed_subscribers: list[Callable[[Sequence[MessageInfo]], None]] = []
        self._committed: list[Message] = []

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver changes to subscribers on `loop` from now on. Call once, before the node starts."""
        self._loop = loop

        def hand_over(changes: Changes) -> None:
            loop.call_soon_threadsafe(self._publish, changes)

        self._machine.on_changes = hand_over

    async def close(self) -> None:
        """Stop the tasks; changes are told no more. Call after delivery has stopped, before the node stops."""
        self._machine.on_changes = None
        self._loop = None
        self._committed.clear()
        await self._reports.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def accept(self, envelope: Envelope, content: Sequence[bytes], *, deadline_s: float) -> MessageId:
        """Queue a message on a majority of the nodes; return its id, which the `250` may show.

        `content` is the final message, `Received:` included, in pieces of any size.

        Raises:
            NotReplicated: it is not queued and never will be; the sender may be told 4yz.
            OutcomeUnknown: it may be queued; say nothing, close the connection.
            Stopped: nothing was handed to the cluster.
            ValueError: there is no recipient, or an address that is no text.
        """
        if fits_one_entry(envelope, content):
            command = commands.encode_accept(envelope, content)
            answer = await self._node.replicate(command, deadline_s=deadline_s, foreseen=self._foreseen(command))
        else:
            answer = await self._accept_long(envelope, content, deadline_s)
        return _accepted_id(answer)

    def submit(self, envelope: Envelope, content: Sequence[bytes], *, deadline_s: float, done: Submitted) -> None:
        """As `accept`, for callbacks: a message that fits one entry costs no task and no future.

        `done` is called once, with the id or with what `accept` would raise; perhaps before this returns, and often in
        the middle of the node's own work: it must be quick, must not raise, and submits nothing itself.
        """
        answered = answering(done)
        try:
            if fits_one_entry(envelope, content):
                header = commands.accept_header(envelope)
                command = commands.encode_acceptance(header, content)
                foreseen = self._foreseen_of(header, sum(map(len, content)), len(command))
                self._node.propose(command, answered, deadline_s=deadline_s, foreseen=foreseen)
                return
        except Exception as error:
            done(None, error)
            return

        def over(task: asyncio.Task[object]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                answered(None, OutcomeUnknown("the queue was closed before the message was committed"))
            elif (error := task.exception()) is None:
                answered(task.result(), None)
            else:
                answered(None, error if isinstance(error, Exception) else OutcomeUnknown(repr(error)))

        task = asyncio.create_task(self._accept_long(envelope, content, deadline_s), name="spool-accept")
        self._tasks.add(task)
        task.add_done_callback(over)

    def submit_encoded(self, command: bytes, *, deadline_s: float, done: Submitted) -> None:
        """As `submit`, with what `encode_message` returned. What is no such command is not replicated."""
        try:
            foreseen = self._foreseen(command)
            if foreseen is None:
                raise NotReplicated("a command that brings no whole message")
            self._node.propose(command, answering(done), deadline_s=deadline_s, foreseen=foreseen)
        except NewerCommand as error:
            done(None, NotReplicated(str(error)))
        except Exception as error:
            done(None, error)

    def _foreseen(self, command: bytes) -> Callable[[int], object] | None:
        """Return what foresees the id of the message in `command`, and tells of it; None if that is no whole message.

        A command that can be read is refused by nothing in the queue: the id is certain with the index.
        """
        decoded = commands.decode(command)
        if isinstance(decoded, Refusal):
            return None
        _, header, body_offset = decoded
        if not isinstance(header, AcceptHeader) or header.upload or header.chunk_count or not header.recipients:
            return None
        return self._foreseen_of(header, len(command) - body_offset, len(command))

    def _foreseen_of(self, header: AcceptHeader, body_bytes: int, command_bytes: int) -> Callable[[int], object]:
        """As `_foreseen`, of a command of so many bytes, which end with those of the body."""
        machine = self._machine
        body_offset = command_bytes - body_bytes

        def foreseen(index: int) -> MessageId:
            if self._loop is not None and self._committed_subscribers:
                if not self._committed:
                    self._loop.call_later(GATHER_S, self._publish_committed)
                now_ms = machine.now_ms()
                self._committed.append(
                    Message.accepted(header, machine.node_id, index, now_ms, body_offset, body_bytes)
                )
            return id_of_entry(index)

        return foreseen

    async def _accept_long(self, envelope: Envelope, content: Sequence[bytes], deadline_s: float) -> object:
        """Send the chunks, a few at a time; then the envelope, with the last of them if there is room for it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_s
        upload = secrets.randbits(62) | 1
        chunks = _chunks(content)
        body = next(chunks)
        chunk_count = chunk_bytes = 0
        under_way: deque[asyncio.Task[object]] = deque()

        async def send(number: int, part: list[memoryview]) -> object:
            command = commands.encode_chunk(upload, number, part)
            return await self._node.replicate(command, deadline_s=deadline - loop.time())

        async def begin(part: list[memoryview]) -> None:
            nonlocal chunk_count, chunk_bytes
            if len(under_way) == UPLOAD_WINDOW:
                await one_done()
            under_way.append(asyncio.create_task(send(chunk_count, part), name="spool-chunk"))
            chunk_count += 1
            chunk_bytes += sum(map(len, part))

        async def one_done() -> None:
            answer = await under_way.popleft()
            if isinstance(answer, Refusal):
                raise NotReplicated(f"part of the message refused: {answer.name}")

        try:
            for following in chunks:
                await begin(body)
                body = following
            if _envelope_bytes(envelope) + sum(map(len, body)) > CHUNK_BYTES:
                await begin(body)
                body = []
            while under_way:
                await one_done()
            command = commands.encode_accept(
                envelope, body, upload=upload, chunk_count=chunk_count, chunk_bytes=chunk_bytes
            )
        except BaseException as error:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            self._forget(upload)
            # The envelope was not proposed, so whatever became of the parts, there will be no message.
            if isinstance(error, OutcomeUnknown):
                raise NotReplicated("a part of the message was not committed in time") from error
            raise
        return await self._node.replicate(command, deadline_s=deadline - loop.time())

    def _forget(self, upload: int) -> None:
        """Let the machine forget the chunks of an upload. It would in some minutes anyway: one try is enough."""

        async def forget() -> object:
            try:
                await self._node.replicate(commands.encode_forget_upload(upload), deadline_s=OPERATOR_DEADLINE_S)
            except (NotReplicated, OutcomeUnknown, Stopped) as error:
                log.debug("upload not forgotten yet error=%s", type(error).__name__)
            return None

        task: asyncio.Task[object] = asyncio.create_task(forget(), name="spool-forget-upload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def report(self, outcomes: Sequence[Outcome], committed: Committed | None = None) -> list[bool]:
        """Record outcomes; return which of them counted (False: stale, the message is not ours or not there any more).

        Everything that arrives while one report is under way goes into the next one. It is repeated until the
        cluster has taken it, which is harmless (see `Result.attempt`): but an outcome that was recorded by the
        first try of two is False too. `Changes` tells what is so.

        `committed` hears, perhaps bit by bit, of how many it is certain by now that they will be recorded, all in all
        of each once; which of them counted is known some time later.

        Raises:
            Stopped: the node stops; whether they were recorded is not known.
            ValueError: an outcome is out of bounds; none of them was handed to the cluster.
        """
        return await self._reports.report(outcomes, committed)

    async def hold(self, ids: Sequence[MessageId] | None) -> int:
        """Deliver these messages (None: all) no more until released. Return how many that changed."""
        return await self._operate(commands.HOLD, ids)

    async def release(self, ids: Sequence[MessageId] | None) -> int:
        """Let held messages go. Return how many that changed."""
        return await self._operate(commands.RELEASE, ids)

    async def delete(self, ids: Sequence[MessageId] | None) -> int:
        """Remove messages for good, without a bounce. Return how many were there."""
        return await self._operate(commands.DELETE, ids)

    async def flush(self, ids: Sequence[MessageId] | None) -> int:
        """Make deferred recipients due now (held messages stay held). Return how many messages that changed."""
        return await self._operate(commands.FLUSH, ids)

    async def _operate(self, op: int, ids: Sequence[MessageId] | None) -> int:
        """Propose in batches, so that no command keeps the others of the cluster waiting.

        Raises:
            NotReplicated, OutcomeUnknown, Stopped: some batches may have been applied before.
            ValueError: an id is none.
        """
        if ids is None:
            return await self._operate_all(op)
        numbers = [number_of(message) for message in ids]
        count = 0
        for at in range(0, len(numbers), OPERATOR_BATCH_MAX):
            command = commands.encode_operator(op, numbers[at : at + OPERATOR_BATCH_MAX])
            count += (await self._propose_operator(command))[0]
        return count

    async def _operate_all(self, op: int) -> int:
        """All: what is in the queue now, not what comes while we are at it."""
        index = await self._node.read_index(deadline_s=READ_DEADLINE_S)
        to = index << ORDINAL_BITS | ORDINAL_MAX
        count = after = 0
        while True:
            changed, after = await self._propose_operator(
                commands.encode_operator(op, None, after, to, OPERATOR_BATCH_MAX)
            )
            count += changed
            if not after:
                return count

    async def _propose_operator(self, command: bytes) -> tuple[int, int]:
        answer = await self._node.replicate(command, deadline_s=OPERATOR_DEADLINE_S)
        assert isinstance(answer, tuple), f"an operator's command was refused: {answer!r}"
        changed, after = answer
        return changed, after

    async def list_messages(
        self, *, limit: int, after: MessageId | None = None, linearizable: bool = True
    ) -> list[MessageInfo]:
        """Return up to `limit` queued messages with an id above `after`, in the order of acceptance.

        Linearizable: as of a moment after the call (a round to the leader); otherwise what this node knows.
        """
        number = number_of(after) if after else 0
        if linearizable:
            await self._node.read_index(deadline_s=READ_DEADLINE_S)
        return await self._read(self._machine.reader.page, number, limit)

    async def get(self, message: MessageId, *, linearizable: bool = True) -> MessageInfo | None:
        """Return a queued message, or None if it is not (or no longer) there."""
        number = number_of(message)
        if linearizable:
            await self._node.read_index(deadline_s=READ_DEADLINE_S)
        return await self._read(self._machine.reader.get, number)

    async def ended(self, message: MessageId) -> EndedMessage | None:
        """Return how a message left the queue, if it is among the last 10,000 to do so. What this node knows."""
        return await self._read(self._machine.reader.ended, number_of(message))

    async def body(self, message: MessageId | MessageInfo) -> list[bytes]:
        """Return the bytes of a message, in parts of up to about 1 MiB. Give the info if you have it: it saves a query.

        Raises:
            MessageNotFound: it has left the queue.
            SpoolDamaged: its copy is gone, or is not what was written.
        """
        if isinstance(message, str):
            info = await self._read(self._machine.reader.get, number_of(message))
            if info is None:
                raise MessageNotFound(message)
            message = info
        pieces: list[bytes] = []
        for part in message.parts:
            try:
                command = await self._node.read_entry(part.number >> ORDINAL_BITS)
            except LookupError:
                # Copied before the log forgot it, and the copy goes with the message.
                copies = await self._read(self._machine.reader.bodies, [part])
                if part.number not in copies:
                    if await self._read(self._machine.reader.get, number_of(message.id)) is not None:
                        await self._read(self._machine.reader.lacks, part)
                    raise MessageNotFound(message.id) from None
                pieces.append(copies[part.number])
            else:
                piece = command[part.offset : part.offset + part.length]
                assert len(piece) == part.length, f"{message.id}: entry {part.number >> ORDINAL_BITS} is too short"
                pieces.append(piece)
        return pieces

    async def owned(
        self, node: NodeId, after: MessageId | None, limit: int, due_by_ms: int = WHENEVER_MS
    ) -> list[MessageInfo]:
        """Return up to `limit` messages that `node` may deliver, with ids above `after`, in order; fewer: that is all.

        Not what is held, nor what is due later than `due_by_ms`. For start and take-over. What this node knows.
        """
        found: list[MessageInfo] = []
        at: int | None = number_of(after) if after else 0
        while at is not None and len(found) < limit:
            page, at = await self._read(self._machine.reader.owned, node, at, limit - len(found), due_by_ms)
            found += page
        return found

    async def due(self, node: NodeId, until_ms: int, limit: int) -> list[MessageInfo]:
        """Return up to `limit` deferred, not held messages of `node` due by `until_ms`, soonest first."""
        return await self._read(self._machine.reader.due, node, until_ms, limit)

    async def scrub(self, bytes_per_s: int) -> None:
        """Read the queue's database through and verify it, at that rate, again and again, until cancelled."""
        reader = self._machine.reader
        with contextlib.suppress(Stopped):
            await scrub(lambda: self._read(reader.refresh), lambda place: self._read(reader.scrub, place), bytes_per_s)

    async def _read(self, query: Callable[..., _T], *arguments: object) -> _T:
        reader = self._machine.reader
        if reader.closed:
            raise Stopped("the queue is closed")
        return await asyncio.get_running_loop().run_in_executor(reader.executor, query, *arguments)

    def counts(self) -> dict[str, int]:
        """Return what the queue holds, without touching the disk.

        `queued`, `deferred`, `held` (messages by state), `messages` (their sum), `recipients` (open ones), `bytes`,
        `owned` (messages of this node). Since the queue began: `accepted`, `bounces`, `ended`, `deleted`, `moved`
        (messages); `delivered`, `failed`, `expired`, `deferrals` (recipients).
        """
        return self._machine.counts()

    async def oldest_age_s(self) -> float:
        """Return the age of the oldest queued message in seconds, 0 if there is none. What this node knows."""
        oldest_ms = await self._read(self._machine.reader.oldest_ms)
        return 0.0 if oldest_ms is None else max(0.0, (self._machine.now_ms() - oldest_ms) / 1000)

    def now_ms(self) -> int:
        """Return the machine's time now: the last stamp applied plus what has passed here since.

        Compare schedules with it.
        """
        return self._machine.now_ms()

    def subscribe(self, callback: Callable[[Changes], None]) -> None:
        """Call `callback` on the loop after each applied batch that changed something for this node.

        It must not block. It hears of a batch before whoever waits for a command in it.
        """
        self._subscribers.append(callback)

    def subscribe_committed(self, callback: Callable[[Sequence[MessageInfo]], None]) -> None:
        """Call `callback` on the loop with messages of this node's as soon as they are certain to be queued.

        It must not block. It hears of a message, whose time of acceptance may be some milliseconds off, before
        `Changes` tells of it; not of one that came in parts, nor, while this node catches up, of any. When the machine
        has it, `Changes` tells of it as if this had not been, and of nothing if it has left the queue by then.
        """
        self._committed_subscribers.append(callback)

    def _publish_committed(self) -> None:
        if self._committed:  # what changed meanwhile may have had it told before its time
            infos = [message.info() for message in self._committed]
            self._committed.clear()
            for callback in self._committed_subscribers:
                callback(infos)

    def _publish(self, changes: Changes) -> None:
        # First: what is told of a message after it has left the queue would be delivered once more.
        self._publish_committed()
        for callback in self._subscribers:
            callback(changes)


def fits_one_entry(envelope: Envelope, content: Sequence[bytes]) -> bool:
    """May a message be one command, or must it be brought in chunks?"""
    return _envelope_bytes(envelope) + sum(map(len, content)) <= CHUNK_BYTES


def encode_message(envelope: Envelope, content: Sequence[bytes]) -> bytes | None:
    """Return the command that queues a message, or None if it is too long for one entry of the log.

    Raises:
        ValueError: an address or name cannot be written in UTF-8, or there is no recipient.
    """
    return commands.encode_accept(envelope, content) if fits_one_entry(envelope, content) else None


def answering(done: Submitted) -> Callable[[object, Exception | None], None]:
    """Return what is to hear the queue's answer to an acceptance; it tells `done` the id, or why there is none."""

    def answered(answer: object, error: Exception | None) -> None:
        try:
            message = _accepted_id(answer) if error is None else None
        except Exception as refused:
            message, error = None, refused
        done(message, error)

    return answered


def _accepted_id(answer: object) -> MessageId:
    if isinstance(answer, Refusal):
        raise NotReplicated(f"refused: {answer.name}")
    assert isinstance(answer, str), f"answer to an acceptance: {answer!r}"
    return MessageId(answer)


def _envelope_bytes(envelope: Envelope) -> int:
    """Return about how long an envelope is in a command; a thousand recipients may take a quarter of a megabyte."""
    return sum(map(len, envelope.recipients)) * (4 if envelope.smtputf8 else 1)


def _chunks(content: Sequence[bytes]) -> Iterator[list[memoryview]]:
    """Yield the content in lists of pieces, each list CHUNK_BYTES long but the last; at least one list."""
    gathered: list[memoryview] = []
    room = CHUNK_BYTES
    for data in content:
        piece = memoryview(data)
        while piece:
            if room == 0:
                yield gathered
                gathered, room = [], CHUNK_BYTES
            gathered.append(piece[:room])
            piece, taken = piece[room:], len(piece[:room])
            room -= taken
    yield gathered
