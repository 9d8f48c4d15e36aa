"""Looking at the log of a node that is stopped, without changing a byte of it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smtpraft.fastlog import Log, decode_entries
from smtpraft.storage.batch import BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES, BatchHeader, HardState, decode_header
from smtpraft.storage.disk import RealDisk, RealFile
from smtpraft.storage.errors import DirectoryInUse, IdentityMismatch, WalCorrupt
from smtpraft.storage.healing import reconcile
from smtpraft.storage.identity import IDENTITY_FILE, LOCK_FILE, LOG_DIRECTORY
from smtpraft.storage.promises import PROMISES_FILE, Promise, Promises
from smtpraft.storage.recovery import Replayed, replay
from smtpraft.storage.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentHeader,
    decode_segment_header,
    parse_segment_name,
)


class ReadOnlyDisk(RealDisk):
    """The file systems of this machine, to look at: nothing is written, and nothing synced."""

    def open(self, path: str) -> RealFile:
        return _ReadOnlyFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def sync_directory(self, path: str) -> None:
        return


class _ReadOnlyFile(RealFile):
    __slots__ = ()

    def sync(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is in a log, and what is the matter with it."""

    node_id: str
    cluster_id: str
    segments: int
    batches: int
    first_index: int
    last_index: int
    hard_state: HardState
    torn_bytes: int
    """Behind the end: of a write that a crash cut short. The next start cuts it off."""
    abstain_term: int
    damage: WalCorrupt | None


@dataclass(frozen=True, slots=True)
class Piece:
    """One batch of a segment, or, without a `header`, a place where one should be and none is sound."""

    segment: str
    offset: int
    header: BatchHeader | None
    entries: tuple[tuple[int, int, int, int, int], ...] = ()
    """Of each entry: index, term, stamp, kind and payload bytes."""
    sound: bool = True


def verify(data_dir: str) -> Verdict:
    """Read all of a log, and compare it with what was promised.

    Raises:
        DirectoryInUse: the node runs, and its log moves.
        IdentityMismatch: nobody can tell whose directory this is.
        WalForeign, WalNewer, OSError: the log cannot be read.
    """
    _check_stopped(data_dir)
    node_id, cluster_id = _identity(data_dir)
    disk, directory = ReadOnlyDisk(), f"{data_dir}/{LOG_DIRECTORY}"
    names = disk.list_directory(directory)
    segments = [name for name in names if parse_segment_name(name)]
    memory, state, damage, promise = Log(), None, None, None
    hard_state = HardState()
    try:
        if segments:
            state = replay(
                disk, directory, segments, cluster_id=cluster_id, node_id=node_id, memory=memory, cache_bytes=1 << 20
            )
            hard_state = state.hard_state
        if os.path.exists(f"{data_dir}/{PROMISES_FILE}"):
            promises = Promises.open(disk, data_dir)
            try:
                promise = promises.current
                hard_state = reconcile(state, promises, directory, names)
            finally:
                promises.close()
    except WalCorrupt as error:
        damage = error
    finally:
        if state is not None:
            state.close()
    return _verdict(node_id, cluster_id, segments, memory, state, hard_state, promise, damage)


def _verdict(
    node_id: str,
    cluster_id: bytes,
    segments: list[str],
    memory: Log,
    state: Replayed | None,
    hard_state: HardState,
    promise: Promise | None,
    damage: WalCorrupt | None,
) -> Verdict:
    return Verdict(
        node_id,
        cluster_id.hex(),
        len(segments),
        state.number if state is not None else 0,
        memory.first_index,
        memory.last_index,
        hard_state,
        state.torn_bytes if state is not None else 0,
        promise.abstain_term if promise is not None else 0,
        damage,
    )


def dump(data_dir: str, *, entries: bool = False) -> Iterator[Piece]:
    """Yield every batch of every segment, in order and verified; with `entries` tell what is in them.

    Raises:
        DirectoryInUse, OSError: as `verify`.
    """
    _check_stopped(data_dir)
    disk, directory = ReadOnlyDisk(), f"{data_dir}/{LOG_DIRECTORY}"
    for name in disk.list_directory(directory):
        if parse_segment_name(name):
            file = disk.open(f"{directory}/{name}")
            try:
                header = decode_segment_header(file.pread(SEGMENT_HEADER_BYTES, 0))
                if header is None:
                    yield Piece(name, 0, None, sound=False)
                else:
                    yield from _pieces(Segment(file, name, header), header, entries)
            finally:
                file.close()


def _pieces(segment: Segment, header: SegmentHeader, entries: bool) -> Iterator[Piece]:
    """Yield what is in one segment. A page that begins no batch of this segment is passed over."""
    offset, missing = SEGMENT_HEADER_BYTES, 0
    while offset + BATCH_HEADER_BYTES <= header.size_bytes:
        found = decode_header(segment.file.pread(BATCH_HEADER_BYTES, offset))
        if found is None or found.salt != header.salt:
            missing = missing or offset
            offset += BATCH_ALIGN_BYTES
            continue
        if missing:  # The end of a log is no damage; what comes before a batch is.
            yield Piece(segment.name, missing, None, sound=False)
            missing = 0
        inside, sound = _entries(segment, found, offset) if found.entries_bytes else ((), True)
        yield Piece(segment.name, offset, found, inside if entries else (), sound)
        offset += found.size_bytes


def _entries(
    segment: Segment, header: BatchHeader, offset: int
) -> tuple[tuple[tuple[int, int, int, int, int], ...], bool]:
    try:
        decoded = decode_entries(segment.file.pread(header.entries_bytes, offset + BATCH_HEADER_BYTES))
    except ValueError:
        return (), False
    return tuple((index, term, stamp, kind, len(payload)) for index, term, stamp, kind, payload in decoded), True


def _check_stopped(data_dir: str) -> None:
    path = f"{data_dir}/{LOCK_FILE}"
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            holder = file.read(20).decode("ascii", "replace").strip() or "unknown"
            raise DirectoryInUse(
                f"{data_dir} is in use by process {holder}, and its log moves; stop that one first"
            ) from None


def _identity(data_dir: str) -> tuple[str, bytes]:
    path = Path(data_dir) / IDENTITY_FILE
    try:
        facts = json.loads(path.read_bytes())
        return str(facts["node_id"]), bytes.fromhex(facts["cluster_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IdentityMismatch(f"{path} cannot be read: {error}") from None
