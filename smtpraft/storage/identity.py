"""Whose data directory this is: `identity.json`, and a lock so that two processes never share it.

The file is one JSON object: `format` (1), `cluster_id` (hex), `cluster_name`, `node_id`, `election` (`raft` or
`lowest-id`), `incarnation` (hex), `standing`, `founders`, `company` (are there other members?), and `sum`, a CRC-32C of
all else. A node that votes with another node's log, or leads by another rule on a log that Raft has written, can lose
what was acknowledged; so can one that votes with an empty log in the place of one that it has lost. Therefore each
directory has an *incarnation*, a random number that is born with it and never changes, and a *standing*: as what its
node may take part.

    fresh ──▶ founder   every founding member was there, and fresh as well; `founders` has the incarnation of each
      │ └───▶ admitted  the cluster knows this incarnation: its log says who votes
    upgraded            written by a release without incarnations: what the configuration lists are the first voters
    restored            made from a snapshot of another cluster: the same
    any ────▶ removed   the cluster has let this incarnation go, for good
"""

from __future__ import annotations

import enum
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from smtpraft.errors import NewerFormat
from smtpraft.fastlog import crc32c
from smtpraft.storage.disk import Disk, RealDisk
from smtpraft.storage.errors import DirectoryInUse, IdentityMismatch
from smtpraft.storage.promises import PROMISES_FILE
from smtpraft.storage.segment import parse_segment_name

IDENTITY_FORMAT: Final = 1
IDENTITY_FILE: Final = "identity.json"
LOCK_FILE: Final = "lock"
LOG_DIRECTORY: Final = "wal"


class Standing(enum.Enum):
    """As what the node of a directory may take part; see above."""

    FRESH = "fresh"
    FOUNDER = "founder"
    ADMITTED = "admitted"
    UPGRADED = "upgraded"
    RESTORED = "restored"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Facts:
    """What `identity.json` says. `founders` has the incarnation of each founding node once this one is a founder."""

    cluster_id: bytes
    node_id: str
    election: str
    cluster_name: str = ""
    incarnation: int = 0
    standing: Standing = Standing.FRESH
    founders: Mapping[str, int] = field(default_factory=dict)
    company: bool = False
    """As far as this node knows it is not the only member, whatever its configuration says: it may heal from others."""


