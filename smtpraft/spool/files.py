"""The files beside the queue's database: SQLite's own, and the mark that says that it is damaged."""

from __future__ import annotations

import contextlib
import os
from typing import Final

SIDE_FILES: Final = ("-wal", "-shm", "-journal")
MARK_SUFFIX: Final = "-damaged"
"""Of the file that says that the database is; what is in it is the reason."""


def noted_damage(path: str) -> str | None:
    """Return why the database at `path` was found damaged earlier, or None if it was not."""
    try:
        with open(path + MARK_SUFFIX, encoding="utf-8", errors="replace") as file:
            return file.read() or "damaged"
    except FileNotFoundError:
        return None


def remove_mark(path: str) -> None:
    """The database at `path` is another one now, or there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + MARK_SUFFIX)
        sync_directory(os.path.dirname(os.path.abspath(path)))


def remove_sides(path: str) -> None:
    """Remove what SQLite keeps beside a database, or it would take it for that of another."""
    for suffix in SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)


def sync_directory(path: str) -> None:
    """Return when the names in a directory would survive a power loss."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
