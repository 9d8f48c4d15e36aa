"""What a node has promised, kept a second time, apart from the log: so that damage to the log cannot take it along.

A log that lost a synced batch still shows an earlier state of itself, and cannot tell in which term the node voted, nor
whether a segment came after the last one that is here. This file can. It is written and synced before the log says the
same, so no answer ever leaves that it does not cover.

The file `promises` has two slots, each a page of 4096 bytes. They are written one after the other, each with a sync,
the older one first: whichever is torn, the other one has all that was promised when an answer left. Whichever is
damaged, too, but for a moment: a vote, for which others wait, is written to one slot before the answer and to the
other one when the log is idle, or some batches later; until then the log's own page and that slot are the two copies.

Slot, big endian, zeros after the fields:
    magic u8[8] | crc u32 | version u32 | number u64 | term u64 | segment u64 | floor u64 | base_index u64 |
    base_term u64 | abstain_term u64 | durable u64 | vote_length u8 | vote u8[64]

`crc` is CRC-32C over everything from `version` to `vote`.
    number        of this write; the higher one counts
    segment       sequence of the newest segment; it exists before it is noted here
    floor, base   the oldest segment that counts and the entry before it, so that a log can begin there anew; noted
                  before those before it are recycled
    abstain_term  0, or: part of the log was lost, and this is not below any term in which the node had voted or
                  acknowledged by then. It neither votes nor leads until its log ends in a later term
    durable       a batch that was synced; noted with whatever else is, and when the log is idle or closed: a log that
                  ends before it lost something, even if nothing that vouches for it is left
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace
from typing import Final

from smtpraft.fastlog import crc32c
from smtpraft.storage.batch import VOTE_BYTES_MAX
from smtpraft.storage.disk import Disk, File
from smtpraft.storage.errors import WalNewer, WalReadOnly

PROMISES_FILE: Final = "promises"
PROMISES_VERSION: Final = 1
SLOT_BYTES: Final = 4096
BEHIND_MAX: Final = 64  # batches under load, a few tenths of a second: a log that is idle writes both at once

_MAGIC: Final = b"SMTPRPRO"
_PREFIX: Final = struct.Struct(">8sI")
_FIELDS: Final = struct.Struct(">IQQQQQQQQB64s")


@dataclass(frozen=True, slots=True)
class Promise:
    """One slot; the module's docstring says what the fields mean."""

    term: int = 0
    vote: str = ""
    segment: int = 1
    floor: int = 1
    base_index: int = 0
    base_term: int = 0
    abstain_term: int = 0
    durable: int = 0
    number: int = 0


