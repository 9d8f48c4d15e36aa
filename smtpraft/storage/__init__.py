"""What survives power loss: the write-ahead log, its writer, and the identity of a data directory."""

from __future__ import annotations

from smtpraft.storage.batch import HardState
from smtpraft.storage.disk import Disk, File, RealDisk
from smtpraft.storage.errors import (
    DirectoryInUse,
    IdentityMismatch,
    WalCorrupt,
    WalFailed,
    WalForeign,
    WalFull,
    WalNewer,
)
from smtpraft.storage.fastwriter import begin_writing
from smtpraft.storage.identity import Facts, Identity, Standing, adopt_directory, read_facts
from smtpraft.storage.recovery import Recovery
from smtpraft.storage.stats import SYNC_BUCKETS_S, WalStats
from smtpraft.storage.wal import Wal
from smtpraft.storage.writer import WalWriter

__all__ = [
    "SYNC_BUCKETS_S",
    "DirectoryInUse",
    "Disk",
    "Facts",
    "File",
    "HardState",
    "Identity",
    "IdentityMismatch",
    "RealDisk",
    "Recovery",
    "Standing",
    "Wal",
    "WalCorrupt",
    "WalFailed",
    "WalForeign",
    "WalFull",
    "WalNewer",
    "WalStats",
    "WalWriter",
    "adopt_directory",
    "begin_writing",
    "read_facts",
]
