"""How much room a data directory has, and a ballast to throw off when it has none.

What is full in earnest can be neither delivered nor deleted: the queue's database needs room to write down that a
message is gone. So a file is kept that holds some: it goes when there is none left, and comes back when there is.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

BALLAST_FILE: Final = "ballast"
BALLAST_BYTES: Final = 8 * 1024 * 1024
THROW_OFF_BYTES: Final = 256 * 1024
READ_ONLY: Final = "the file system is read-only"
INODES_MIN: Final = 64  # a log that rolls, a database, a snapshot and its parts need a handful


@dataclass(frozen=True, slots=True)
class Room:
    """What one look at a file system found."""

    free_bytes: int
    free_inodes: int
    read_only: bool

    def short_of(self, reserve_bytes: int) -> str:
        """Return what there is too little of for new mail, in words; empty if there is enough."""
        if self.read_only:
            return READ_ONLY
        if self.free_bytes < reserve_bytes:
            return f"{self.free_bytes} bytes are free, {reserve_bytes} are kept in reserve"
        if self.free_inodes < INODES_MIN:
            return f"{self.free_inodes} inodes are free, {INODES_MIN} are kept in reserve"
        return ""


def look(directory: str) -> Room:
    """Look how much room there is for this process. Blocks, for long if the disk does.

    Raises:
        OSError: the directory cannot be looked at.
    """
    found = os.statvfs(directory)
    # A file system that makes inodes as it needs them says that it has none at all.
    inodes = found.f_favail if found.f_files else INODES_MIN
    return Room(found.f_bavail * found.f_frsize, inodes, bool(found.f_flag & os.ST_RDONLY))


class Ballast:
    """The file in one data directory. For one thread."""

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{BALLAST_FILE}"
        self._there = os.path.exists(self._path)

    def trim(self, room: Room, reserve_bytes: int) -> None:
        """Throw it off if hardly anything is left, take it on again if there is room for it beside the reserve."""
        if self._there and room.free_bytes < THROW_OFF_BYTES:
            with suppress(OSError):
                os.unlink(self._path)
                self._there = False
                log.warning("threw off the ballast path=%s bytes=%d", self._path, BALLAST_BYTES)
        elif not self._there and room.free_bytes > 2 * reserve_bytes + BALLAST_BYTES and not room.read_only:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, BALLAST_BYTES)
                finally:
                    os.close(fd)
                self._there = True
            except OSError:
                with suppress(OSError):
                    os.unlink(self._path)
