"""The file of one node's spool, and what a crash leaves of it.

SQLite's write-ahead log has checksums that chain: a loss of power leaves some first part of what was not synced, never
a later part without it. So a crash leaves the files as they are, or with the log cut somewhere behind what was synced.
(That SQLite itself survives torn and reordered sectors is its makers' to test, and they do.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from random import Random
from typing import Final

import apsw

from smtpraft.spool.machine import SpoolMachine
from smtpraft.types import NodeId

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_PAGE_BYTES: Final = 4096
_FRAME_BYTES: Final = _FRAME_HEADER_BYTES + _PAGE_BYTES


class SpoolFile:
    """A database below `stem`; after each crash under another name, and closed: SQLite knows it by more than that."""

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._generation = 0
        self._machine: SpoolMachine | None = None
        self._salt = b""
        self._synced = _HEADER_BYTES
        self._syncs = ""

    @property
    def path(self) -> str:
        """The database."""
        return f"{self._stem}-{self._generation}.db"

    def machine(self, node: NodeId, monotonic: Callable[[], float]) -> SpoolMachine:
        """Return the machine of a new process; it opens the file itself."""
        self._machine = SpoolMachine(self.path, node, monotonic=monotonic, background=False)
        return self._machine

    def close(self) -> None:
        """Let go of the file as the end of the process would, which may never have got as far as to open it."""
        if self._machine is not None:
            close_as_it_is(self._machine)
            self._machine = None

    def look(self, machine: SpoolMachine) -> None:
        """Look whether it was synced: if so, all that was committed so far would survive a loss of power.

        The machine says that it was by its count of syncs, each of which is a commit that SQLite syncs.
        """
        syncs = str(machine._store.cursor().execute("SELECT syncs FROM meta").fetchall())
        if syncs != self._syncs:
            self._syncs = syncs
            self._salt, self._synced = self._extent()

    def crash(self, power: bool, random: Random) -> None:
        """Go on with what a crash now leaves."""
        self.close()
        old = self.path
        salt, end = self._extent()
        self._generation += 1
        if not os.path.exists(old):
            return
        os.rename(old, self.path)
        if os.path.exists(old + "-wal"):
            os.rename(old + "-wal", self.path + "-wal")
            if power:
                synced = self._synced if salt == self._salt else _HEADER_BYTES
                self._syncs = ""  # The count may have gone back, and reach the same number once more.
                os.truncate(self.path + "-wal", random.randint(synced, max(synced, end)))
        _remove(old)

    def replaced(self) -> None:
        """The database is another one, with a count of syncs of its own."""
        self._syncs = ""

    def wipe(self) -> None:
        """Go on with nothing."""
        self.close()
        _remove(self.path)
        self._generation += 1
        self._salt, self._synced, self._syncs = b"", _HEADER_BYTES, ""

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


def close_as_it_is(machine: SpoolMachine) -> None:
    """Close the database as the end of its process would: SQLite does not tidy up first."""
    connection = machine._store._connection
    if connection is not None:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    machine.close()


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + suffix)