class Promises:
    """The file of one node, open. Not for several threads at a time."""

    def __init__(self, file: File, current: Promise | None, slot: int, alike: bool) -> None:
        """For `open`. `slot`: where `current` is; `alike`: so is the other one."""
        self._file = file
        self._current = current
        self._slot = slot
        self._behind = 0 if alike else 1

    @classmethod
    def open(cls, disk: Disk, directory: str) -> Promises:
        """Open the file in an existing directory, or make it.

        Raises:
            OSError: the disk does not work, or has no room.
            WalNewer: a newer release wrote it.
        """
        path = f"{directory}/{PROMISES_FILE}"
        names = disk.list_directory(directory)
        if PROMISES_FILE not in names:
            if f"{PROMISES_FILE}.tmp" in names:
                disk.unlink(f"{path}.tmp")
            file = disk.create(f"{path}.tmp")
            try:
                disk.allocate_zeroed(file, 2 * SLOT_BYTES)
            finally:
                file.close()
            disk.rename(f"{path}.tmp", path)
        disk.sync_directory(directory)
        file = disk.open(path)
        try:
            file.sync()
            file.drop_cache()
            return cls(file, *_read(file))
        except BaseException:
            file.close()
            raise

    @property
    def current(self) -> Promise | None:
        """What was promised last; None if that cannot be told: the file is new, or damaged."""
        return self._current

    @property
    def complete(self) -> bool:
        """Is what was promised last in both slots?"""
        return not self._behind

    def update(self, durable: int, *, soon: bool = False, **changes: int | str) -> None:
        """Make these fields of the promise durable, unless they are. `durable` is noted on the occasion, or alone.

        `soon`: in one slot, and in the other one with one of the next `BEHIND_MAX` calls, or the next without `soon`.

        Raises:
            WalReadOnly, OSError: as `write`.
        """
        current = self._current
        if current is None or not (
            # As it nearly always is: this is asked before every write of the log.
            all(getattr(current, name) == value for name, value in changes.items())
            if changes
            else current.durable == durable
        ):
            self.write(replace(current or Promise(), **changes, durable=durable), soon=soon)  # type: ignore[arg-type]
        elif self._behind:
            self._behind += 1
            if not soon or self._behind > BEHIND_MAX:
                self._put(current, 1 - self._slot)
                self._behind = 0

    def write(self, promise: Promise, *, soon: bool = False) -> None:
        """Make a promise durable; `soon`: see `update`.

        Raises:
            WalReadOnly: the file system is read-only, and took nothing; the same may be promised again later.
            OSError: the disk failed; what is stored is unknown.
        """
        promise = replace(promise, number=self._current.number + 1 if self._current is not None else 1)
        # The older slot first: a torn write leaves what was promised before.
        slot = 1 - self._slot
        self._put(promise, slot)
        self._current, self._slot, self._behind = promise, slot, 1
        if not soon:
            self._put(promise, 1 - slot)
            self._behind = 0

    def _put(self, promise: Promise, slot: int) -> None:
        try:
            self._file.pwritev([encode_promise(promise)], slot * SLOT_BYTES)
        except OSError as error:
            if error.errno == errno.EROFS:
                raise WalReadOnly(f"could not write the promises: {error.strerror}") from error
            raise
        self._file.sync()

    def close(self) -> None:
        """Close the file. Harmless a second time."""
        self._file.close()


def encode_promise(promise: Promise) -> bytes:
    """Return the bytes of a slot."""
    vote = promise.vote.encode()
    if len(vote) > VOTE_BYTES_MAX:
        raise ValueError(f"the vote {promise.vote!r} is longer than {VOTE_BYTES_MAX} bytes")
    fields = _FIELDS.pack(
        PROMISES_VERSION,
        promise.number,
        promise.term,
        promise.segment,
        promise.floor,
        promise.base_index,
        promise.base_term,
        promise.abstain_term,
        promise.durable,
        len(vote),
        vote,
    )
    return (_PREFIX.pack(_MAGIC, crc32c(fields)) + fields).ljust(SLOT_BYTES, b"\0")


def decode_promise(slot: bytes) -> Promise | None:
    """Return what a slot holds, or None if it holds nothing.

    Raises:
        WalNewer: a newer release wrote it. It is no damage: to write over it would forget what was promised.
    """
    if len(slot) != SLOT_BYTES:
        return None
    magic, crc = _PREFIX.unpack_from(slot)
    fields = slot[_PREFIX.size : _PREFIX.size + _FIELDS.size]
    if magic != _MAGIC or crc32c(fields) != crc:
        return None
    version, number, term, segment, floor, base_index, base_term, abstain_term, durable, length, vote = _FIELDS.unpack(
        fields
    )
    if version != PROMISES_VERSION:
        raise WalNewer(
            f"{PROMISES_FILE} has format {version}; this program knows {PROMISES_VERSION}: upgrade this node"
        )
    return Promise(term, vote[:length].decode(), segment, floor, base_index, base_term, abstain_term, durable, number)


def _read(file: File) -> tuple[Promise | None, int, bool]:
    """Return the newest sound slot, None if neither is sound, its number, and whether the other one says the same."""
    slots = [decode_promise(file.pread(SLOT_BYTES, number * SLOT_BYTES)) for number in (0, 1)]
    slot = max((0, 1), key=lambda number: found.number if (found := slots[number]) is not None else -1)
    return slots[slot], slot, slots[0] == slots[1]
