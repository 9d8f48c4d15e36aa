"""A disk in memory that forgets like a real one: for tests and for the simulator.

It keeps two states. What programs see is at once there; what a power loss leaves is what was synced, plus any part of
what was not: each unsynced write in sectors of 512 bytes, each of which reached the platter or did not, or was torn:
then nothing is known of the whole sector; each change of a directory that was not synced, or not. `crash` draws one
such outcome from a seed.

    write A, write B, sync, write C, write D          sees  A B C D
                                                      keeps A B, and of C and D any sectors

A failed sync is the kernel's: what it should have stored counts as clean from then on and is never written, though it
can still be read, until the cache is dropped (fsyncgate).
"""

from __future__ import annotations

import errno
import os
import posixpath
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from smtpraft.storage.disk import Buffer, File

SECTOR_BYTES: Final = 512


class PowerCut(Exception):
    """The machine is off: raised by a hook in place of an operation, to be caught by the test that set the hook."""


class Outcome(Enum):
    """What becomes of unsynced changes in a power loss."""

    NOTHING = "nothing of it was stored"
    ALL = "all of it was stored"
    SECTORS = "any sectors and any names were stored"
    TORN = "any sectors were stored, some of them are garbage"


class Operation(NamedTuple):
    """One call that changes the disk, or promises something of it."""

    number: int
    kind: str
    path: str


@dataclass(slots=True)
class _Inode:
    """A file's contents: as seen, as stored, and the writes between the two."""

    seen: bytearray = field(default_factory=bytearray)
    stored: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes]] = field(default_factory=list)


_split = lru_cache(maxsize=4096)(posixpath.split)


@dataclass(slots=True)
class _Directory:
    """Names: as seen, as stored, and the changes between the two; a change sets some names, None removes."""

    seen: dict[str, _Inode] = field(default_factory=dict)
    stored: dict[str, _Inode] = field(default_factory=dict)
    unsynced: list[dict[str, _Inode | None]] = field(default_factory=list)


class SimulatedFile:
    """An open file of a simulated disk."""

    __slots__ = ("_disk", "_inode", "_open", "_path")

    def __init__(self, disk: SimulatedDisk, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode
        self._open = True
        disk.open_files += 1

    @property
    def path(self) -> str:
        return self._path

    def size_bytes(self) -> int:
        self._check_open()
        return len(self._inode.seen)

    def pread(self, length: int, offset: int) -> bytes:
        self._check_open()
        with memoryview(self._inode.seen) as seen:
            return bytes(seen[offset : offset + length])

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        self._check_open()
        self._disk._before("write", self._path)
        self._write(b"".join(buffers), offset)

    def sync(self) -> None:
        self._check_open()
        try:
            self._disk._before("sync", self._path)
        except OSError:
            self._inode.unsynced.clear()
            raise
        for offset, data in self._inode.unsynced:
            _put(self._inode.stored, offset, data)
        self._inode.unsynced.clear()

    def drop_cache(self) -> None:
        self._check_open()
        seen = bytearray(self._inode.stored)
        for offset, data in self._inode.unsynced:
            _put(seen, offset, data)
        self._inode.seen[:] = seen

    def close(self) -> None:
        if self._open:
            self._open = False
            self._disk.open_files -= 1

    def _write(self, data: bytes, offset: int) -> None:
        growth = max(0, offset + len(data) - len(self._inode.seen))
        if growth and growth > self._disk.room_bytes():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        _put(self._inode.seen, offset, data)
        self._inode.unsynced.append((offset, data))

    def _check_open(self) -> None:
        if not self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)


