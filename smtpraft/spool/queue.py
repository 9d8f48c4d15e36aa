"""What each command and each coming and going of a node does to the queue.

One batch of the log is one unit of work. The messages it concerns are loaded (or still in memory from an earlier
batch), changed as objects, and written in a few statements at the end: so a message costs a few microseconds, one that
came and went in the same batch costs no SQL at all, and the number of interpreter-lock hand-overs does not grow with
the batch.

Deterministic: what is in memory never shows, neither in a result nor in the tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from smtpraft.cluster.machine import Command, NodeDown, NodeUp
from smtpraft.spool import commands
from smtpraft.spool.commands import (
    DELETE,
    FLAG_8BITMIME,
    FLAG_BOUNCE,
    FLAG_CHUNKED,
    FLAG_SMTPUTF8,
    FLUSH,
    HOLD,
    RELEASE,
    STATE_NUMBERS,
    AcceptHeader,
    ChunkHeader,
    ForgetHeader,
    KeyHeader,
    OperatorHeader,
    OutcomeHeader,
    OutcomesHeader,
    Refusal,
    ResultHeader,
)
from smtpraft.spool.counters import Counters
from smtpraft.spool.keymap import change_key
from smtpraft.spool.message import Message
from smtpraft.spool.store import HISTORY_MESSAGES, HistoryRow, Store, recipient_row
from smtpraft.spool.touched import CHANGES_MAX, Touched
from smtpraft.spool.types import (
    ORDINAL_BITS,
    Changes,
    Recipient,
    RecipientState,
    id_of_number,
)
from smtpraft.types import NodeId

CACHED_RECIPIENTS_MAX: Final = 20_000  # some 20 MB of messages kept between batches
UPLOAD_MS_MAX: Final = 10 * 60 * 1000  # chunks are proposed within one commit deadline (seconds) of each other
HISTORY_RECIPIENTS: Final = 20  # of one message in the history: failures first

DONE: Final = "done"
DELETED: Final = "deleted"

_COUNT: Final = struct.Struct(">I")
_REFUSED: Final = {refusal: b"\x00" + bytes([refusal]) for refusal in Refusal}
_APPLIED: Final = b"\x01"
_DELIVERED: Final = STATE_NUMBERS[RecipientState.DELIVERED]


class Queue:
    """The queue within a transaction that the caller begins and ends.

    If the transaction is undone, throw this object away: its memory is ahead of the database.
    """

    def __init__(self, store: Store, node: NodeId, counters: Counters, copied_index: int) -> None:
        self.counters = counters
        self.copied_index = copied_index
        self.now_ms = 0
        """The machine's time; the caller sets it from each item's stamp."""
        self._store = store
        self._node = node
        self._nodes = store.nodes()
        self._messages: dict[int, Message] = {}
        self._cached_recipients = 0
        # What `write` has yet to write:
        self._dirty: dict[int, Message] = {}
        self._recipients: dict[tuple[int, int], Recipient] = {}  # changed ones of messages that are stored
        self._gone: dict[int, None] = {}
        self._gone_chunked: list[int] = []
        self._history: list[HistoryRow] = []
        self._touched = Touched()

    # Commands. Each returns (result for the proposer, effect for the digest).

    def command(self, item: Command) -> tuple[object, bytes]:
        """Apply one command; a bad one is refused, and changes nothing."""
        decoded = commands.decode(item.data)
        if isinstance(decoded, Refusal):
            return _refused(decoded)
        op, header, body_offset = decoded
        match header:
            case AcceptHeader():
                return self._accept(item, header, body_offset)
            case OutcomesHeader():
                return self._record(item, header, body_offset)
            case ChunkHeader():
                return self._chunk(item, header, body_offset)
            case ForgetHeader():
                count = self._store.forget_uploads("node = ? AND upload = ?", (item.node, header.upload))
                return count, _COUNT.pack(count)
            case OperatorHeader():
                return self._operate(item, op, header)
            case KeyHeader():
                return change_key(self._store, self.counters, item, op, header, body_offset)

    def _accept(self, item: Command, header: AcceptHeader, body_offset: int) -> tuple[object, bytes]:
        if not header.recipients:
            return _refused(Refusal.NO_RECIPIENTS)
        node = item.node
        message = Message.accepted(header, node, item.index, self.now_ms, body_offset, len(item.data) - body_offset)
        if header.chunk_count:
            uploaded = self._store.uploaded(node, header.upload)
            chunks = tuple(part for _, part in uploaded)
            complete = [place for place, _ in uploaded] == list(range(header.chunk_count))
            if not complete or sum(part.length for part in chunks) != header.chunk_bytes:
                self._store.forget_uploads("node = ? AND upload = ?", (node, header.upload))
                return _refused(Refusal.UPLOAD_INCOMPLETE)
            self._store.tie_chunks(node, header.upload, message.number)
            message.flags |= FLAG_CHUNKED
            message.size_bytes += header.chunk_bytes
            message.chunks = chunks
        self._add(message)
        self.counters.accepted += 1
        return id_of_number(message.number), _APPLIED

    def _add(self, message: Message) -> None:
        number = message.number
        self._messages[number] = self._dirty[number] = message
        self._cached_recipients += len(message.recipients)
        self.counters.add(message)
        if message.owner == self._node:
            self._touched.accepted[number] = None

    def _chunk(self, item: Command, header: ChunkHeader, body_offset: int) -> tuple[object, bytes]:
        # What was forgotten too early to know of this chunk (a deadline passed, a node died) ends here.
        self._store.forget_uploads("stamp_ms < ?", (self.now_ms - UPLOAD_MS_MAX,))
        if self._store.has_chunk(item.node, header.upload, header.number):
            return _refused(Refusal.CHUNK_REPEATED)
        body_bytes = len(item.data) - body_offset
        self._store.insert_chunk(
            (item.index, item.node, header.upload, header.number, self.now_ms, body_offset, body_bytes)
        )
        return body_bytes, _APPLIED

    def _record(self, item: Command, header: OutcomesHeader, body_offset: int) -> tuple[object, bytes]:
        if sum(outcome.bounce_bytes for outcome in header.outcomes) != len(item.data) - body_offset:
            return _refused(Refusal.MALFORMED)
        self._fetch(outcome.number for outcome in header.outcomes)
        counted: list[bool] = []
        effect = bytearray(_COUNT.pack(len(header.outcomes)))
        ordinal = 0
        for outcome in header.outcomes:
            message = self._messages.get(outcome.number)
            if outcome.bounce_bytes:
                ordinal += 1
            # A result of a node that lost the message, or of an ownership that is over, changes nothing.
            if (
                message is None
                or message.owner != item.node
                or message.epoch != outcome.epoch
                or not message.counts_for(outcome)
            ):
                counted.append(False)
                effect.append(0)
            else:
                counted.append(True)
                results = outcome.results
                if len(results) == len(message.recipients) == 1 and results[0].state == _DELIVERED:
                    effect.append(self._record_delivered(item, message, results[0]))
                else:
                    effect.append(self._record_one(item, message, outcome, ordinal, body_offset))
            body_offset += outcome.bounce_bytes
        return tuple(counted), bytes(effect)

    def _record_one(self, item: Command, message: Message, outcome: OutcomeHeader, ordinal: int, offset: int) -> int:
        """Record an outcome that counts; return its effect: 1 recorded, + 2 bounced, + 4 the message is done."""
        counters, number = self.counters, message.number
        self.counters.add(message, -1)
        changed = message.record(outcome, self.now_ms)
        gave_up = False
        for recipient in changed:
            match recipient.state:
                case RecipientState.DELIVERED:
                    counters.delivered += 1
                case RecipientState.DEFERRED:
                    counters.deferrals += 1
                case RecipientState.FAILED:
                    counters.failed += 1
                    gave_up = True
                case RecipientState.EXPIRED:
                    counters.expired += 1
                    gave_up = True
        effect = 1
        # Never an answer to a null reverse-path: that would be a bounce of a bounce (RFC 5321 §6.1).
        if gave_up and outcome.bounce_bytes and message.sender:
            effect |= 2
            self._bounce(item, message, outcome, ordinal, offset)
        if message.open_count:
            self._change(message, changed)
            self.counters.add(message)
            if message.owner == self._node:
                self._touched.deferred[number] = None
        else:
            effect |= 4
            self._end(item, message, DONE)
            if message.owner == self._node:
                self._touched.done[number] = None
        return effect

    def _record_delivered(self, item: Command, message: Message, result: ResultHeader) -> int:
        """As `_record_one`, of a message whose only recipient was delivered: a short way for nearly all."""
        counters = self.counters
        counters.add(message, -1)
        counters.delivered += 1
        before = message.recipients[0]
        message.recipients[0] = Recipient(
            0, before.address, RecipientState.DELIVERED, result.attempt, 0, self.now_ms, result.status, result.reply
        )
        message.open_count = 0
        self._end(item, message, DONE)
        if message.owner == self._node:
            self._touched.done[message.number] = None
        return 1 | 4

    def _bounce(self, item: Command, about: Message, outcome: OutcomeHeader, ordinal: int, offset: int) -> None:
        number = item.index << ORDINAL_BITS | ordinal
        flags = FLAG_BOUNCE | (outcome.bounce_flags & (FLAG_SMTPUTF8 | FLAG_8BITMIME))
        size = outcome.bounce_bytes
        recipients = [Recipient(0, about.sender)]
        node = item.node
        self._add(
            Message(
                number,
                node,
                item.index,
                0,
                0,
                flags,
                self.now_ms,
                size,
                offset,
                size,
                node,
                "",
                "",
                "",
                "",
                recipients,
                1,
            )
        )
        self.counters.bounces += 1

    def _operate(self, item: Command, op: int, header: OperatorHeader) -> tuple[object, bytes]:
        """Result: (messages changed, the id to go on after; 0 = that was all)."""
        go_on = 0
        if header.numbers is None:
            self.write()
            numbers = self._store.numbers_between(header.after, header.to, header.limit)
            if len(numbers) == header.limit and numbers:
                go_on = numbers[-1]
        else:
            numbers = list(dict.fromkeys(header.numbers))
        self._fetch(numbers)
        count = 0
        for number in numbers:
            message = self._messages.get(number)
            if message is not None:
                count += self._operate_one(item, op, message)
        return (count, go_on), _COUNT.pack(count)

    def _operate_one(self, item: Command, op: int, message: Message) -> bool:
        touched, number = self._touched, message.number
        ours = message.owner == self._node
        if op == DELETE:
            self.counters.add(message, -1)
            self._end(item, message, DELETED)
            self.counters.deleted += 1
            if ours:
                touched.deleted[number] = None
            return True
        if op == FLUSH:
            waiting = [r for r in message.recipients if not r.state.final and r.next_attempt_ms]
            if message.held or not waiting:
                return False
            self.counters.add(message, -1)
            changed = [msgspec.structs.replace(recipient, next_attempt_ms=0) for recipient in waiting]
            for recipient in changed:
                message.recipients[recipient.ordinal] = recipient
            message.reschedule()
            self._change(message, changed)
            if ours:
                touched.flushed[number] = None
        else:
            assert op in (HOLD, RELEASE), f"op {op}"
            held = int(op == HOLD)
            if message.held == held:
                return False
            self.counters.add(message, -1)
            message.held = held
            self._change(message, ())
            if ours:
                (touched.held if held else touched.released)[number] = None
                (touched.released if held else touched.held).pop(number, None)
        self.counters.add(message)
        return True

    def _change(self, message: Message, recipients: Sequence[Recipient]) -> None:
        self._dirty[message.number] = message
        if message.stored:
            for recipient in recipients:
                self._recipients[message.number, recipient.ordinal] = recipient

    def _end(self, item: Command, message: Message, how: str) -> None:
        """Take a message out of the queue. It is uncounted already; its state no longer matters but to the history."""
        number = message.number
        del self._messages[number]
        self._cached_recipients -= len(message.recipients)
        self._dirty.pop(number, None)
        if message.stored:
            self._gone[number] = None
        if message.flags & FLAG_CHUNKED:
            self._gone_chunked.append(number)
        recipients = message.recipients
        if len(recipients) > HISTORY_RECIPIENTS:
            told = sorted(recipients, key=lambda r: (r.state is RecipientState.DELIVERED, r.ordinal))
            recipients = told[:HISTORY_RECIPIENTS]
        self._history.append(
            (
                self.counters.ended % HISTORY_MESSAGES,
                number,
                item.index,
                item.node,
                how,
                message.accepted_ms,
                self.now_ms,
                message.sender,
                message.size_bytes,
                int(message.flags & FLAG_BOUNCE != 0),
                _encode_recipients(recipients).decode(),
            )
        )
        self.counters.ended += 1

    # Nodes

    def node_up(self, item: NodeUp) -> tuple[object, bytes]:
        """Record the node; it starts with no upload under way, and takes what nobody could take before."""
        self._set_node(item.node, item.index, up=True)
        self._store.forget_uploads("node = ?", (item.node,))
        moved = 0
        for owner in sorted(self.counters.owners):
            # It went down when nobody was there to take over.
            if not self._nodes.get(NodeId(owner), (0, True))[1]:
                moved += self._move(NodeId(owner), (item.node,), item.index)
        return None, _COUNT.pack(moved)

    def node_down(self, item: NodeDown) -> tuple[object, bytes]:
        """Give the node's messages to the live ones in turn; they keep their owner if there is none."""
        incarnation = self._nodes.get(item.node, (0, False))[0]
        self._set_node(item.node, incarnation, up=False)
        self._store.forget_uploads("node = ?", (item.node,))
        live = tuple(node for node in item.live if node != item.node)
        moved = self._move(item.node, live, item.index) if live else 0
        return None, _COUNT.pack(moved)

    def _set_node(self, node: NodeId, incarnation: int, *, up: bool) -> None:
        self._nodes[node] = (incarnation, up)
        self._store.set_node(node, incarnation, up)

    def _move(self, owner: NodeId, live: tuple[NodeId, ...], epoch: int) -> int:
        """Move all messages of `owner`, under a new epoch. The tables do it: there may be a million."""
        count = self.counters.owners.get(owner, 0)
        if not count:
            return 0
        self.write()
        if owner == self._node:
            self._touched.tell(self._touched.moved_away, self._store.numbers_owned(owner, CHANGES_MAX + 1))
        self._store.move(owner, live, epoch)
        for number in [number for number, message in self._messages.items() if message.owner == owner]:
            self._forget(number)
        self.counters.own(owner, -count)
        for place, node in enumerate(live):
            self.counters.own(node, (count - place + len(live) - 1) // len(live))
        self.counters.moved += count
        if self._node in live:
            numbers = self._store.moved_to(self._node, epoch, CHANGES_MAX + 1)
            if self._touched.tell(self._touched.moved_here, numbers):
                self._fetch(numbers)
        return count

    # Memory and tables

    def _fetch(self, numbers: Iterable[int]) -> None:
        """Bring the messages into memory; those that do not exist stay out of it."""
        messages = self._messages
        gone = self._gone
        missing = [number for number in dict.fromkeys(numbers) if number not in messages and number not in gone]
        if missing:
            for message in self._store.load(missing):
                messages[message.number] = message
                self._cached_recipients += len(message.recipients)

    def _forget(self, number: int) -> None:
        self._cached_recipients -= len(self._messages.pop(number).recipients)

    def write(self) -> None:
        """Write what has changed in memory."""
        store = self._store
        if self._dirty:
            messages = list(self._dirty.values())
            rows = [
                recipient_row(message.number, recipient)
                for message in messages
                if not message.stored
                for recipient in message.recipients
            ]
            if self._recipients:
                dirty = self._dirty
                rows += [
                    recipient_row(number, recipient)
                    for (number, _), recipient in self._recipients.items()
                    if number in dirty
                ]
            store.upsert_messages(messages)
            store.upsert_recipients(rows)
            for message in messages:
                message.stored = True
            self._dirty.clear()
        self._recipients.clear()
        if self._gone:
            gone = list(self._gone)
            store.delete_messages(gone)
            not_copied = (self.copied_index + 1) << ORDINAL_BITS
            store.delete_bodies([number for number in gone if number < not_copied])
            self._gone.clear()
        if self._gone_chunked:
            store.delete_chunks_of(self._gone_chunked)
            self._gone_chunked.clear()
        if self._history:
            store.upsert_history(self._history)
            self._history.clear()

    def take_changes(self, applied_index: int) -> Changes | None:
        """Return what the batch means for the delivery on this node (None: nothing), and begin the next batch."""
        touched, self._touched = self._touched, Touched()
        changes = touched.changes(applied_index, self._node, self._messages)
        self._evict()
        return changes

    def _evict(self) -> None:
        """Let go of the messages that came into memory first, as long as there are too many."""
        assert not self._dirty, "a changed message must be written before it is let go"
        while self._cached_recipients > CACHED_RECIPIENTS_MAX and self._messages:
            self._forget(next(iter(self._messages)))


def _refused(refusal: Refusal) -> tuple[object, bytes]:
    return refusal, _REFUSED[refusal]


_encode_recipients: Final = msgspec.json.Encoder().encode
