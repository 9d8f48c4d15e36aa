"""Files made ready to become segments, so that the write path never waits for one and a full disk is known in advance.

A spare is zero-filled and synced, or a recycled segment. It is named `NUMBER.spare`; while being made, `NUMBER.tmp`.
To fill one takes seconds beside a busy log. Who needs a segment while there is none makes one without zeros, in
milliseconds: writing into that is dearer for a while, but nobody waits, and no disk seems to hang.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from threading import Condition, Thread
from typing import Final

from smtpraft.storage.batch import BATCH_ALIGN_BYTES
from smtpraft.storage.disk import Disk
from smtpraft.storage.errors import WalFull

log = logging.getLogger(__name__)

SPARES_WANTED: Final = 2
LOST_SUFFIX: Final = ".lost"
"""Of segments that were put aside until this node is whole again."""
SPARES_MAX: Final = 4  # What compaction frees beyond this goes back to the file system.
RETRY_S: Final = 1.0

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_SPARE_NAME: Final = re.compile(r"([0-9a-f]{16})\.(spare|tmp)")


def is_spare_name(name: str) -> bool:
    """Tell whether a file of this name is ready for use."""
    return name.endswith(".spare") and _SPARE_NAME.fullmatch(name) is not None


def is_unfinished_name(name: str) -> bool:
    """Tell whether a file of this name was being made when its process ended."""
    return name.endswith(".tmp") and _SPARE_NAME.fullmatch(name) is not None


def has_size(disk: Disk, path: str, size_bytes: int) -> bool:
    """Tell whether a file has this length."""
    file = disk.open(path)
    try:
        return file.size_bytes() == size_bytes
    finally:
        file.close()


class SparePool:
    """The spares of one log. `take` and `recycle` are for the log, `prepare` for a thread or for a simulator."""

    def __init__(self, disk: Disk, directory: str, size_bytes: int, ready: Sequence[str]) -> None:
        self._disk = disk
        self._directory = directory
        self._size_bytes = size_bytes
        self._ready = list(ready)
        self._next_number = 1 + max((int(name.split(".")[0], 16) for name in ready), default=0)
        self._changed = Condition()
        self._making = False
        self._complaint = ""
        self._full = False
        self._closed = False
        self._thread: Thread | None = None

    @property
    def count(self) -> int:
        """Spares ready for use."""
        return len(self._ready)

    @property
    def full(self) -> bool:
        """Whether the last attempt to make a spare found no room on the disk."""
        return self._full

    def start(self) -> None:
        """Keep `SPARES_WANTED` ready from a thread of its own."""
        self._thread = Thread(target=self._run, name="wal-spares", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; a spare in the making is finished first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take(self) -> str | None:
        """Return the name of a spare, which is the caller's from now on; None when there is none."""
        with self._changed:
            self._changed.notify_all()
            return self._ready.pop(0) if self._ready else None

    def take_or_make(self, needed_bytes: int) -> tuple[str, int, bool]:
        """Return a file's name, its size, and whether it had to be made: a spare, or a larger file if none will do.

        Raises:
            WalFull: there is no room.
            OSError: the disk does not work.
        """
        name = self.take() if needed_bytes <= self._size_bytes else None
        if name is not None:
            return name, self._size_bytes, False
        size_bytes = max(self._size_bytes, -(-needed_bytes // BATCH_ALIGN_BYTES) * BATCH_ALIGN_BYTES)
        try:
            return self.make(size_bytes), size_bytes, True
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            with self._changed:  # The one that is being made may have got the last room.
                while self._making:
                    self._changed.wait()
            if size_bytes == self._size_bytes and (name := self.take()) is not None:
                return name, size_bytes, False
            raise WalFull(f"no room for a segment of {size_bytes} bytes in {self._directory}") from error

    def make(self, size_bytes: int, *, filled: bool = False) -> str:
        """Make a file and return its name, which is still that of an unfinished one; `filled`: in no hurry, with zeros.

        Raises:
            OSError: of what is there, nothing is left behind.
        """
        with self._changed:
            name = f"{self._next_number:016x}.tmp"
            self._next_number += 1
        path = f"{self._directory}/{name}"
        try:
            file = self._disk.create(path)
            try:
                if filled:
                    self._disk.allocate_zeroed(file, size_bytes, gently=True)
                else:
                    self._disk.reserve(file, size_bytes)
            except OSError:
                with suppress(OSError):
                    self._disk.unlink(path)
                raise
            finally:
                file.close()
        except OSError as error:
            self._full = error.errno in NO_SPACE
            raise
        self._full = False
        return name

    def prepare(self) -> bool:
        """Make one spare if fewer than wanted are ready. Return whether another one is wanted and worth trying now."""
        with self._changed:
            if self._closed or len(self._ready) >= SPARES_WANTED:
                return False
            self._making = True
        name = None
        try:
            unfinished = self.make(self._size_bytes, filled=True)
            spare = unfinished.replace(".tmp", ".spare")
            self._disk.rename(f"{self._directory}/{unfinished}", f"{self._directory}/{spare}")
            self._disk.sync_directory(self._directory)
            name = spare
            self._complaint = ""
        except OSError as error:
            if str(error) != self._complaint:  # once for each thing that is wrong, not once a try
                self._complaint = str(error)
                log.warning("no spare segment directory=%s error=%s", self._directory, error)
            return False
        finally:
            with self._changed:
                self._making = False
                if name is not None:
                    self._ready.append(name)
                self._changed.notify_all()
        return len(self._ready) < SPARES_WANTED

    def recycle(self, names: Sequence[str]) -> None:
        """Make spares of segments that are no longer needed; remove those of an odd size and those that are too many.

        Raises:
            OSError: some may be spares already, some still have their old names; a recovery finds both harmless.
        """
        spares: list[str] = []
        for name in names:
            path = f"{self._directory}/{name}"
            with self._changed:
                keep = len(self._ready) + len(spares) < SPARES_MAX
                spare = f"{self._next_number:016x}.spare"
                self._next_number += 1
            if keep and has_size(self._disk, path, self._size_bytes) and self._renamed(path, spare):
                spares.append(spare)
            else:
                self._disk.unlink(path)
        # Before anything is written into them: a power loss could bring the old names back, over new contents.
        self._disk.sync_directory(self._directory)
        with self._changed:
            self._ready += spares
            self._full = self._full and not spares
            self._changed.notify_all()

    def put_aside(self, names: Sequence[str]) -> None:
        """Keep segments that count no more under other names, in case nobody else has what is in them.

        Raises:
            OSError: some still have their old names, and may be recycled.
        """
        for name in names:
            self._disk.rename(f"{self._directory}/{name}", f"{self._directory}/{name}{LOST_SUFFIX}")
        self._disk.sync_directory(self._directory)

    def _renamed(self, path: str, spare: str) -> bool:
        try:
            self._disk.rename(path, f"{self._directory}/{spare}")
        except OSError as error:
            if error.errno in NO_SPACE:  # The directory may have to grow. Removing gives room instead.
                return False
            raise
        return True

    def _run(self) -> None:
        while True:
            again = self.prepare()
            with self._changed:
                if self._closed:
                    return
                if not again:
                    self._changed.wait(RETRY_S if len(self._ready) < SPARES_WANTED else None)
