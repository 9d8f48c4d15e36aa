"""Reads the queue's database through now and then, before somebody needs what is in it, and verifies every row.

In pieces, each a short read transaction on the reader's thread, at a bounded rate. What is damaged ends the node if it
has others to get it from; see `StateDamaged`. A snapshot is read through in the same way before it is given to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

import apsw
import msgspec

from smtpraft.spool.counters import decode_counters
from smtpraft.spool.errors import SpoolDamaged
from smtpraft.spool.message import Message
from smtpraft.spool.store import RotError, each_body, read_messages
from smtpraft.spool.sums import row_sum
from smtpraft.spool.types import ORDINAL_BITS

PIECE_ROWS: Final = 200
PIECE_BODIES: Final = 500
PIECE_BYTES: Final = 1024 * 1024  # of bodies; one alone may have as many
ROW_BYTES: Final = 300  # about what a message and its recipient take
REST_S: Final = 600.0
FIRST_AFTER_S: Final = 15.0  # a small database was read through at the start

Place = tuple[str, int | str]
"""Table, and the last key in it that was read."""
START: Final[Place] = ("messages", 0)


def check_piece(cursor: apsw.Cursor, place: Place) -> tuple[Place | None, int]:
    """Verify what follows `place`; return where to go on, None at the end, and about how many bytes it was.

    Raises:
        RotError, apsw.Error, UnicodeDecodeError: something is not what was written.
    """
    table, after = place
    match table:
        case "messages":
            messages = read_messages(cursor, "id > ? ORDER BY id LIMIT ?", (after, PIECE_ROWS))
            if any(message.open_count == 0 for message in messages):
                raise RotError("a message without open recipients is in the queue")
            _check_copies(cursor, messages)
            rows = sum(1 + len(message.recipients) for message in messages)
            following = (table, messages[-1].number) if messages else ("bodies", 0)
            return following, rows * ROW_BYTES
        case "bodies":
            size_bytes = 0
            for part, content in each_body(cursor, "part > ? ORDER BY part LIMIT ?", (after, PIECE_BODIES)):
                after = part
                size_bytes += ROW_BYTES + len(content)
                if size_bytes >= PIECE_BYTES:
                    break
            return (table, after) if size_bytes else ("keys", ""), size_bytes
        case "keys":
            size_bytes = 0
            for *columns, found in cursor.execute(
                "SELECT key, value, revision, sum FROM keys WHERE key > ? ORDER BY key LIMIT ?", (after, PIECE_ROWS)
            ):
                if found not in {None, row_sum(columns)}:
                    raise RotError(f"key {columns[0]!r} is not what was written")
                after = cast(str, columns[0])
                size_bytes += ROW_BYTES + len(cast(bytes, columns[1]))
            return (table, after) if size_bytes else ("meta", 0), size_bytes
        case _:
            _check_counts(cursor)
            return None, 0


def _check_copies(cursor: apsw.Cursor, messages: Sequence[Message]) -> None:
    """Of what the log may have forgotten there is a copy."""
    ((copied_index,),) = cursor.execute("SELECT copied_index FROM meta").fetchall()
    wanted = {
        part.number
        for message in messages
        for part in message.parts
        if part.length and part.number >> ORDINAL_BITS <= cast(int, copied_index)
    }
    numbers = msgspec.json.encode(sorted(wanted)).decode()
    there = cursor.execute("SELECT part FROM bodies WHERE part IN (SELECT value FROM json_each(?))", (numbers,))
    if missing := wanted.difference(cast(int, part) for (part,) in there):
        raise RotError(f"the copy of body {min(missing):x} is missing")


def _check_counts(cursor: apsw.Cursor) -> None:
    """Rows that are gone without a trace, or back from the past, are in no sum."""
    ((counters_json,),) = cursor.execute("SELECT counters FROM meta").fetchall()
    ((count,),) = cursor.execute("SELECT count(*) FROM messages").fetchall()
    counters = decode_counters(cast(str, counters_json).encode())
    expected = counters.queued + counters.deferred + counters.held
    if count != expected:
        raise RotError(f"the queue has {count} messages, and should have {expected}")


def check_all(cursor: apsw.Cursor, rest: Callable[[], object]) -> None:
    """Verify everything, with a `rest` between the pieces. Raises as `check_piece`."""
    place: Place | None = START
    while place is not None:
        place, _ = check_piece(cursor, place)
        rest()


async def scrub(
    refresh: Callable[[], Awaitable[None]],
    check: Callable[[Place], Awaitable[tuple[Place | None, int]]],
    bytes_per_s: int,
) -> None:
    """Read all of it, rest, and read it again, until cancelled.

    `refresh` has the next reads come from the device, `check` is `check_piece` on the reader's thread; who calls it
    hears from the reader what is damaged.
    """
    await asyncio.sleep(FIRST_AFTER_S)
    while True:
        await refresh()
        place: Place | None = START
        # Who has others ends now. Who has none goes on with what there is, and says so again and again.
        with contextlib.suppress(SpoolDamaged):
            while place is not None:
                place, size_bytes = await check(place)
                await asyncio.sleep(size_bytes / bytes_per_s)
        await asyncio.sleep(REST_S)
