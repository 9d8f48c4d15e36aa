"""A log of one process, in place of the cluster: it keeps items, and gives them to real machines in batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import apsw

from smtpraft.cluster.machine import Command, Item, NodeDown, NodeUp, Skipped
from smtpraft.errors import NotReplicated
from smtpraft.fastlog import Compacted
from smtpraft.spool import commands
from smtpraft.spool.machine import SpoolMachine
from smtpraft.spool.types import Envelope, MessageId, MessageInfo, Outcome, Result, index_of, number_of
from smtpraft.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
START_MS = 1_700_000_000_000

ENVELOPE = Envelope("alice@example.org", ("bob@example.net",), client_host="192.0.2.1", helo="mail.example.org")
TWO = Envelope("alice@example.org", ("bob@example.net", "carol@example.net"))
NULL_SENDER = Envelope("", ("alice@example.org",))

LOCAL_TABLES = ("bodies",)  # each node compacts when it likes
LOCAL_COLUMNS = {"meta": ("copied_index", "syncs", "copied_sum")}


class Journal:
    """Items in the order of their indexes, from 1; a second apart unless told otherwise."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.stamp = START_MS

    def _facts(self, data: bytes) -> tuple[int, int, int, int]:
        self.stamp += 1000
        return len(self.items) + 1, 1, self.stamp, zlib.crc32(data)

    def command(self, data: bytes, node: NodeId = A) -> Command:
        item = Command(*self._facts(data), node, data)
        self.items.append(item)
        return item

    def up(self, node: NodeId) -> NodeUp:
        item = NodeUp(*self._facts(node.encode()), node)
        self.items.append(item)
        return item

    def down(self, node: NodeId, *live: NodeId) -> NodeDown:
        item = NodeDown(*self._facts(node.encode()), node, live)
        self.items.append(item)
        return item

    def skipped(self) -> Skipped:
        item = Skipped(*self._facts(b""))
        self.items.append(item)
        return item

    def read_entry(self, index: int) -> bytes:
        item = self.items[index - 1]
        assert isinstance(item, Command)
        return item.data


class Bench:
    """A journal and one machine that has applied all of it."""

    def __init__(self, path: str, node: NodeId = A) -> None:
        self.journal = Journal()
        self.machine = SpoolMachine(path, node)
        self.machine.read_entry = self.journal.read_entry
        self.machine.open()

    def do(self, data: bytes, node: NodeId = A) -> object:
        return self.machine.apply([self.journal.command(data, node)], b"")[0]

    def up(self, node: NodeId) -> None:
        self.machine.apply([self.journal.up(node)], b"")

    def down(self, node: NodeId, *live: NodeId) -> None:
        self.machine.apply([self.journal.down(node, *live)], b"")

    def accept(
        self, envelope: Envelope = ENVELOPE, body: bytes = b"Subject: x\r\n\r\nhello\r\n", node: NodeId = A
    ) -> MessageId:
        answer = self.do(commands.encode_accept(envelope, [body]), node)
        assert isinstance(answer, str), answer
        return MessageId(answer)

    def get(self, message: MessageId) -> MessageInfo | None:
        return self.machine.reader.get(number_of(message))

    def there(self, message: MessageId) -> MessageInfo:
        info = self.get(message)
        assert info is not None, message
        return info

    def queue(self) -> list[MessageInfo]:
        return self.machine.reader.page(0, 10**6)

    def report(self, *outcomes: Outcome, node: NodeId = A) -> tuple[bool, ...]:
        answer = self.do(outcomes_command(*outcomes), node)
        assert isinstance(answer, tuple), answer
        return answer

    def outcome(self, message: MessageId, *results: Result, bounce: bytes = b"", node: NodeId = A) -> bool:
        info = self.get(message)
        epoch = info.epoch if info else index_of(message)
        return self.report(Outcome(message, epoch, results, bounce), node=node)[0]


def outcomes_command(*outcomes: Outcome) -> bytes:
    return commands.encode_outcomes(
        [commands.outcome_header(outcome) for outcome in outcomes], [o.bounce for o in outcomes if o.bounce]
    )


def replay(machine: SpoolMachine, items: Sequence[Item], sizes: Iterable[int] = ()) -> list[object]:
    """Give the items that `machine` has not applied to it, in batches of `sizes`, then the rest one by one."""
    applied = machine.digest_now()[1]
    todo = list(items[applied:])
    results: list[object] = []
    for size in sizes:
        if todo[:size]:
            results += machine.apply(todo[:size], b"notes")
            todo = todo[size:]
    for item in todo:
        results += machine.apply([item], b"notes")
    return results


def tables(path: str) -> dict[str, list[tuple[object, ...]]]:
    """Return what every node must have alike."""
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    names = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    ]
    content = {}
    for name in names:
        if name in LOCAL_TABLES:
            continue
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
        chosen = [column for column in columns if column not in LOCAL_COLUMNS.get(str(name), ())]
        content[str(name)] = connection.execute(
            f"SELECT {', '.join(map(str, chosen))} FROM {name} ORDER BY 1, 2"  # noqa: S608
        ).fetchall()
    connection.close()
    return content


def recounted(path: str, node: NodeId) -> dict[str, int]:
    """Count by a scan what the machine keeps as counters."""
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE held = 0 AND due_ms = 0), count(*) FILTER (WHERE held = 0 AND due_ms > 0),"
        " count(*) FILTER (WHERE held > 0), count(*), coalesce(sum(size_bytes), 0), count(*) FILTER (WHERE owner = ?),"
        " (SELECT count(*) FROM recipients WHERE state < 2) FROM messages",
        (node,),
    ).fetchall()[0]
    connection.close()
    return dict(zip(("queued", "deferred", "held", "messages", "bytes", "owned", "recipients"), row, strict=True))  # type: ignore[arg-type]


class Single:
    """What `SpoolClient` needs of a node: a cluster of one that commits at once."""

    def __init__(self, bench: Bench, node: NodeId = A) -> None:
        self.bench = bench
        self.node = node
        self.first_index = 1
        self.refuse = 0
        """How many of the next commands are not replicated."""

    async def replicate(
        self,
        command: bytes,
        *,
        deadline_s: float | None = None,
        foreseen: Callable[[int], object] | None = None,
        committed: Callable[[], object] | None = None,
    ) -> object:
        if self.refuse:
            self.refuse -= 1
            raise NotReplicated
        answer = self.bench.do(command, self.node)
        if committed is not None:
            committed()
        if foreseen is not None:
            assert foreseen(len(self.bench.journal.items)) == answer
        return answer

    def propose(
        self,
        command: bytes,
        done: Callable[[object, Exception | None], None],
        *,
        deadline_s: float | None = None,
        foreseen: Callable[[int], object] | None = None,
    ) -> None:
        if self.refuse:
            self.refuse -= 1
            done(None, NotReplicated())
            return
        answer = self.bench.do(command, self.node)
        if foreseen is not None:
            assert foreseen(len(self.bench.journal.items)) == answer
        done(answer, None)

    async def read_index(self, *, deadline_s: float | None = None) -> int:
        return len(self.bench.journal.items)

    async def read_entry(self, index: int) -> bytes:
        if index < self.first_index:
            raise Compacted(index)
        return self.bench.journal.read_entry(index)
