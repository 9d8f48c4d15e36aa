"""Whose data directory this is: `identity.json`, and a lock so that two processes never share it.

The file is one JSON object: `format` (1), `cluster_id` (hex), `node_id`, `election` (`raft` or `lowest-id`). It is
written once, when the directory is first used, and never changed: a node that votes with another node's log, or leads
by another rule on a log that Raft has written, can lose what was acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import Final

from smtpraft.storage.disk import Disk, RealDisk
from smtpraft.storage.errors import DirectoryInUse, IdentityMismatch

IDENTITY_FORMAT: Final = 1
IDENTITY_FILE: Final = "identity.json"
LOCK_FILE: Final = "lock"
LOG_DIRECTORY: Final = "wal"


class Identity:
    """A data directory that is ours, and locked, until `close`."""

    def __init__(self, lock_fd: int) -> None:
        """For `open`."""
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, directory: str, *, cluster_id: bytes, node_id: str, election: str) -> Identity:
        """Lock a data directory, and make it this node's if it is nobody's yet.

        Raises:
            DirectoryInUse: another process has it.
            IdentityMismatch: it is another node's, another cluster's, or was written under another election rule.
        """
        disk = RealDisk()
        disk.make_directory(directory)
        lock_fd = _lock(directory)
        try:
            claim(disk, directory, cluster_id=cluster_id, node_id=node_id, election=election)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(lock_fd)

    def close(self) -> None:
        """Unlock the directory. Harmless a second time."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def claim(disk: Disk, directory: str, *, cluster_id: bytes, node_id: str, election: str) -> None:
    """Make an existing directory this node's, durably, or check that it already is.

    Raises:
        IdentityMismatch: it is not.
    """
    wanted = {"format": IDENTITY_FORMAT, "cluster_id": cluster_id.hex(), "node_id": node_id, "election": election}
    names = disk.list_directory(directory)
    if IDENTITY_FILE not in names:
        if LOG_DIRECTORY in names:
            raise IdentityMismatch(
                f"{directory} holds a log but no {IDENTITY_FILE}: nobody can tell whose it is. Restore the file, or "
                "replace this node by a new member with another id"
            )
        _write(disk, directory, names, json.dumps(wanted).encode())
        return
    disk.sync_directory(directory)  # Its name may be that of a rename which was never synced.
    path = f"{directory}/{IDENTITY_FILE}"
    file = disk.open(path)
    try:
        found = json.loads(file.pread(file.size_bytes(), 0))
    except ValueError:
        found = None
    finally:
        file.close()
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise IdentityMismatch(f"{path} is damaged; restore it, or replace this node by a new member with another id")
    if found["format"] != IDENTITY_FORMAT:
        raise IdentityMismatch(f"{path} has format {found['format']}; this program knows {IDENTITY_FORMAT}")
    _compare(path, found, wanted)


def _compare(path: str, found: dict[str, object], wanted: dict[str, object]) -> None:
    if found.get("node_id") != wanted["node_id"]:
        raise IdentityMismatch(
            f"{path}: the directory belongs to node {found.get('node_id')!r}, this is node {wanted['node_id']!r}. "
            "Set node.id to that, or node.data_dir to this node's own directory"
        )
    if found.get("cluster_id") != wanted["cluster_id"]:
        raise IdentityMismatch(
            f"{path}: the directory belongs to cluster {found.get('cluster_id')}, this is cluster "
            f"{wanted['cluster_id']}. Set cluster.name to what it was, or use an empty node.data_dir"
        )
    if found.get("election") != wanted["election"]:
        raise IdentityMismatch(
            f"{path}: the directory was written with cluster.election = {found.get('election')!r}, the setting is now "
            f"{wanted['election']!r}. The two must not share a log: set it back, or use an empty node.data_dir"
        )


def _write(disk: Disk, directory: str, names: list[str], data: bytes) -> None:
    """Whole or not at all: a name appears only over synced bytes."""
    temporary = f"{IDENTITY_FILE}.tmp"
    if temporary in names:
        disk.unlink(f"{directory}/{temporary}")
    file = disk.create(f"{directory}/{temporary}")
    try:
        file.pwritev([data], 0)
        file.sync()
    finally:
        file.close()
    disk.rename(f"{directory}/{temporary}", f"{directory}/{IDENTITY_FILE}")
    disk.sync_directory(directory)


def _lock(directory: str) -> int:
    path = f"{directory}/{LOCK_FILE}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # The kernel drops it with the process, however that ends; a file that says "locked" would outlive a crash.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise DirectoryInUse(f"{directory} is in use by process {holder}; stop that one first") from None
        raise
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
