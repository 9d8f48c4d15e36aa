# ruff: noqa: S608 -- statements are put together from names in this file, never from values
"""The queue's tables, and every statement that changes them. The machine uses them, in transactions on its thread.

The tables are in schema.sql. The database *is* the snapshot of the state machine: it names no node as its own, so that
a copy of it serves any node.

WAL mode, synchronous=NORMAL: a commit costs no sync. What a power loss takes is replayed from the log, which is never
cut beyond what `sync` has made safe. Checkpoints are the checkpointer's business, never a commit's. What a disk may do
to rows that are at rest: `sums`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.resources
import os
from collections.abc import Iterator, Sequence
from typing import Final, cast

import apsw
import msgspec

from smtpraft.spool.checkpointer import move_pages
from smtpraft.spool.commands import STATE_NUMBERS, STATES
from smtpraft.spool.errors import SpoolDamaged, SpoolNewer, SpoolUnusable
from smtpraft.spool.files import noted_damage, sync_directory
from smtpraft.spool.message import Message
from smtpraft.spool.sums import body_sum, message_sum, owner_sum, row_sum
from smtpraft.spool.types import ORDINAL_BITS, BodyPart, Recipient
from smtpraft.types import NodeId

APPLICATION_ID: Final = 0x736D7471  # "smtq"
FORMAT: Final = 3
SQLITE_VERSION_MIN: Final = 3_051_003  # before: two connections and a checkpoint could corrupt a WAL database
WAL_KEPT_BYTES: Final = 32 * 1024 * 1024
CACHE_KIB: Final = 16 * 1024
CHECK_BYTES_MAX: Final = 64 * 1024 * 1024  # a larger file is not read through at every start

HISTORY_MESSAGES: Final = 10_000

_UPGRADES: Final = {  # what brings a file of the format to the next one; schema.sql is of the newest
    1: "CREATE TABLE keys (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) STRICT;"
    " PRAGMA user_version = 2",
    2: "ALTER TABLE meta ADD COLUMN sum INTEGER; ALTER TABLE meta ADD COLUMN copied_sum INTEGER;"
    " ALTER TABLE messages ADD COLUMN sum INTEGER; ALTER TABLE recipients ADD COLUMN sum INTEGER;"
    " ALTER TABLE bodies ADD COLUMN sum INTEGER; ALTER TABLE keys ADD COLUMN sum INTEGER;"
    " PRAGMA user_version = 3",
}

_SCHEMA: Final = importlib.resources.files("smtpraft.spool").joinpath("schema.sql")

_MESSAGE_COLUMNS: Final = (
    "id, owner, epoch, held, due_ms, flags, accepted_ms, size_bytes, body_offset, body_bytes,"
    " accepted_by, sender, client_host, helo, auth"
)
_RECIPIENT_COLUMNS: Final = (
    "message, ordinal, address, state, attempts, next_attempt_ms, last_attempt_ms, last_status, last_reply"
)

# Rows go in many to a statement: one step, and one hand-over of the interpreter lock, for up to 64 of them.
_ROWS: Final = (64, 16, 4, 1)


def _upserts(table: str, width: int) -> dict[int, str]:
    row = "(" + ",".join("?" * width) + ")"
    return {count: f"INSERT OR REPLACE INTO {table} VALUES " + ",".join([row] * count) for count in _ROWS}


MessageRow = tuple[int, NodeId, int, int, int, int, int, int, int, int, NodeId, str, str, str, str]
RecipientRow = tuple[int, int, str, int, int, int, int, str, str]
HistoryRow = tuple[int, int, int, str, str, int, int, str, int, int, str]

_UPSERT_MESSAGES: Final = _upserts("messages", 16)
_UPSERT_RECIPIENTS: Final = _upserts("recipients", 10)
_UPSERT_HISTORY: Final = _upserts("history", 11)


class Meta(msgspec.Struct, array_like=True):
    """The row of `meta`: everything that changes with each batch but the messages themselves."""

    applied_index: int
    stamp_ms: int
    digest: bytes
    point_index: int
    point: bytes
    counters: str
    notes: bytes
    copied_index: int


class RotError(Exception):
    """A row is not what was written. Whoever knows the path makes a `SpoolDamaged` of it."""


DAMAGE: Final = (RotError, apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError)
"""What reading a damaged database may raise."""


class Store:
    """The writing connection. Every method but `open` and `close` is for one thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.wal_pages = 0
        """Pages in SQLite's write-ahead log after the last commit."""
        self._connection: apsw.Connection | None = None
        self._cursor: apsw.Cursor

    def open(self) -> Meta:
        """Open or create the file; return its `meta`.

        Raises:
            SpoolDamaged: it is damaged, or was found to be earlier.
            SpoolUnusable: it belongs to something else, or the SQLite library is too old.
            SpoolNewer: a newer version wrote it.
        """
        if apsw.SQLITE_VERSION_NUMBER < SQLITE_VERSION_MIN:
            raise SpoolUnusable(self.path, f"SQLite {apsw.sqlite_lib_version()} is too old: 3.51.3 or newer is needed")
        if (reason := noted_damage(self.path)) is not None:
            raise SpoolDamaged(self.path, f"found damaged before: {reason}")
        created = not os.path.exists(self.path)
        try:
            connection = apsw.Connection(self.path)
            self._connection = connection
            self._cursor = connection.cursor()
            connection.set_busy_timeout(10_000)  # an operator may look into the file with other tools
            self._check(created)
            for pragma in (
                "journal_mode = WAL",
                "synchronous = NORMAL",
                f"journal_size_limit = {WAL_KEPT_BYTES}",
                f"cache_size = -{CACHE_KIB}",
                "temp_store = MEMORY",
                "trusted_schema = OFF",
            ):
                self._cursor.execute(f"PRAGMA {pragma}").fetchall()
            connection.set_wal_hook(self._committed)
            if self._pragma("application_id") == 0:
                with self.transaction():
                    self._cursor.execute(_SCHEMA.read_text("utf-8"))
            while (version := self._pragma("user_version")) < FORMAT:
                with self.transaction():
                    self._cursor.execute(_UPGRADES[version])
            meta = self.meta()
        except (*DAMAGE, msgspec.ValidationError, apsw.SQLError) as error:
            # A table that is not there, or has other columns: the schema is in pages like all else.
            raise SpoolDamaged(self.path, f"damaged: {error}") from error
        if created:
            # The file's name lives in the directory, and SQLite does not sync that.
            sync_directory(os.path.dirname(os.path.abspath(self.path)))
        return meta

    def open_copy(self) -> Meta:
        """Open a copy that is in the making, for this process alone and without a thought for power loss.

        Raises:
            SpoolUnusable, SpoolNewer: as `open`.
        """
        self._connection = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE)
        self._cursor = self._connection.cursor()
        self._check(created=True)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = MEMORY", "synchronous = OFF"):
            self._cursor.execute(f"PRAGMA {pragma}").fetchall()
        return self.meta()

    def cursor(self) -> apsw.Cursor:
        """Return a cursor for queries."""
        assert self._connection is not None, "the database is open"
        return self._connection.cursor()

    def meta(self) -> Meta:
        """Return how far the database is."""
        row = self._cursor.execute(
            "SELECT applied_index, stamp_ms, digest, point_index, point, counters, notes, copied_index,"
            " sum, copied_sum FROM meta"
        ).fetchall()
        if len(row) != 1:
            raise SpoolDamaged(self.path, f"table meta has {len(row)} rows")
        *columns, copied_index, found, copied = row[0]
        if found not in {None, row_sum(columns)} or copied not in {None, row_sum((copied_index,))}:
            raise SpoolDamaged(self.path, "table meta is not what was written")
        return msgspec.convert((*columns, copied_index), Meta)

    def _check(self, created: bool) -> None:
        application, version = self._pragma("application_id"), self._pragma("user_version")
        if application == 0 and version == 0 and self._pragma("schema_version") == 0:
            return
        if application != APPLICATION_ID:
            raise SpoolUnusable(self.path, f"not a spool (application id {application:#x})")
        if version > FORMAT:
            raise SpoolNewer(self.path, f"format {version}, this version reads up to {FORMAT}: upgrade this node")
        if not created and os.path.getsize(self.path) <= CHECK_BYTES_MAX:
            result = self._cursor.execute("PRAGMA quick_check(1)").fetchall()[0][0]
            if result != "ok":
                raise SpoolDamaged(self.path, f"damaged: {result}")

    def _pragma(self, name: str) -> int:
        return cast(int, self._cursor.execute(f"PRAGMA {name}").fetchall()[0][0])

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        # Setting this hook also turns SQLite's own checkpoints at commits off.
        self.wal_pages = pages
        return apsw.SQLITE_OK

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Transactions and what survives power loss

    def begin(self) -> None:
        self._cursor.execute("BEGIN IMMEDIATE")

    def refused(self, error: apsw.Error) -> bool:
        """Was `error` a write that a read-only file system refused? SQLite undoes the transaction, as on a full disk.

        A sync that fails is something else: what was written before may be gone, and to ask again would get a lie.
        """
        assert self._connection is not None, "the database is open"
        failed_write = getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE
        return failed_write and self._connection.system_errno == errno.EROFS

    def commit(self) -> None:
        self._cursor.execute("COMMIT")

    def rollback(self) -> None:
        """Undo the transaction; some errors have done so already."""
        if self._connection is not None and self._connection.in_transaction:
            self._cursor.execute("ROLLBACK")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.begin()
        try:
            yield
            self.commit()
        except BaseException:
            self.rollback()
            raise

    def sync(self) -> None:
        """Make everything committed survive power loss: a FULL commit syncs the WAL, with all that is in it.

        It must change something. A transaction that writes what is there already writes no page, and syncs nothing.
        """
        self._cursor.execute("PRAGMA synchronous = FULL")
        try:
            with self.transaction():
                self._cursor.execute("UPDATE meta SET syncs = syncs + 1")
        finally:
            self._cursor.execute("PRAGMA synchronous = NORMAL")

    def checkpoint(self) -> None:
        """Move the WAL's pages into the file as far as readers allow, here and now."""
        assert self._connection is not None
        with contextlib.suppress(apsw.BusyError, apsw.FullError):
            move_pages(self._connection)

    def set_meta(
        self, applied_index: int, stamp_ms: int, digest: bytes, point: tuple[int, bytes], counters: str, notes: bytes
    ) -> None:
        columns = (applied_index, stamp_ms, digest, point[0], point[1], counters, notes)
        self._cursor.execute(
            "UPDATE meta SET applied_index=?, stamp_ms=?, digest=?, point_index=?, point=?, counters=?, notes=?, sum=?",
            (*columns, row_sum(columns)),
        )

    # Messages

    def upsert_messages(self, messages: Sequence[Message]) -> None:
        rows: list[tuple[int | str, ...]] = []
        for message in messages:
            row = message_row(message)
            rows.append((*row, message_sum(row, len(message.recipients), message.chunks)))
        self._upsert(_UPSERT_MESSAGES, rows)

    def upsert_recipients(self, rows: Sequence[RecipientRow]) -> None:
        self._upsert(_UPSERT_RECIPIENTS, [(*row, row_sum(row)) for row in rows])

    def upsert_history(self, rows: Sequence[HistoryRow]) -> None:
        self._upsert(_UPSERT_HISTORY, rows)

    def _upsert(self, statements: dict[int, str], rows: Sequence[tuple[int | str, ...]]) -> None:
        at, left = 0, len(rows)
        for count in _ROWS:
            while left >= count:
                values: list[int | str] = []
                for row in rows[at : at + count]:
                    values += row
                self._cursor.execute(statements[count], values)
                at += count
                left -= count

    def delete_messages(self, numbers: Sequence[int]) -> None:
        self._each("DELETE FROM messages WHERE id", numbers)
        self._each("DELETE FROM recipients WHERE message", numbers)

    def delete_bodies(self, parts: Sequence[int]) -> None:
        self._each("DELETE FROM bodies WHERE part", parts)

    def _each(self, statement: str, numbers: Sequence[int]) -> None:
        if len(numbers) == 1:
            self._cursor.execute(f"{statement} = ?", (numbers[0],))
        elif numbers:
            self._cursor.execute(f"{statement} IN (SELECT value FROM json_each(?))", (_json(numbers),))

    def load(self, numbers: Sequence[int]) -> list[Message]:
        """Return those of the messages that exist."""
        if len(numbers) == 1:
            return read_messages(self._cursor, "id = ?", (numbers[0],))
        return read_messages(self._cursor, "id IN (SELECT value FROM json_each(?))", (_json(numbers),))

    def numbers_between(self, after: int, to: int, limit: int) -> list[int]:
        return self._column("SELECT id FROM messages WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (after, to, limit))

    def move(self, owner: str, live: Sequence[str], epoch: int) -> None:
        """Give all messages of `owner` to `live` in turn, in the order of their ids."""
        whens = " ".join(f"WHEN {n} THEN ?" for n in range(len(live)))
        self._cursor.execute(
            f"UPDATE messages SET epoch = ?, owner = CASE place % {len(live)} {whens} END,"
            f" sum = sum - epoch + ? + CASE place % {len(live)} {whens} END"
            " FROM (SELECT id AS moved, row_number() OVER (ORDER BY id) - 1 AS place FROM messages WHERE owner = ?)"
            " WHERE id = moved",
            (epoch, *live, epoch - owner_sum(owner), *map(owner_sum, live), owner),
        )

    def moved_to(self, owner: str, epoch: int, limit: int) -> list[int]:
        return self._column(
            "SELECT id FROM messages WHERE owner = ? AND epoch = ? ORDER BY id LIMIT ?", (owner, epoch, limit)
        )

    def numbers_owned(self, owner: str, limit: int) -> list[int]:
        return self._column("SELECT id FROM messages WHERE owner = ? ORDER BY id LIMIT ?", (owner, limit))

    def _column(self, statement: str, values: tuple[int | str, ...]) -> list[int]:
        return [cast(int, row[0]) for row in self._cursor.execute(statement, values)]

    # Uploads: long bodies on their way

    def has_chunk(self, node: str, upload: int, number: int) -> bool:
        return bool(
            self._column(
                "SELECT 1 FROM chunks WHERE message IS NULL AND node = ? AND upload = ? AND number = ?",
                (node, upload, number),
            )
        )

    def insert_chunk(self, chunk: tuple[int, str, int, int, int, int, int]) -> None:
        """`chunk`: entry, node, upload, number, stamp_ms, body_offset, body_bytes."""
        self._cursor.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, NULL, ?, ?, ?)", chunk)

    def uploaded(self, node: str, upload: int) -> list[tuple[int, BodyPart]]:
        """Return (number, where it is) of the chunks of an upload under way, in their order."""
        rows = self._cursor.execute(
            "SELECT number, entry, body_offset, body_bytes FROM chunks"
            " WHERE message IS NULL AND node = ? AND upload = ? ORDER BY number",
            (node, upload),
        )
        return [(number, BodyPart(entry << ORDINAL_BITS, offset, size)) for number, entry, offset, size in rows]

    def tie_chunks(self, node: str, upload: int, message: int) -> None:
        self._cursor.execute(
            "UPDATE chunks SET message = ? WHERE message IS NULL AND node = ? AND upload = ?", (message, node, upload)
        )

    def forget_uploads(self, condition: str, values: tuple[int | str, ...]) -> int:
        """Forget the uploads under way that meet `condition`; return how many chunks went."""
        entries = self._column(f"SELECT entry FROM chunks WHERE message IS NULL AND {condition}", values)
        self._delete_chunks(entries)
        return len(entries)

    def delete_chunks_of(self, numbers: Sequence[int]) -> None:
        """Delete the chunks of messages that left, and their copies."""
        self._delete_chunks(
            self._column(
                "SELECT entry FROM chunks WHERE message IN (SELECT value FROM json_each(?))", (_json(numbers),)
            )
        )

    def _delete_chunks(self, entries: Sequence[int]) -> None:
        self._each("DELETE FROM chunks WHERE entry", entries)
        self.delete_bodies([entry << ORDINAL_BITS for entry in entries])

    # Nodes

    def nodes(self) -> dict[NodeId, tuple[int, bool]]:
        """Return node -> (incarnation, up)."""
        return {
            NodeId(node): (incarnation, bool(up))
            for node, incarnation, up in self._cursor.execute("SELECT node, incarnation, up FROM nodes ORDER BY node")
        }

    def set_node(self, node: str, incarnation: int, up: bool) -> None:
        self._cursor.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?, ?)", (node, incarnation, int(up)))

    # Keys and values

    def key_facts(self, key: str) -> tuple[int, int]:
        """Return (revision, bytes of the value) of a key, (0, 0) if it is not there."""
        rows = self._cursor.execute("SELECT revision, length(value) FROM keys WHERE key = ?", (key,)).fetchall()
        return cast(tuple[int, int], rows[0]) if rows else (0, 0)

    def put_key(self, key: str, value: bytes | memoryview, revision: int) -> None:
        self._cursor.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value=excluded.value, revision=excluded.revision, sum=excluded.sum",
            (key, value, revision, row_sum((key, value, revision))),
        )

    def delete_key(self, key: str) -> None:
        self._cursor.execute("DELETE FROM keys WHERE key = ?", (key,))

    # Copies of bodies

    def parts_between(self, after_index: int, to_index: int) -> list[BodyPart]:
        """Return the parts of living bodies whose entries are in (after, to], in the order of the log."""
        parts = [
            BodyPart(*row)
            for row in self._cursor.execute(
                "SELECT id, body_offset, body_bytes FROM messages WHERE id >= ? AND id < ? AND body_bytes > 0",
                ((after_index + 1) << ORDINAL_BITS, (to_index + 1) << ORDINAL_BITS),
            )
        ]
        parts += [
            BodyPart(entry << ORDINAL_BITS, offset, size)
            for entry, offset, size in self._cursor.execute(
                "SELECT entry, body_offset, body_bytes FROM chunks WHERE entry > ? AND entry <= ?",
                (after_index, to_index),
            )
        ]
        return sorted(parts, key=lambda part: part.number)

    def needed_from(self, after_index: int) -> int | None:
        """Return the index of the first entry behind `after_index` that holds some of a living body; None: none."""
        after = (after_index + 1,)
        messages = self._cursor.execute(
            f"SELECT id >> {ORDINAL_BITS} FROM messages"
            f" WHERE id >= ? << {ORDINAL_BITS} AND body_bytes > 0 ORDER BY id LIMIT 1",
            after,
        ).fetchall()
        chunks = self._cursor.execute("SELECT entry FROM chunks WHERE entry >= ? ORDER BY entry LIMIT 1", after)
        return min((cast(int, entry) for (entry,) in (*messages, *chunks)), default=None)

    def put_body(self, part: int, content: bytes | memoryview) -> None:
        self._cursor.execute("INSERT OR REPLACE INTO bodies VALUES (?, ?, ?)", (part, content, body_sum(part, content)))

    def set_copied(self, index: int) -> None:
        self._cursor.execute("UPDATE meta SET copied_index = ?, copied_sum = ?", (index, row_sum((index,))))


