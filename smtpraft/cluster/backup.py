"""Snapshots kept as files: checked, and made the beginning of a new cluster. Offline; nothing here talks to a node.

A restored node begins with the state of the snapshot and an empty log behind it, in a new cluster: its id differs, so
no node of the old one will ever speak with it. All founding members of the new cluster are restored from the same file.
The log goes on after an entry that never was in the old cluster, in a term of its own: so the two histories cannot be
taken for each other, and each restored node comes to the same state.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.machine import Skipped, StateMachine
from smtpraft.cluster.members import Members
from smtpraft.cluster.sessions import Sessions
from smtpraft.cluster.settings import NodeOptions
from smtpraft.cluster.snapshot_format import FILE_HEADER, INFO_BYTES_MAX, SnapshotInfo, decode_file_header
from smtpraft.errors import SmtpRaftError
from smtpraft.storage import Facts, HardState, RealDisk, Wal, adopt_directory

STATE_FILE: Final = "restoring.snap"
HARMLESS: Final = frozenset({"lost+found"})
_BLOCK_BYTES: Final = 1024 * 1024


class BadSnapshotFile(SmtpRaftError):
    """The file is no snapshot, or it is damaged."""


class CannotRestore(SmtpRaftError):
    """The snapshot is good, but must not be restored so; the text says what to change. Nothing was written."""


def check_file(path: str) -> tuple[SnapshotInfo, int]:
    """Read the whole file; return what it holds, and where the state begins in it.

    Raises:
        BadSnapshotFile: not one bit may differ from what was saved.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        try:
            info, start = decode_file_header(file.read(FILE_HEADER.size + INFO_BYTES_MAX))
        except ValueError as error:
            raise BadSnapshotFile(f"{path}: {error}") from None
        size_bytes = os.fstat(file.fileno()).st_size - start
        if size_bytes != info.size_bytes:
            raise BadSnapshotFile(f"{path}: cut short: it holds {size_bytes} bytes of state, of {info.size_bytes}")
        file.seek(start)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != info.sha256:
        raise BadSnapshotFile(f"{path}: damaged: the checksum of the state is another")
    return info, start


def check_target(info: SnapshotInfo, options: NodeOptions) -> None:
    """Check that a snapshot may be restored as the node of `options`.

    Raises:
        CannotRestore: the directory is in use, or the cluster is that of the snapshot.
    """
    if options.cluster_id.hex() == info.cluster_id:
        raise CannotRestore(
            "the configuration is that of the cluster which the snapshot is from: set another cluster.name, so that no "
            "node of the old cluster can take part in the new one, nor the other way round"
        )
    if os.path.isdir(options.data_dir):
        names = sorted(set(os.listdir(options.data_dir)) - HARMLESS)
        if names:
            raise CannotRestore(
                f"{options.data_dir} is not empty ({', '.join(names[:3])}…): a snapshot is restored into a new data "
                "directory only. Move the old one away, or set another node.data_dir"
            )


def restore(path: str, options: NodeOptions, make_machine: Callable[[], StateMachine]) -> tuple[SnapshotInfo, int]:
    """Make the new data directory of `options`; return what the snapshot was, and the index that the node begins after.

    `make_machine` returns a machine that is not open, once its directory may be made. The identity is written last:
    without it no node takes the directory.

    Raises:
        BadSnapshotFile, CannotRestore, SmtpRaftError, OSError: a directory that was begun must be removed.
    """
    info, start = check_file(path)
    check_target(info, options)
    disk = RealDisk()
    disk.make_directory(options.data_dir)
    state = os.path.join(options.data_dir, STATE_FILE)
    _extract(path, start, state)
    machine = make_machine()
    machine.install_snapshot(state)
    if os.path.exists(state):
        os.unlink(state)
    index, term = _begin_anew(info, machine)
    wal, _ = Wal.open(
        disk,
        os.path.join(options.data_dir, "wal"),
        cluster_id=options.cluster_id,
        node_id=options.node_id,
        log=fastlog.Log(),
        segment_bytes=options.segment_bytes,
        background=False,
        promises=options.data_dir,
    )
    wal.restart(index, term, HardState(term, "", index))
    wal.close()
    wanted = Facts(options.cluster_id, options.node_id, options.election, options.cluster_name)
    adopt_directory(disk, options.data_dir, wanted)
    return info, index


def _extract(path: str, start: int, target: str) -> None:
    with open(path, "rb") as file, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        file.seek(start)
        while block := file.read(_BLOCK_BYTES):
            out.write(block)
        out.flush()
        os.fsync(out.fileno())


def _begin_anew(info: SnapshotInfo, machine: StateMachine) -> tuple[int, int]:
    """Forget the members of the old cluster; return the index and term that the new log goes on after."""
    applied = machine.open()
    try:
        if applied.index != info.index:
            raise BadSnapshotFile(f"holds the state after index {applied.index}, and says {info.index}")
        sessions = Sessions.decode(applied.notes)
        sessions.members = Members()  # The new leader writes down who the configuration says they are.
        index, term = info.index + 1, info.term + 1
        machine.apply([Skipped(index, term, 0, 0)], sessions.encode())
        machine.before_compaction(index)  # no log will ever have these entries
        if machine.checkpoint() < index:
            raise OSError("no room to sync the restored state")
    finally:
        machine.close()
    return index, term