class SimulatedDisk:
    """A `Disk` in memory. Its choices come from `seed`; `capacity_bytes` bounds what all files take together.

    `hook`, if set, is called before each operation that changes something, and may raise: OSError for a disk that
    fails, PowerCut for the end of the world. `operations` counts them.
    """

    def __init__(self, seed: int = 0, capacity_bytes: int | None = None) -> None:
        self._random = random.Random(seed)
        self._directories: dict[str, _Directory] = {}
        self.capacity_bytes = capacity_bytes
        self.hook: Callable[[Operation], None] | None = None
        self.operations = 0
        self.open_files = 0

    # The Disk protocol.

    def make_directory(self, path: str) -> None:
        # Durable at once: no part of the log depends on a directory that may not be there.
        while path not in self._directories:
            self._directories[path] = _Directory()
            path = posixpath.dirname(path)

    def list_directory(self, path: str) -> list[str]:
        below = {posixpath.basename(name) for name in self._directories if posixpath.dirname(name) == path and name}
        return sorted(below.union(self._directory(path).seen))

    def sync_directory(self, path: str) -> None:
        directory = self._directory(path)
        self._before("sync directory", path)
        directory.stored = dict(directory.seen)
        directory.unsynced.clear()

    def open(self, path: str) -> SimulatedFile:
        return SimulatedFile(self, path, self._inode(path))

    def create(self, path: str) -> SimulatedFile:
        self._before("create", path)
        if posixpath.basename(path) in self._parent(path).seen:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        inode = _Inode()
        self._change(path, {posixpath.basename(path): inode})
        return SimulatedFile(self, path, inode)

    def allocate_zeroed(self, file: File, size_bytes: int, *, gently: bool = False) -> None:
        file.pwritev([bytes(size_bytes)], 0)
        file.sync()

    def reserve(self, file: File, size_bytes: int) -> None:
        self.allocate_zeroed(file, size_bytes)

    def rename(self, source: str, target: str) -> None:
        assert posixpath.dirname(source) == posixpath.dirname(target)
        self._before("rename", source)
        inode = self._inode(source)
        self._change(source, {posixpath.basename(source): None, posixpath.basename(target): inode})

    def unlink(self, path: str) -> None:
        self._before("unlink", path)
        self._inode(path)
        self._change(path, {posixpath.basename(path): None})

    def random_u64(self) -> int:
        return self._random.getrandbits(64)

    # What tests do to it.

    def room_bytes(self) -> int:
        """Return how many more bytes the disk takes."""
        if self.capacity_bytes is None:
            return 2**63
        inodes = {id(inode): inode for directory in self._directories.values() for inode in directory.seen.values()}
        return self.capacity_bytes - sum(len(inode.seen) for inode in inodes.values())

    def crash(self, outcome: Outcome, seed: int = 0) -> SimulatedDisk:
        """Return what is left after a power loss now: one of many possible disks. This one is not changed."""
        draw = random.Random(seed)
        disk = SimulatedDisk(draw.getrandbits(64), self.capacity_bytes)
        copies: dict[int, _Inode] = {}
        for path, directory in self._directories.items():
            names = dict(directory.stored)
            for change in directory.unsynced:
                if outcome is Outcome.ALL or (outcome is not Outcome.NOTHING and draw.random() < 0.5):
                    for name, inode in change.items():
                        if inode is None:
                            names.pop(name, None)
                        else:
                            names[name] = inode
            copied = _Directory()
            for name, inode in names.items():
                if id(inode) not in copies:
                    stored = _crashed(inode, outcome, draw)
                    copies[id(inode)] = _Inode(stored, bytearray(stored))
                copied.stored[name] = copied.seen[name] = copies[id(inode)]
            disk._directories[path] = copied
        return disk

    def copy(self) -> SimulatedDisk:
        """Return the disk as it is seen, as a new one on which all of it is stored."""
        return self.crash(Outcome.ALL)

    def contents(self, path: str) -> bytes:
        """Return a file's bytes as seen."""
        return bytes(self._inode(path).seen)

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Replace bytes, on the platter and in memory, without anybody having written them."""
        inode = self._inode(path)
        _put(inode.seen, offset, data)
        _put(inode.stored, offset, data)

    def lose(self, path: str) -> None:
        """Let a file be gone, without anybody having removed it."""
        directory, name = self._parent(path), posixpath.basename(path)
        directory.seen.pop(name)
        directory.stored.pop(name, None)
        directory.unsynced = [
            {each: to for each, to in change.items() if each != name} for change in directory.unsynced
        ]

    def flip(self, path: str, bit: int) -> None:
        """Flip one bit, counted from the start of the file."""
        self.damage(path, bit // 8, bytes([self._inode(path).seen[bit // 8] ^ 1 << bit % 8]))

    # Parts.

    def _before(self, kind: str, path: str) -> None:
        self.operations += 1
        if self.hook is not None:
            self.hook(Operation(self.operations, kind, path))

    def _directory(self, path: str) -> _Directory:
        try:
            return self._directories[path]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _parent(self, path: str) -> _Directory:
        return self._directory(_split(path)[0])

    def _inode(self, path: str) -> _Inode:
        try:
            return self._parent(path).seen[_split(path)[1]]
        except KeyError:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _change(self, path: str, change: dict[str, _Inode | None]) -> None:
        directory = self._parent(path)
        directory.unsynced.append(change)
        for name, inode in change.items():
            if inode is None:
                del directory.seen[name]
            else:
                directory.seen[name] = inode


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _crashed(inode: _Inode, outcome: Outcome, draw: random.Random) -> bytearray:
    """Return what a power loss leaves of a file."""
    stored = bytearray(inode.stored)
    if outcome is Outcome.NOTHING:
        return stored
    # A disk that loses most sectors, one that loses few, one in between: each finds other mistakes.
    kept = draw.choice((0.1, 0.5, 0.9))
    for offset, data in inode.unsynced:
        if outcome is Outcome.ALL:
            _put(stored, offset, data)
            continue
        end = offset + len(data)
        for start in range(offset - offset % SECTOR_BYTES, end, SECTOR_BYTES):
            lo, hi = max(start, offset), min(start + SECTOR_BYTES, end)
            if outcome is Outcome.TORN and draw.random() < 0.2:
                torn = draw.randrange(SECTOR_BYTES)
                reach = min(start + SECTOR_BYTES, max(end, len(stored)))
                _put(stored, start + torn, draw.randbytes(max(0, reach - start - torn)))
                hi = min(hi, start + torn)
            elif draw.random() >= kept:
                continue
            _put(stored, lo, data[lo - offset : max(lo, hi) - offset])
    return stored
