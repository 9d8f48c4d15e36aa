"""The read-only connection: queries about what is committed, on one thread of their own, beside the applying.

Each query is one short read transaction, so that it never holds up a checkpoint for long.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import apsw
import msgspec

from smtpraft.spool.errors import SpoolDamaged
from smtpraft.spool.keyvalues import KeyInfo, KeyValue
from smtpraft.spool.scrub import Place, check_piece
from smtpraft.spool.store import DAMAGE, RotError, read_bodies, read_messages
from smtpraft.spool.sums import row_sum
from smtpraft.spool.types import WHENEVER_MS, BodyPart, EndedMessage, MessageInfo, Recipient, id_of_number
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

PAGE_MESSAGES: Final = 500  # read in one transaction
LOOK_MESSAGES: Final = 10_000  # looked at in one transaction, most of them to be passed over: some milliseconds

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _verified(query: Callable[Concatenate[Reader, _P], _T]) -> Callable[Concatenate[Reader, _P], _T]:
    """Let whoever asks hear of damage as `SpoolDamaged`, after the node did."""

    def ask(self: Reader, /, *arguments: _P.args, **named: _P.kwargs) -> _T:
        try:
            return query(self, *arguments, **named)
        except DAMAGE as error:
            raise self.damaged(error) from error

    ask.__doc__ = query.__doc__
    return ask


class Reader:
    """Queries by message number. Its methods block: run them in `executor`, which is one thread."""

    def __init__(self, path: str, on_damage: Callable[[SpoolDamaged], object] = lambda error: None) -> None:
        """`on_damage` hears of what is not what was written, on the reader's thread, before who asked for it."""
        self._path = path
        self._on_damage = on_damage
        self._fd = -1
        self._connection: apsw.Connection | None = None
        self.closed = False
        self._go_on = threading.Event()
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool-reader")

    def open(self) -> None:
        """Open the file, which the writer has open already; queries that wait for it go on."""
        connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(10_000)
        connection.execute("PRAGMA trusted_schema = OFF").fetchall()
        self._connection = connection
        self._go_on.set()

    def suspend(self) -> None:
        """Finish the query under way and close the file; what comes waits until it is open again, or closed for good.

        From the thread that calls `open`.
        """
        if self._connection is None:
            return
        suspended = threading.Event()
        # One for each time: the thread may get no further than to say that it is done before the file is open again,
        # and to be closed once more; if it found one event cleared anew, it would wait for ever, and who suspends, too.
        go_on = self._go_on = threading.Event()

        def wait() -> None:
            assert self._connection is not None
            self._connection.close()
            self._connection = None
            suspended.set()
            go_on.wait()

        self.executor.submit(wait)
        suspended.wait()
        self._forget_file()  # another file takes its name, once the writer has closed this one too

    def close(self) -> None:
        """Wait for the query under way, drop those that wait."""
        self.closed = True
        self._go_on.set()
        self.executor.shutdown(wait=True, cancel_futures=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._forget_file()

    def damaged(self, error: Exception) -> SpoolDamaged:
        """Tell the node; return what to tell who asked."""
        damage = SpoolDamaged(self._path, f"damaged: {error}")
        log.error("found damage reason=%r", str(damage))
        self._on_damage(damage)
        return damage

    def refresh(self) -> None:
        """Have what is read next come from the device, as far as it is in nobody's way."""
        if self._fd < 0:
            # Kept as long as the database is open: to close it would take the process's locks on the file along.
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _forget_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @_verified
    def scrub(self, place: Place) -> tuple[Place | None, int]:
        """Verify what follows `place`; see `scrub.check_piece`."""
        assert self._connection is not None, "the reader is open"
        found: tuple[Place | None, int]
        with self._connection:
            found = check_piece(self._connection.cursor(), place)
        return found

    @_verified
    def page(self, after: int, limit: int) -> list[MessageInfo]:
        """Return up to `limit` messages with a number above `after`, in order."""
        return self._pages("id > ? ORDER BY id LIMIT ?", after, limit)

    @_verified
    def owned(
        self, node: str, after: int, limit: int, due_by_ms: int = WHENEVER_MS
    ) -> tuple[list[MessageInfo], int | None]:
        """Return up to `limit` messages of `node` with a number above `after`, in order, and what to go on after.

        Not what is held, nor what is due later than `due_by_ms`: a queue may be full of that, and to pass it over in
        SQLite costs a hundredth of reading it, and holds up no other thread. None: there is nothing more. One call
        looks at no more than a bounded part of the queue, and may return nothing although there is more.
        """
        assert self._connection is not None, "the reader is open"
        size = min(limit, PAGE_MESSAGES)
        with self._connection:
            last = self._connection.execute(
                "SELECT max(id) FROM (SELECT id FROM messages WHERE id > ? ORDER BY id LIMIT ?)",
                (after, LOOK_MESSAGES),
            ).fetchall()[0][0]
            if last is None:
                return [], None
            messages = read_messages(
                self._connection.cursor(),
                "id > ? AND id <= ? AND owner = ? AND held = 0 AND due_ms <= ? ORDER BY id LIMIT ?",
                (after, cast(int, last), node, due_by_ms, size),
            )
        more = messages[-1].number if len(messages) == size else cast(int, last)
        return [message.info() for message in messages], more

    def _pages(self, condition: str, after: int, limit: int) -> list[MessageInfo]:
        found: list[MessageInfo] = []
        while len(found) < limit:
            size = min(limit - len(found), PAGE_MESSAGES)
            page, last = self._read(condition, (after, size))
            found += page
            if len(page) < size:
                break
            after = last
        return found

    @_verified
    def due(self, node: str, until_ms: int, limit: int) -> list[MessageInfo]:
        """Return up to `limit` deferred, not held messages of `node` that are due by `until_ms`, soonest first."""
        found: list[MessageInfo] = []
        after = (0, 0)
        while len(found) < limit:
            size = min(limit - len(found), PAGE_MESSAGES)
            page, last = self._read(
                "owner = ? AND due_ms > 0 AND due_ms <= ? AND (due_ms, id) > (?, ?) AND held = 0"
                " ORDER BY due_ms, id LIMIT ?",
                (node, until_ms, *after, size),
            )
            found += page
            if len(page) < size:
                break
            after = page[-1].next_attempt_ms, last
        return found

    @_verified
    def get(self, number: int) -> MessageInfo | None:
        """Return a message, or None."""
        found, _ = self._read("id = ?", (number,))
        return found[0] if found else None

    def _read(self, condition: str, values: tuple[int | str, ...]) -> tuple[list[MessageInfo], int]:
        assert self._connection is not None, "the reader is open"
        with self._connection:  # one transaction: a message and its recipients are of the same moment
            messages = read_messages(self._connection.cursor(), condition, values)
        return [message.info() for message in messages], messages[-1].number if messages else 0

    @_verified
    def oldest_ms(self) -> int | None:
        """Return when the oldest queued message was accepted, by the machine's time; None if there is none."""
        assert self._connection is not None, "the reader is open"
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT accepted_ms FROM messages ORDER BY id LIMIT 1"
        ).fetchall()
        return rows[0][0] if rows else None

    @_verified
    def bodies(self, parts: Sequence[BodyPart]) -> dict[int, bytes]:
        """Return the copies of those parts that the spool has, by number."""
        assert self._connection is not None, "the reader is open"
        numbers = msgspec.json.encode([part.number for part in parts]).decode()
        condition = "part IN (SELECT value FROM json_each(?))"
        return read_bodies(self._connection.cursor(), condition, (numbers,))

    @_verified
    def lacks(self, part: BodyPart) -> None:
        """The copy of a part of a message that is in the queue is not there: the disk lost it."""
        raise RotError(f"the copy of body {part.number:x} is missing")

    @_verified
    def ended(self, number: int) -> EndedMessage | None:
        """Return the record of a message that left, if it is among the last to do so."""
        assert self._connection is not None, "the reader is open"
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT how, accepted_ms, ended_ms, ended_index, node, sender, size_bytes, is_bounce, recipients"
            " FROM history WHERE message = ?",
            (number,),
        ).fetchall()
        if not rows:
            return None
        how, accepted_ms, ended_ms, ended_index, node, sender, size_bytes, is_bounce, recipients = rows[0]
        return EndedMessage(
            id_of_number(number),
            how,
            accepted_ms,
            ended_ms,
            ended_index,
            NodeId(node),
            sender,
            size_bytes,
            bool(is_bounce),
            msgspec.json.decode(recipients, type=tuple[Recipient, ...]),
        )

    @_verified
    def key(self, key: str) -> KeyValue | None:
        """Return a key of the map, or None."""
        assert self._connection is not None, "the reader is open"
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT value, revision, sum FROM keys WHERE key = ?", (key,)
        ).fetchall()
        if not rows:
            return None
        value, revision, found = rows[0]
        if found not in {None, row_sum((key, value, revision))}:
            raise RotError(f"key {key!r} is not what was written")
        return KeyValue(key, value, revision)

    @_verified
    def keys(self, prefix: str, after: str, limit: int) -> list[KeyInfo]:
        """Return up to `limit` keys that begin with `prefix` and are above `after`, in order."""
        assert self._connection is not None, "the reader is open"
        rows: list[tuple[Any, ...]] = self._connection.execute(
            "SELECT key, revision, length(value) FROM keys WHERE key >= ? AND key > ? ORDER BY key LIMIT ?",
            (prefix, after, limit),
        ).fetchall()
        # Those that begin alike stand together, the first of them not below the prefix itself.
        return [KeyInfo(*row) for row in rows if row[0].startswith(prefix)]
