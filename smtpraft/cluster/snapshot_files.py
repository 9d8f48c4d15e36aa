"""The directory `snapshot` of a node: copies on their way out, the one on its way in, and the mark of an install.

    copy-ID.snap                       made here, for others; nothing of it outlives the process
    incoming.json, .part, .sums        what is being received, and the CRC32C of each chunk of it: enough to go on after
                                       a crash, for the chunks that did not reach the disk are found by their sums
    install.snap                       received whole, checked, synced
    install.json                       it is being installed: state machine and log are between two states

Invariant: while `install.json` is there, machine and log are the old ones or the new ones, each for itself; a start
makes both new before anything else looks at them. It goes when both are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import struct
from typing import Final

import msgspec

from smtpraft.cluster.snapshot_format import SnapshotInfo, decode_info, encode_info
from smtpraft.fastlog import crc32c
from smtpraft.storage import Disk, File, HardState, WalFull

log = logging.getLogger(__name__)

INCOMING: Final = "incoming"
PART: Final = f"{INCOMING}.part"
SUMS: Final = f"{INCOMING}.sums"
DESCRIPTION: Final = f"{INCOMING}.json"
READY: Final = "install.snap"
MARK: Final = "install.json"
SYNC_BYTES: Final = 8 * 1024 * 1024  # so that the last sync, and the log's beside it, is no long one
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_SUM: Final = struct.Struct(">I")


class SnapshotBroken(Exception):
    """What was received is not what was announced."""


class MarkDamaged(Exception):
    """The mark of an install is not what was written: nobody knows which snapshot was being installed."""


class _Mark(msgspec.Struct, frozen=True):
    info: SnapshotInfo
    term: int
    vote: str
    crc: int = -1
    """Of the others: a digit that a disk has changed would be a term or a vote that nobody gave."""


def _mark_sum(info: SnapshotInfo, term: int, vote: str) -> int:
    return crc32c(msgspec.json.encode((info, term, vote)))


class Part:
    """A snapshot that is being received. For one thread at a time."""

    def __init__(self, info: SnapshotInfo, data: File, sums: File) -> None:
        self.info = info
        self.offset = 0
        """All before it is here, and sound."""
        self._data = data
        self._sums = sums
        self._hash = hashlib.sha256()
        self._synced = 0

    def resume(self) -> None:
        """Find how much of it an earlier run has left: all chunks up to the first that does not fit its sum."""
        while self.offset < self.info.size_bytes:
            chunk = self._data.pread(min(self.info.chunk_bytes, self.info.size_bytes - self.offset), self.offset)
            kept = self._sums.pread(_SUM.size, self.offset // self.info.chunk_bytes * _SUM.size)
            whole = len(chunk) == min(self.info.chunk_bytes, self.info.size_bytes - self.offset)
            if not whole or kept != _SUM.pack(crc32c(chunk)):
                break
            self._hash.update(chunk)
            self.offset += len(chunk)

    def write(self, offset: int, crc: int, chunk: bytes) -> None:
        """Add the next chunk.

        Raises:
            SnapshotBroken: it is not the next one, or damaged. Nothing was written.
            OSError: the disk.
        """
        if offset != self.offset or len(chunk) != min(self.info.chunk_bytes, self.info.size_bytes - offset):
            raise SnapshotBroken(f"{len(chunk)} bytes at {offset}, where {self.offset} comes next")
        if crc32c(chunk) != crc:
            raise SnapshotBroken(f"the chunk at {offset} is damaged")
        self._data.pwritev([chunk], offset)
        self._sums.pwritev([_SUM.pack(crc)], offset // self.info.chunk_bytes * _SUM.size)
        self._hash.update(chunk)
        self.offset += len(chunk)
        if self.offset - self._synced >= SYNC_BYTES:
            self._synced = self.offset
            self._data.sync()

    @property
    def complete(self) -> bool:
        """Is all of it here?"""
        return self.offset == self.info.size_bytes

    def check(self) -> None:
        """Sync it.

        Raises:
            SnapshotBroken: the whole is not what was announced, though each part of it was.
        """
        assert self.complete
        if self._hash.hexdigest() != self.info.sha256:
            raise SnapshotBroken("its checksum is another")
        self._data.sync()

    def close(self) -> None:
        """Close the files; what is in them stays."""
        self._data.close()
        self._sums.close()


class SnapshotFiles:
    """The directory. Every method blocks on the disk."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self.directory = directory

    def open(self) -> tuple[SnapshotInfo, HardState] | None:
        """Make the directory, remove what is of no use any more; return the install that a crash has interrupted.

        Raises:
            MarkDamaged: the mark of an install is not what was written.
        """
        self._disk.make_directory(self.directory)
        self._disk.sync_directory(self.directory)  # The names seen next may be those of renames that were never synced.
        names = self._disk.list_directory(self.directory)
        marked = MARK in names
        for name in names:
            if name.startswith("copy-") or name.endswith(".tmp") or (name == READY and not marked):
                self._disk.unlink(self._path(name))
        if not marked:
            return None
        try:
            written = self._read(MARK)
            mark = msgspec.json.decode(written, type=_Mark)
            info = decode_info(encode_info(mark.info))
            if mark.crc != _mark_sum(info, mark.term, mark.vote) or written != msgspec.json.encode(mark):
                raise ValueError("it is not what was written")
        except (ValueError, msgspec.DecodeError) as error:
            raise MarkDamaged(f"{self._path(MARK)}: {error}") from error
        return info, HardState(mark.term, mark.vote, info.index)

    def copy_path(self, id: str) -> str:
        """Return where the copy of this id is."""
        return self._path(f"copy-{id}.snap")

    def remove(self, path: str) -> None:
        """Remove a copy, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(path)

    # Receiving

    def begin(self, info: SnapshotInfo) -> Part:
        """Begin to receive, or go on where that was broken off.

        Raises:
            OSError: the disk.
        """
        names = self._disk.list_directory(self.directory)
        wanted = encode_info(info)
        if {DESCRIPTION, PART, SUMS}.issubset(names) and self._read(DESCRIPTION) == wanted:
            part = Part(info, self._disk.open(self._path(PART)), self._disk.open(self._path(SUMS)))
            part.resume()
            return part
        self.discard()
        part = Part(info, self._disk.create(self._path(PART)), self._disk.create(self._path(SUMS)))
        self._write(DESCRIPTION, wanted)
        return part

    def discard(self) -> None:
        """Forget what was received so far."""
        names = self._disk.list_directory(self.directory)
        for name in (DESCRIPTION, PART, SUMS):  # The description first: without it the others mean nothing.
            if name in names:
                self._disk.unlink(self._path(name))

    def finish(self, part: Part) -> None:
        """Check what was received, and make it ready for the install, durably.

        Raises:
            SnapshotBroken: it is not what was announced; it is discarded.
            OSError: the disk.
        """
        try:
            part.check()
        except SnapshotBroken:
            part.close()
            self.discard()
            raise
        part.close()
        self._disk.rename(self._path(PART), self._path(READY))
        self.discard()
        self._disk.sync_directory(self.directory)

    # Installing

    @property
    def ready_path(self) -> str:
        """Where the snapshot is that was received whole."""
        return self._path(READY)

    def ready(self) -> bool:
        """Is it there? The state machine takes it away when it installs it."""
        return READY in self._disk.list_directory(self.directory)

    def mark(self, info: SnapshotInfo, hard_state: HardState) -> None:
        """From here on there is no way but forward.

        Raises:
            WalFull: no room for the mark; try again.
        """
        try:
            term, vote = hard_state.term, hard_state.vote
            self._write(MARK, msgspec.json.encode(_Mark(info, term, vote, _mark_sum(info, term, vote))))
        except OSError as error:
            if error.errno in NO_SPACE:
                raise WalFull(f"no room to install a snapshot in {self.directory}") from error
            raise

    def unmark(self) -> None:
        """The install is complete: machine and log are of one state, durably."""
        self._disk.unlink(self._path(MARK))
        self._disk.sync_directory(self.directory)
        self.drop_ready()

    def drop_ready(self) -> None:
        """Remove the received snapshot; nobody needs it any more, or ever did."""
        self.remove(self.ready_path)

    # Small things

    def _path(self, name: str) -> str:
        return f"{self.directory}/{name}"

    def _read(self, name: str) -> bytes:
        file = self._disk.open(self._path(name))
        try:
            return file.pread(file.size_bytes(), 0)
        finally:
            file.close()

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all: a name appears only over synced bytes."""
        temporary = self._path(f"{name}.tmp")
        self.remove(temporary)
        file = self._disk.create(temporary)
        try:
            file.pwritev([data], 0)
            file.sync()
        finally:
            file.close()
        self._disk.rename(temporary, self._path(name))
        self._disk.sync_directory(self.directory)
