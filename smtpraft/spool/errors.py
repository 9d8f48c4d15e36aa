"""What can be wrong with the spool as a whole. All but `SpoolFull` stop the node: it loses nothing by stopping."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from smtpraft.cluster.machine import NoRoom, StateDamaged
from smtpraft.errors import Fatal, NewerFormat
from smtpraft.spool.files import MARK_SUFFIX, remove_mark, remove_sides, sync_directory

ASIDE_SUFFIX: Final = ".damaged"


class SpoolUnusable(Fatal):
    """The file at `path` is not a spool that this version can work with, for the given `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SpoolDamaged(SpoolUnusable, StateDamaged):
    """The file, or what SQLite keeps beside it, is not what was written: the disk has changed or lost something."""

    def note(self) -> None:
        """See `StateDamaged`."""
        with contextlib.suppress(OSError), open(self.path + MARK_SUFFIX, "x", encoding="utf-8") as file:
            file.write(self.reason[:1000])
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            sync_directory(os.path.dirname(os.path.abspath(self.path)))

    def put_aside(self) -> None:
        """See `StateDamaged`. One such set of files is kept, the newest. A crash in between is made good by a repeat.

        Raises:
            OSError: the disk failed.
        """
        directory = os.path.dirname(os.path.abspath(self.path))
        self.note()
        if os.path.exists(self.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + ASIDE_SUFFIX + "-wal")
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + "-wal", self.path + ASIDE_SUFFIX + "-wal")
            os.rename(self.path, self.path + ASIDE_SUFFIX)
        remove_sides(self.path)
        sync_directory(directory)
        remove_mark(self.path)


class SpoolNewer(SpoolUnusable, NewerFormat):
    """A newer smtpraft wrote the file, or proposed a command: going on would make this node differ from the others."""


class SpoolFull(NoRoom):
    """There is no room to apply a batch. Nothing of it was applied: give the same items again when there is room."""
