"""The database as a snapshot: a copy of the live one that holds all that it needs, and the way of one into its place.

A copy is read in one transaction, so it is the state after one index, while the machine applies on. Then it gets the
bodies that are only in the log: after that it names nothing outside itself, and serves any node.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final

import apsw

from smtpraft.fastlog import Compacted
from smtpraft.spool.errors import SpoolFull
from smtpraft.spool.files import remove_mark, remove_sides, sync_directory
from smtpraft.spool.scrub import check_all
from smtpraft.spool.store import Meta, RotError, Store
from smtpraft.spool.types import ORDINAL_BITS, BodyPart

STEP_PAGES: Final = 256  # 1 MiB
REST_S: Final = 0.002  # between two pieces that are verified: others want the interpreter too
COPY_BYTES: Final = 4 * 1024 * 1024  # of bodies in one transaction: about 10 ms


def write_copy(source: str, target: str, read_entry: Callable[[int], bytes], *, gently: bool = True) -> Meta:
    """Copy the live database `source` to the new file `target`; return how far the copy is. Any thread.

    The log must keep the entries that `source` has not copied until this returns. `gently` leaves the disk to others
    half of the time.

    Raises:
        SpoolFull: no room; what there is of `target` is of no use.
        apsw.Error, RotError, UnicodeDecodeError: one of them is damaged, or the disk failed.
    """
    pause = threading.Event()
    live = apsw.Connection(source, flags=apsw.SQLITE_OPEN_READONLY)
    copy = apsw.Connection(target)
    try:
        # One read transaction from the first page to the last, or a commit in between would begin the copy anew.
        live.execute("BEGIN").fetchall()
        live.execute("SELECT applied_index FROM meta").fetchall()
        copy.execute("PRAGMA journal_mode = OFF").fetchall()
        with copy.backup("main", live, "main") as backup:
            while not backup.done:
                began = monotonic()
                backup.step(STEP_PAGES)
                if gently:
                    pause.wait(monotonic() - began)
        live.execute("COMMIT").fetchall()
    except apsw.FullError as error:
        raise SpoolFull(f"{target}: {error}") from error
    finally:
        live.close()
        copy.close()
    return _complete(target, read_entry, pause if gently else None)


def _complete(path: str, read_entry: Callable[[int], bytes], pause: threading.Event | None) -> Meta:
    """Put the bodies that are only in the log into a copy."""
    store = Store(path)
    try:
        meta = store.open_copy()
        parts = store.parts_between(meta.copied_index, meta.applied_index)
        at = 0
        while at < len(parts):
            began = monotonic()
            end, _ = group_parts(parts, at)
            with store.transaction():
                put_bodies(store, parts[at:end], read_entry)
            at = end
            if pause is not None:
                pause.wait(monotonic() - began)
        with store.transaction():
            store.set_copied(meta.applied_index)
        # It may be sent to one who needs it because of damage: it must not come from here.
        check_all(store.cursor(), (lambda: pause.wait(REST_S)) if pause is not None else (lambda: False))
    except apsw.FullError as error:
        raise SpoolFull(f"{path}: {error}") from error
    finally:
        store.close()
    return meta


def put_bodies(store: Store, parts: list[BodyPart], read_entry: Callable[[int], bytes]) -> None:
    """Copy parts, which are in the order of the log, out of their entries, each of which is read once."""
    index, command = 0, b""
    for part in parts:
        if part.number >> ORDINAL_BITS != index:
            index = part.number >> ORDINAL_BITS
            try:
                command = read_entry(index)
            except Compacted:
                # The log forgets only what was copied and synced before: that copy was lost by the disk.
                raise RotError(f"the copies of bodies in entries from {index} on are gone") from None
        content = memoryview(command)[part.offset : part.offset + part.length]
        assert len(content) == part.length, f"entry {index} is shorter than its body"
        store.put_body(part.number, content)


def group_parts(parts: list[BodyPart], start: int) -> tuple[int, int]:
    """Return (end, bytes) of the parts from `start` that go into one transaction: whole entries, about COPY_BYTES."""
    size = 0
    for end in range(start, len(parts)):
        if size >= COPY_BYTES and parts[end].number >> ORDINAL_BITS != parts[end - 1].number >> ORDINAL_BITS:
            return end, size
        size += parts[end].length
    return len(parts), size


def replace_database(path: str, snapshot: str) -> None:
    """Move the file `snapshot`, which is synced, into the place of the database at `path`, which nobody has open.

    A crash leaves the old database, perhaps without its last commits, and `snapshot`; or only the new one.
    """
    directory = os.path.dirname(os.path.abspath(path))
    remove_sides(path)
    sync_directory(directory)
    try:
        os.rename(snapshot, path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(snapshot, path)
    sync_directory(directory)
    sync_directory(os.path.dirname(os.path.abspath(snapshot)))
    remove_mark(path)


def _move_across(source: str, target: str) -> None:
    """Rename over the border of two file systems."""
    temporary = target + ".new"
    shutil.copyfile(source, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.rename(temporary, target)
    sync_directory(os.path.dirname(os.path.abspath(target)))
    os.unlink(source)