def read_messages(cursor: apsw.Cursor, condition: str, values: tuple[int | str, ...]) -> list[Message]:
    """Return the messages that meet `condition` (which may end in ORDER BY and LIMIT), whole, in its order.

    Raises:
        RotError: a row is not what was written.
    """
    messages: list[Message] = []
    sums: list[int | None] = []
    for *row, found in cursor.execute(f"SELECT {_MESSAGE_COLUMNS}, sum FROM messages WHERE {condition}", values):
        if not (isinstance(row[0], int) and isinstance(row[1], str) and isinstance(row[2], int)):
            raise RotError(f"message {row[0]!r} is not what was written")
        messages.append(Message(*cast(MessageRow, row), recipients=[], open_count=0, chunks=(), stored=True))
        sums.append(cast("int | None", found))
    if not messages:
        return messages
    by_number = {message.number: message for message in messages}
    numbers = _json(list(by_number))
    states = STATES
    for *columns, found in cursor.execute(
        f"SELECT {_RECIPIENT_COLUMNS}, sum FROM recipients"
        " WHERE message IN (SELECT value FROM json_each(?)) ORDER BY message, ordinal",
        (numbers,),
    ):
        number, ordinal, address, state, *rest = columns
        if found not in {None, row_sum(columns)}:
            raise RotError(f"recipient {ordinal} of message {number:x} is not what was written")
        message = by_number[cast(int, number)]
        recipient = Recipient(ordinal, address, states[state], *rest)
        message.recipients.append(recipient)
        message.open_count += not recipient.state.final
    for number, entry, offset, size in cursor.execute(
        "SELECT message, entry, body_offset, body_bytes FROM chunks"
        " WHERE message IN (SELECT value FROM json_each(?)) ORDER BY message, number",
        (numbers,),
    ):
        by_number[number].chunks += (BodyPart(entry << ORDINAL_BITS, offset, size),)
    for message, found in zip(messages, sums, strict=True):
        if found not in {None, message_sum(message_row(message), len(message.recipients), message.chunks)}:
            raise RotError(f"message {message.number:x} is not what was written")
    return messages


