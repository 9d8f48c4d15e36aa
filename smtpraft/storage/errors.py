"""What can go wrong with a node's disk, by what the node may still do about it."""

from __future__ import annotations

from smtpraft.errors import Fatal, NewerFormat, SmtpRaftError


class WalCorrupt(Fatal):
    """The log lacks something that had been synced: the node must not vote or lead as though it had never existed.

    `file` and `offset` say where the first bad bytes are, `lost_first` to `lost_last` which entries are not to be had.
    The range is empty (`lost_first > lost_last`) if what is lost holds no entries, as a vote does. Nothing was changed.
    """

    def __init__(self, reason: str, file: str, offset: int, lost_first: int, lost_last: int) -> None:
        self.reason = reason
        self.file = file
        self.offset = offset
        self.lost_first = lost_first
        self.lost_last = lost_last
        lost = f"entries {lost_first} to {lost_last} are lost" if lost_first <= lost_last else "no entries are lost"
        super().__init__(
            f"{file}, offset {offset}: {reason}; {lost}. This was synced before, so it is no torn write. Keep the "
            "directory. A member of a cluster that is started again gets back from the others what it lost; one that "
            "says this at its start as well cannot, and has to be replaced: smtpraft member replace"
        )


class WalForeign(Fatal):
    """The log was written by another node or for another cluster."""


class WalNewer(NewerFormat):
    """The log, or the file `promises`, was written by a newer version, in a format that this one does not know."""


class WalFailed(Fatal):
    """A write or sync failed: what is on disk is unknown, and asking again would get a lie (the kernel forgets)."""


class WalFull(SmtpRaftError):
    """There is no room for the next segment. Nothing was written; the same write may succeed later."""


class WalReadOnly(WalFull):
    """The file system is read-only, and refused a write as a whole. The same write may succeed later."""


class DirectoryInUse(SmtpRaftError):
    """Another process works in this data directory."""


class IdentityMismatch(SmtpRaftError):
    """This data directory belongs to another node or cluster, or was written under another election rule."""
