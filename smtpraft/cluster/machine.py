"""What a replicated state machine must offer to run on a cluster, and what it is given.

All methods but two are called on one worker thread, never on the event loop and never two at a time; `digest_at` and
`write_snapshot` say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from smtpraft.errors import Fatal, SmtpRaftError
from smtpraft.types import NodeId


class NoRoom(SmtpRaftError):
    """There is no room to apply a batch; nothing of it was applied. The same batch is given again until there is."""


class StateDamaged(Fatal):
    """The machine's own files are not what it wrote. With others, or with all of the log, it can be built anew."""

    def note(self) -> None:
        """Remember it durably: until `put_aside`, `open` raises this again. Any thread."""
        raise NotImplementedError

    def put_aside(self) -> None:
        """Keep the files for people to look at, under other names; `open` then begins with nothing."""
        raise NotImplementedError


class Command(msgspec.Struct, frozen=True, gc=False):
    """One replicated command, applied at most once however often it was proposed.

    `stamp` is milliseconds since the epoch as the leader saw it when it appended the entry: the only clock a machine
    may look at, and it never goes back. `crc` is the entry's checksum, for a digest that need not read the bytes again.
    """

    index: int
    term: int
    stamp: int
    crc: int
    node: NodeId
    """The node that proposed it."""
    data: bytes
    """The command as given to `Node.replicate`."""


class NodeUp(msgspec.Struct, frozen=True, gc=False):
    """`node` has (re)started or come back: what it proposes counts from here on. `index` is its new incarnation."""

    index: int
    term: int
    stamp: int
    crc: int
    node: NodeId


class NodeDown(msgspec.Struct, frozen=True, gc=False):
    """`node` holds no lease any more: what it owned belongs to others. `live` can take over; they are in order."""

    index: int
    term: int
    stamp: int
    crc: int
    node: NodeId
    live: tuple[NodeId, ...]


class Skipped(msgspec.Struct, frozen=True, gc=False):
    """An entry that changes nothing: a leader's empty entry, a repeat, a cancelled command, a membership change."""

    index: int
    term: int
    stamp: int
    crc: int


Item = Command | NodeUp | NodeDown | Skipped


class Applied(msgspec.Struct, frozen=True, gc=False):
    """How far a machine is: the last index it applied and the cluster's own notes, both of one transaction."""

    index: int
    notes: bytes
    copied_index: int | None = None
    """Of entries up to here it needs nothing any more, or `before_compaction` has copied it; None: it reads no entries
    again. A log that begins later than that belongs to a newer state of the machine than the one that it has."""


class StateMachine(Protocol):
    """A deterministic machine: the same items give the same state on every node.

    No clock but the items' stamps, no randomness, no iteration over unordered sets, no local configuration, no floats.
    """

    def open(self) -> Applied:
        """Return what survived the last run. A fresh machine answers `Applied(0, b"")`.

        It may be called again after it raised `StateDamaged`, which any method may.
        """

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        """Apply contiguous items in order, and store the last index and `notes` in the same transaction.

        Returns one result an item. `Node.replicate` hands the result of its command to its caller, on the proposing
        node. An exception but `NoRoom` stops the node: it is for a broken machine, never for a bad command (that is a
        result).
        """

    def checkpoint(self) -> int:
        """Make what was applied survive power loss; return the index up to which it does. The log may be cut there."""

    def before_compaction(self, to_index: int) -> None:
        """The log is about to forget entries up to `to_index`: copy what is still needed of them. May read entries."""

    def write_snapshot(self, path: str) -> Applied:
        """Write a whole copy of the state to the new file `path`; return of which index, with its notes.

        Called on a thread of its own, beside `apply`: the copy must be of one moment all the same. The log forgets
        nothing meanwhile. An SmtpRaftError or OSError says that it cannot be done now.
        """

    def install_snapshot(self, path: str) -> None:
        """Put the copy in the file `path` in the place of this state, durably; `open` is called next.

        The machine may be open or not. Rename the file or read it; the caller removes what is left. A crash must leave
        the old state and the file, or the new state: if the file is still there, this is called again.
        """

    def digest(self) -> tuple[int, int]:
        """Return (index, first 8 bytes of the digest at it) of the newest digest point, or (0, 0).

        Points are indexes that every node reaches alike (every 64th index, say), so that nodes can compare.
        """

    def digest_at(self, index: int) -> int | None:
        """Return the first 8 bytes of the digest at a recent point `index`, else None. Called from any thread."""

    def close(self) -> None:
        """Release files. Nothing else is called afterwards."""
