"""What can be wrong with the spool as a whole. All but `SpoolFull` stop the node: it loses nothing by stopping."""

from __future__ import annotations

from smtpraft.cluster.machine import NoRoom
from smtpraft.errors import Fatal


class SpoolUnusable(Fatal):
    """The file at `path` is not a spool that this version can work with, for the given `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SpoolNewer(SpoolUnusable):
    """A newer smtpraft wrote the file, or proposed a command: going on would make this node differ from the others."""


class SpoolFull(NoRoom):
    """There is no room to apply a batch. Nothing of it was applied: give the same items again when there is room."""