def read_bodies(cursor: apsw.Cursor, condition: str, values: tuple[int | str, ...]) -> dict[int, bytes]:
    """Return the copies of parts that meet `condition`, by number.

    Raises:
        RotError: one is not what was written.
    """
    return dict(each_body(cursor, condition, values))


def each_body(cursor: apsw.Cursor, condition: str, values: tuple[int | str, ...]) -> Iterator[tuple[int, bytes]]:
    """As `read_bodies`, one at a time."""
    for part, content, found in cursor.execute(f"SELECT part, content, sum FROM bodies WHERE {condition}", values):
        if not isinstance(content, bytes) or found not in {None, body_sum(cast(int, part), content)}:
            raise RotError(f"the copy of body {part:x} is not what was written")
        yield cast(int, part), content


def message_row(message: Message) -> MessageRow:
    return (
        message.number,
        message.owner,
        message.epoch,
        message.held,
        message.due_ms,
        message.flags,
        message.accepted_ms,
        message.size_bytes,
        message.body_offset,
        message.body_bytes,
        message.accepted_by,
        message.sender,
        message.client_host,
        message.helo,
        message.auth,
    )


def recipient_row(message: int, recipient: Recipient) -> RecipientRow:
    return (
        message,
        recipient.ordinal,
        recipient.address,
        STATE_NUMBERS[recipient.state],
        recipient.attempts,
        recipient.next_attempt_ms,
        recipient.last_attempt_ms,
        recipient.last_status,
        recipient.last_reply,
    )


def _json(numbers: Sequence[int]) -> str:
    return msgspec.json.encode(numbers).decode()
