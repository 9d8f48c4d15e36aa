"""A state machine whose state fits in memory: what it does is yours to write, keeping it is done here.

The state is a file, written anew when the log is about to be cut: under another name, synced, renamed. What was applied
after that is in the log, and is applied again at the next start. The same file is the snapshot that is sent to a member
which was away for too long.

File, big endian: `magic 8 bytes | CRC32 of the rest u32 | index u64 | length of notes u32 | notes | state`.

Not for states of many megabytes: while the file is written nothing is applied.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from smtpraft.cluster.machine import Applied, Command, Item, NodeDown, NodeUp
from smtpraft.errors import Fatal

log = logging.getLogger(__name__)

MAGIC: Final = b"smtpraft"
POINT_INTERVAL: Final = 1024  # entries between two comparisons of the nodes, each of which costs a `dump`
POINTS_MAX: Final = 16
_HEADER: Final = struct.Struct(">8sI")
_FACTS: Final = struct.Struct(">QI")


class MemoryMachine(ABC):
    """Inherit, write `command`, `dump` and `load`, and give it to a `Node` with a `path` of its own for the file.

    Methods run on one thread that is not the event loop's; what the loop reads of the state it reads beside them.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._applied = Applied(0, b"")
        self._durable_index = 0
        self._points: dict[int, int] = {}
        self._newest = 0
        self._state = threading.Lock()  # of one moment: state, index and notes

    @abstractmethod
    def command(self, item: Command) -> object:
        """Do what `item.data` says; return what `Node.replicate` shall return. A bad command is a result too.

        Deterministic: a function of the state and of `item`, whose `stamp` is the only clock. No randomness, no order
        of sets, no local settings. What it raises stops the node, and all others alike.
        """

    @abstractmethod
    def dump(self) -> bytes:
        """Return the whole state; the same bytes for the same state, on every node."""

    @abstractmethod
    def load(self, state: bytes) -> None:
        """Take the state that `dump` returned in place of the present one."""

    def node_changed(self, item: NodeUp | NodeDown) -> None:  # noqa: B027 - most machines do not care
        """A node works now, or works no more: for machines that give work to nodes."""

    # What the node asks for: see `StateMachine`.

    def open(self) -> Applied:
        """Read the file, if there is one.

        Raises:
            Fatal: it is damaged, or something else.
        """
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return self._applied
        self._applied, state = _decode(self.path, content)
        self._durable_index = self._applied.index
        self.load(state)
        return self._applied

    def apply(self, items: Sequence[Item], notes: bytes) -> Sequence[object]:
        """Apply what was committed."""
        results: list[object] = []
        with self._state:
            for item in items:
                result = None
                if isinstance(item, Command):
                    result = self.command(item)
                elif isinstance(item, NodeUp | NodeDown):
                    self.node_changed(item)
                results.append(result)
                if item.index % POINT_INTERVAL == 0:
                    self._points[item.index] = int.from_bytes(sha256(self.dump()).digest()[:8], "big")
                    self._newest = item.index
                    self._points.pop(item.index - POINT_INTERVAL * POINTS_MAX, None)
            self._applied = Applied(items[-1].index, notes)
        return results

    def checkpoint(self) -> int:
        """Write the file, if something was applied since."""
        if self._applied.index > self._durable_index:
            new = self.path + ".new"
            try:
                applied = self.write_snapshot(new)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                log.warning("state not written: no room path=%s error=%s", self.path, error)  # the log stays longer
            else:
                _put_in_place(new, self.path)
                self._durable_index = applied.index
        return self._durable_index

    def before_compaction(self, to_index: int) -> None:  # noqa: B027
        """Nothing of the state is only in the log."""

    def write_snapshot(self, path: str) -> Applied:
        """Write the state to `path` and sync it."""
        with self._state:
            applied, state = self._applied, self.dump()
        rest = _FACTS.pack(applied.index, len(applied.notes)) + applied.notes + state
        with open(path, "wb") as file:
            file.write(_HEADER.pack(MAGIC, zlib.crc32(rest)) + rest)
            file.flush()
            os.fsync(file.fileno())
        return applied

    def install_snapshot(self, path: str) -> None:
        """Put a file that another member wrote in the place of ours."""
        _put_in_place(path, self.path)

    def digest(self) -> tuple[int, int]:
        """Return the newest point at which nodes can be compared, with its digest."""
        return (self._newest, self._points[self._newest]) if self._newest else (0, 0)

    def digest_at(self, index: int) -> int | None:
        """Return the digest at a recent point."""
        return self._points.get(index)

    def close(self) -> None:  # noqa: B027
        """There is nothing to release."""


def _decode(path: str, content: bytes) -> tuple[Applied, bytes]:
    facts_at = _HEADER.size
    if len(content) >= facts_at + _FACTS.size:
        magic, crc = _HEADER.unpack_from(content)
        if magic == MAGIC and crc == zlib.crc32(content[facts_at:]):
            index, notes_bytes = _FACTS.unpack_from(content, facts_at)
            notes_at = facts_at + _FACTS.size
            state_at = notes_at + notes_bytes
            return Applied(index, content[notes_at:state_at]), content[state_at:]
    raise Fatal(f"{path}: damaged, or no state of this library's. Keep the directory, and ask what the disk did")


def _put_in_place(new: str, path: str) -> None:
    os.replace(new, path)
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name is only safe once its folder is synced
    finally:
        os.close(folder)
