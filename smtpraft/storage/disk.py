"""The disk as the write-ahead log sees it, and the real one.

Paths are strings. Everything here blocks. What a call promises after a power loss:
    File.sync           the file's bytes and its length, not its name
    Disk.sync_directory the names in one directory
    rename              old name or new, never neither or half; which one is open until the directory is synced
    anything else       nothing: any part of it, in any order, may be on the disk or not

Assumed of the hardware: a write that is torn harms nothing outside the pages of 4096 bytes that it was to write.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from time import monotonic
from typing import Final, Protocol

Buffer = bytes | bytearray | memoryview

_IOVECS_MAX: Final = 1024  # IOV_MAX on Linux
# Zeros are written and synced in portions, so that the log's own syncs do not queue behind all of them. Measured with a
# log that syncs 8 KiB beside it: portions of 4 MiB make its median sync 2.7 ms, of 256 KiB 0.22, with pauses 0.14.
_ZEROS: Final = bytes(256 * 1024)


class File(Protocol):
    """An open file. Reads and writes carry their position, so threads may share it."""

    @property
    def path(self) -> str:
        """The path it was opened by; a rename does not change it."""

    def size_bytes(self) -> int:
        """Return its length."""

    def pread(self, length: int, offset: int) -> bytes:
        """Return `length` bytes at `offset`, fewer only at the end of the file."""

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all of `buffers`, one after the other, at `offset`."""

    def sync(self) -> None:
        """Return when every byte written so far would survive a power loss. After an error nothing is known."""

    def drop_cache(self) -> None:
        """Have later reads come from the device rather than from memory, as far as the system can."""

    def close(self) -> None:
        """Close it; once is enough, twice is harmless."""


class Disk(Protocol):
    """A place for files. Errors are OSError with the `errno` of POSIX."""

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, durably; harmless if it is there."""

    def list_directory(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""

    def sync_directory(self, path: str) -> None:
        """Return when the names in the directory would survive a power loss."""

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing."""

    def create(self, path: str) -> File:
        """Create a file that does not exist yet."""

    def allocate_zeroed(self, file: File, size_bytes: int, *, gently: bool = False) -> None:
        """Fill a new file with zeros up to `size_bytes` and sync it, so that writing into it needs no more room.

        `gently` leaves the disk to others three quarters of the time.
        """

    def reserve(self, file: File, size_bytes: int) -> None:
        """Set room aside for `size_bytes` of a new file, which read as zeros, and sync that: quick, where it can be."""

    def rename(self, source: str, target: str) -> None:
        """Give a file another name in the same directory, atomically."""

    def unlink(self, path: str) -> None:
        """Remove a file."""

    def random_u64(self) -> int:
        """Return an unpredictable number; a simulated disk draws it from its seed."""


class RealFile:
    """A file of the operating system."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd

    @property
    def path(self) -> str:
        return self._path

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._fd

    def size_bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        got = len(data)
        while got < length:
            data = os.pread(self._fd, length - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        if len(buffers) > _IOVECS_MAX:
            buffers = [b"".join(buffers)]
        total = sum(map(len, buffers))
        written = os.pwritev(self._fd, buffers, offset)
        if written == total:
            return
        rest = memoryview(b"".join(buffers))
        while written < total:  # A signal or a nearly full disk can cut a write short.
            written += os.pwrite(self._fd, rest[written:], offset + written)

    def sync(self) -> None:
        # The segments are filled with zeros beforehand: no length to store, so fdatasync has one journey to make.
        os.fdatasync(self._fd)

    def drop_cache(self) -> None:
        with suppress(OSError):  # Advice; some file systems do not take it.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealDisk:
    """The file systems of this machine."""

    def make_directory(self, path: str) -> None:
        path = os.path.abspath(path)
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            self.sync_directory(os.path.dirname(directory))

    def list_directory(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def open(self, path: str) -> RealFile:
        return RealFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def create(self, path: str) -> RealFile:
        return RealFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def allocate_zeroed(self, file: File, size_bytes: int, *, gently: bool = False) -> None:
        assert isinstance(file, RealFile)
        pause = Event()
        # Reserve first: one piece on the disk, and a full disk says so before anything is written. Then write zeros: a
        # reserved block still costs a journal entry at its first write: 0.20 ms an fdatasync instead of 0.10.
        _reserve(file._fd, size_bytes)
        for offset in range(0, size_bytes, len(_ZEROS)):
            began = monotonic()
            file.pwritev([memoryview(_ZEROS)[: size_bytes - offset]], offset)
            os.fdatasync(file._fd)
            if gently:
                pause.wait(3 * (monotonic() - began))
        os.fsync(file._fd)

    def reserve(self, file: File, size_bytes: int) -> None:
        assert isinstance(file, RealFile)
        if _reserve(file._fd, size_bytes):
            os.fsync(file._fd)
        else:
            self.allocate_zeroed(file, size_bytes)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def random_u64(self) -> int:
        return secrets.randbits(64)


def _reserve(fd: int, size_bytes: int) -> bool:
    """Have the file system set room aside; return whether it can do such a thing."""
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True