class Identity:
    """A data directory that is ours, and locked, until `close`."""

    def __init__(self, lock_fd: int, disk: Disk, directory: str, facts: Facts) -> None:
        """For `open`."""
        self._lock_fd = lock_fd
        self._disk = disk
        self._directory = directory
        self.facts = facts

    @classmethod
    def open(
        cls, directory: str, *, cluster_id: bytes, node_id: str, election: str, cluster_name: str = ""
    ) -> Identity:
        """Lock a data directory, and make it this node's if it is nobody's yet.

        A directory that has a cluster keeps its id: `cluster_name`, if given, must be the one that it was begun with.

        Raises:
            DirectoryInUse: another process has it.
            IdentityMismatch: it is another node's, another cluster's, was written under another election rule, or has
                lost its log.
        """
        disk = RealDisk()
        disk.make_directory(directory)
        lock_fd = _lock(directory)
        try:
            wanted = Facts(cluster_id, node_id, election, cluster_name)
            facts = claim_directory(disk, directory, wanted)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(lock_fd, disk, directory, facts)

    def record(self, standing: Standing, founders: Mapping[str, int] | None = None) -> None:
        """Note durably as what this node takes part from now on. Blocks for two syncs."""
        facts = replace(
            self.facts, standing=standing, founders=dict(self.facts.founders if founders is None else founders)
        )
        _write(self._disk, self._directory, self._disk.list_directory(self._directory), _encode(facts))
        self.facts = facts

    def note_company(self, company: bool) -> None:
        """Note durably whether there are other members. Blocks for two syncs if that is news."""
        if company != self.facts.company:
            facts = replace(self.facts, company=company)
            _write(self._disk, self._directory, self._disk.list_directory(self._directory), _encode(facts))
            self.facts = facts

    def close(self) -> None:
        """Unlock the directory. Harmless a second time."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def claim_directory(disk: Disk, directory: str, wanted: Facts) -> Facts:
    """Make an existing directory this node's, durably, or check that it already is; return what its file says now.

    Raises:
        IdentityMismatch: it is not.
    """
    names = disk.list_directory(directory)
    found = read_facts(disk, directory)
    if found is None:
        if LOG_DIRECTORY in names:
            raise IdentityMismatch(
                f"{directory} holds a log but no {IDENTITY_FILE}: nobody can tell whose it is. Restore the file, or "
                "empty the whole directory and replace the member: smtpraft member replace"
            )
        facts = replace(wanted, incarnation=_new_incarnation(disk))
        _write(disk, directory, names, _encode(facts))
        return facts
    disk.sync_directory(directory)  # Its name may be that of a rename which was never synced.
    facts = found
    _compare(f"{directory}/{IDENTITY_FILE}", facts, wanted)
    has_log = LOG_DIRECTORY in names and any(
        parse_segment_name(name) for name in disk.list_directory(f"{directory}/{LOG_DIRECTORY}")
    )
    if not facts.incarnation:
        # Of a release that knew no incarnations. Its log, if it has begun one, is what it voted and promised with.
        standing = Standing.UPGRADED if has_log else Standing.FRESH
        facts = replace(facts, incarnation=_new_incarnation(disk), standing=standing, cluster_name=wanted.cluster_name)
        _write(disk, directory, names, _encode(facts))
    elif facts.standing is not Standing.FRESH and not has_log and PROMISES_FILE not in names:
        raise IdentityMismatch(
            f"{directory}: the log is gone, and with it what this node had promised. Restore {LOG_DIRECTORY}, or empty "
            "the whole directory and replace the member: smtpraft member replace"
        )
    return facts


def read_facts(disk: Disk, directory: str) -> Facts | None:
    """Return what `identity.json` in `directory` says, None if there is no such file.

    Raises:
        IdentityMismatch: it is damaged.
        NewerFormat: a newer release wrote it.
    """
    try:
        if IDENTITY_FILE not in disk.list_directory(directory):
            return None
    except FileNotFoundError:
        return None
    path = f"{directory}/{IDENTITY_FILE}"
    file = disk.open(path)
    try:
        found = json.loads(file.pread(file.size_bytes(), 0))
    except ValueError:
        found = None
    finally:
        file.close()
    if not isinstance(found, dict) or not isinstance(found.get("format"), int):
        raise _damaged(path)
    if "sum" in found and found.pop("sum") != _sum(found):  # in every format since there are sums
        raise _damaged(path)
    if found["format"] != IDENTITY_FORMAT:
        raise NewerFormat(
            f"{path} has format {found['format']}; this program knows {IDENTITY_FORMAT}: upgrade this node"
        )
    try:
        return _decode(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path) from None


def adopt_directory(disk: Disk, directory: str, wanted: Facts) -> Facts:
    """Make a directory that holds a restored log this node's, as the last step of restoring it; return what it says.

    Raises:
        IdentityMismatch: it is somebody's already.
    """
    names = disk.list_directory(directory)
    if IDENTITY_FILE in names:
        raise IdentityMismatch(f"{directory} is a node's data directory already")
    facts = replace(wanted, incarnation=_new_incarnation(disk), standing=Standing.RESTORED)
    _write(disk, directory, names, _encode(facts))
    return facts


def _new_incarnation(disk: Disk) -> int:
    """Return a number that no directory has had: 63 random bits, never below 2**32."""
    return (disk.random_u64() >> 1) | 1 << 32


def _damaged(path: str) -> IdentityMismatch:
    return IdentityMismatch(
        f"{path} is damaged; restore it, or empty the whole directory and replace the member: smtpraft member replace"
    )


def _encode(facts: Facts) -> bytes:
    content = {
        "format": IDENTITY_FORMAT,
        "cluster_id": facts.cluster_id.hex(),
        "cluster_name": facts.cluster_name,
        "node_id": facts.node_id,
        "election": facts.election,
        "incarnation": f"{facts.incarnation:016x}",
        "standing": facts.standing.value,
        "founders": {node: f"{incarnation:016x}" for node, incarnation in facts.founders.items()},
        "company": facts.company,
    }
    return json.dumps({**content, "sum": _sum(content)}).encode()


def _sum(content: Mapping[str, object]) -> int:
    return crc32c(json.dumps(content, sort_keys=True).encode())


def _decode(found: dict[str, object]) -> Facts:
    founders = found.get("founders", {})
    if not isinstance(founders, dict):
        raise TypeError("founders")
    return Facts(
        bytes.fromhex(_text(found["cluster_id"])),
        _text(found["node_id"]),
        _text(found["election"]),
        _text(found.get("cluster_name", "")),
        int(_text(found.get("incarnation", "0")), 16),
        Standing(found.get("standing", "fresh")),
        {_text(node): int(_text(incarnation), 16) for node, incarnation in founders.items()},
        found.get("company") is True,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _compare(path: str, found: Facts, wanted: Facts) -> None:
    if found.node_id != wanted.node_id:
        raise IdentityMismatch(
            f"{path}: the directory belongs to node {found.node_id!r}, this is node {wanted.node_id!r}. "
            "Set node.id to that, or node.data_dir to this node's own directory"
        )
    # The list of peers, of which the id is made, counts for a cluster that has not begun; later only the name does.
    by_name = found.standing is not Standing.FRESH and found.cluster_name and wanted.cluster_name
    if found.cluster_name != wanted.cluster_name if by_name else found.cluster_id != wanted.cluster_id:
        theirs = f"{found.cluster_name!r} " if found.cluster_name else ""
        ours = repr(wanted.cluster_name) if by_name else wanted.cluster_id.hex()
        raise IdentityMismatch(
            f"{path}: the directory belongs to cluster {theirs}{found.cluster_id.hex()}, this is cluster {ours}. "
            "Set cluster.name to what it was, or use an empty node.data_dir"
        )
    if found.election != wanted.election:
        raise IdentityMismatch(
            f"{path}: the directory was written with cluster.election = {found.election!r}, the setting is now "
            f"{wanted.election!r}. The two must not share a log: set it back, or use an empty node.data_dir"
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
