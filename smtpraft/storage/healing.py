"""What becomes of a log that lost something synced: the sound part stays, the rest is put aside, the node abstains.

    found            wal/1 wal/2 wal/3 wal/4      a bad batch in the middle of 3
    1  promise       term + 1, and to abstain through the highest term known: durable before anything else changes
    2  put aside     wal/4 → 4.lost
    3  the sound     a new file with what comes before the bad batch; wal/3 → 3.lost; the file → wal/3
    4  goes on       behind that, in the new term

A crash anywhere in between leaves the promise and a log that is as sound, and perhaps shorter: an abstaining node may
forget anything. When it has got back from the others what it lost, the damaged segment is kept as `.damaged` for
people to look at, and what else was put aside is removed.

This is safe because the log is not the only place that knows the term (see `promises`): whoever leads a later term was
elected without this node, so it has all that this node ever helped to commit (`Raft.abstains`).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Disk, File
from smtpraft.storage.errors import WalCorrupt
from smtpraft.storage.promises import Promise, Promises
from smtpraft.storage.recovery import Replayed
from smtpraft.storage.segment import parse_segment_name
from smtpraft.storage.spares import LOST_SUFFIX, SparePool

log = logging.getLogger(__name__)

DAMAGED_SUFFIX: Final = ".damaged"
DAMAGED_MAX: Final = 16
_COPY_BYTES: Final = 1024 * 1024


def reconcile(state: Replayed | None, promises: Promises, directory: str, names: list[str]) -> HardState:
    """Compare a log that was read whole, or that is new, with what was promised; return the hard state that counts.

    A vote that a torn tail took along is in the promise: it goes on to count, whether its answer left or not.

    Raises:
        WalCorrupt: the log ends before a segment that had been begun, or nobody can tell what was promised.
    """
    promise = promises.current
    if promise is None:
        if any(name.endswith(LOST_SUFFIX) for name in names):
            reason = "this node was getting back what its disk had lost; the file that says since when is unreadable"
            raise WalCorrupt(reason, directory, 0, 1, 0)
        return state.hard_state if state is not None else HardState()
    if state is None:
        raise WalCorrupt("all segments are missing", directory, 0, promise.base_index + 1, promise.base_index + 1)
    last = state.segments[-1].header.sequence
    if last < promise.segment:
        reason = f"segment {promise.segment}, the newest, is missing"
        raise WalCorrupt(reason, directory, 0, state.last_index + 1, state.last_index + 1)
    if state.number < promise.durable:
        reason = f"ends with batch {state.number}, batch {promise.durable} was synced"
        path = state.segments[-1].file.path
        raise WalCorrupt(reason, path, state.segments[-1].end_offset, state.last_index + 1, state.last_index + 1)
    found = state.hard_state
    if promise.term < found.term or (promise.term == found.term and not promise.vote):
        return found
    if promise.term == found.term and found.vote not in {"", promise.vote}:
        reason = f"in term {found.term} the log has a vote for {found.vote}, the promises for {promise.vote}"
        raise WalCorrupt(reason, directory, 0, 1, 0)
    return found._replace(term=promise.term, vote=promise.vote)


def renounce(promises: Promises, state: Replayed | None, promise: Promise) -> HardState:
    """Promise, durably, to abstain: before anything of the damaged log is touched. Return the new hard state.

    Raises:
        OSError: the disk failed.
    """
    left = state.hard_state if state is not None else HardState()
    through = max(1, promise.term, left.term, promise.abstain_term)
    segment = state.segments[-1].header.sequence if state is not None else promise.segment
    promises.write(replace(promise, term=through + 1, vote="", segment=segment, abstain_term=through, durable=0))
    if state is None:
        return HardState(through + 1, "", promise.base_index)
    # What was compacted was committed, even if the part that is left does not say so yet.
    base = state.segments[0].header.prev_index
    return HardState(through + 1, "", max(base, min(left.commit, state.last_index)))


def put_aside(disk: Disk, directory: str, names: list[str], state: Replayed | None, spares: SparePool) -> None:
    """Leave of the segments only the sound part, which can be written on.

    Raises:
        OSError: the disk failed, or has no room for a copy of the sound part of one segment.
    """
    kept = {segment.name for segment in state.segments} if state is not None else set()
    floor = state.segments[0].header.sequence if state is not None else 0
    for name in sorted(names, reverse=True):
        named = parse_segment_name(name)
        if named is not None and named[0] >= floor and name not in kept:
            disk.rename(f"{directory}/{name}", f"{directory}/{name}{LOST_SUFFIX}")
            log.warning("put aside file=%s/%s%s", directory, name, LOST_SUFFIX)
    if state is not None:
        segment = state.segments[-1]
        path = f"{directory}/{segment.name}"
        copy = f"{directory}/{spares.make(segment.header.size_bytes)}"
        file = disk.open(copy)
        try:
            _copy(segment.file, file, segment.end_offset)
        finally:
            file.close()
        segment.file.close()
        disk.rename(path, f"{path}{LOST_SUFFIX}")
        disk.rename(copy, path)
        segment.file = disk.open(path)
        log.warning("put aside file=%s%s sound_bytes=%d", path, LOST_SUFFIX, segment.end_offset)
    disk.sync_directory(directory)


def _copy(source: File, target: File, size_bytes: int) -> None:
    for offset in range(0, size_bytes, _COPY_BYTES):
        target.pwritev([source.pread(min(_COPY_BYTES, size_bytes - offset), offset)], offset)
    target.sync()


def clear_away(disk: Disk, directory: str) -> None:
    """The lost is back: keep the segment that was damaged, the oldest put aside, and remove the rest.

    Raises:
        OSError: the disk failed. Some of it may be done; the rest can be done at another time.
    """
    names = disk.list_directory(directory)
    lost = [name for name in names if name.endswith(LOST_SUFFIX)]
    for name in lost[1:]:
        disk.unlink(f"{directory}/{name}")
    for name in lost[:1]:
        kept = name.removesuffix(LOST_SUFFIX) + DAMAGED_SUFFIX
        disk.rename(f"{directory}/{name}", f"{directory}/{kept}")
        log.info("the damaged segment is kept for examination; it may be removed file=%s/%s", directory, kept)
    damaged = [name for name in names if name.endswith(DAMAGED_SUFFIX)]
    for name in damaged[: -DAMAGED_MAX + 1]:
        disk.unlink(f"{directory}/{name}")
    disk.sync_directory(directory)
