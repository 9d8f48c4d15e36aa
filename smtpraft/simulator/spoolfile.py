"""The file of one node's spool, and what a crash leaves of it.

SQLite's write-ahead log has checksums that chain: a loss of power leaves some first part of what was not synced, never
a later part without it. So a crash is a copy of the files, with the log cut somewhere behind what was synced. (That
SQLite itself survives torn and reordered sectors is its makers' to test, and they do.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from random import Random
from typing import Final

from smtpraft.spool.machine import SpoolMachine

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_PAGE_BYTES: Final = 4096
_FRAME_BYTES: Final = _FRAME_HEADER_BYTES + _PAGE_BYTES


class SpoolFile:
    """A database below `stem`; after each crash under another name, so that nobody holds the new one open."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._generation = 0
        self._old = ""
        self._salt = b""
        self._synced = _HEADER_BYTES
        self._syncs = ""

    @property
    def path(self) -> str:
        """The database."""
        return f"{self._stem}-{self._generation}.db"

    def look(self, machine: SpoolMachine) -> None:
        """Look whether it was synced: if so, all that was committed so far would survive a loss of power.

        The machine says that it was by its count of syncs, each of which is a commit that SQLite syncs.
        """
        syncs = str(machine._store.cursor().execute("SELECT syncs FROM meta").fetchall())
        if syncs != self._syncs:
            self._syncs = syncs
            self._salt, self._synced = self._extent()

    def crash(self, power: bool, random: Random) -> None:
        """Go on with a copy of what a crash now leaves."""
        self._old = self.path
        if not os.path.exists(self._old):
            self._generation += 1
            return
        salt, end = self._extent()
        self._generation += 1
        shutil.copyfile(self._old, self.path)
        if os.path.exists(self._old + "-wal"):
            shutil.copyfile(self._old + "-wal", self.path + "-wal")
            if power:
                synced = self._synced if salt == self._salt else _HEADER_BYTES
                self._syncs = ""  # The count may have gone back, and reach the same number once more.
                os.truncate(self.path + "-wal", random.randint(synced, max(synced, end)))

    def replaced(self) -> None:
        """The database is another one, with a count of syncs of its own."""
        self._syncs = ""

    def wipe(self) -> None:
        """Go on with nothing."""
        self._old = self.path
        self.forget_old()
        self._generation += 1
        self._salt, self._synced, self._syncs = b"", _HEADER_BYTES, ""

    def forget_old(self) -> None:
        """Remove what the last crash left behind, once it is closed."""
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._old + suffix)

    def _extent(self) -> tuple[bytes, int]:
        """Return the salt of SQLite's log, and where its last frame ends."""
        try:
            fd = os.open(self.path + "-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b"", _HEADER_BYTES
        try:
            salt = os.pread(fd, 8, 16)
            at = self._synced if salt == self._salt else _HEADER_BYTES
            while len(salt) == 8 and os.pread(fd, 8, at + 8) == salt:
                at += _FRAME_BYTES
        finally:
            os.close(fd)
        return salt, at
