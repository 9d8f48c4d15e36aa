"""What a node is told, checked once: ids, addresses, times in ticks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smtpraft import fastlog
from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.envelope import COMMAND_HEADER_BYTES
from smtpraft.consensus import Config
from smtpraft.types import NodeId, node_order

ENTRY_PAYLOAD_BYTES_MAX: Final = 1024 * 1024  # so that no entry holds up a heartbeat for long


def derive_cluster_id(name: str, members: Sequence[NodeId]) -> bytes:
    """Return the 16 bytes that bind a cluster's name and first members into every handshake and every file.

    Each founding node computes the same id from its own configuration, in whatever order that lists the others.
    """
    text = "\n".join(["smtpraft cluster", name, *sorted(members, key=node_order)])
    return hashlib.sha256(text.encode()).digest()[:16]


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The settings of one node. Times in milliseconds; `secret` None only where all addresses are loopback."""

    node_id: NodeId
    data_dir: str
    cluster_id: bytes
    listen: tuple[str, int] = ("127.0.0.1", 0)
    peers: tuple[Peer, ...] = ()
    """The other founding members; once the log knows the members, it alone counts."""
    join: tuple[tuple[str, int], ...] = ()
    """Members' addresses. With an empty data directory: found no cluster, but wait until theirs admits this node."""
    cluster_name: str = ""
    secret: bytes | None = None
    election: str = "raft"
    tick_ms: int = 10
    election_timeout_ms: int = 150
    election_priority: int = 100
    heartbeat_interval_ms: int = 50
    lease_ms: int = 2000
    max_log_entries: int = 10_000
    snapshot_threshold: int = 5_000
    snapshot_threshold_bytes: int = 256 * 1024 * 1024
    segment_bytes: int = 64 * 1024 * 1024
    scrub_bytes_per_s: int = 1024 * 1024
    """How fast the log is read back and verified in the background; 0: not at all."""
    disk_reserve_bytes: int = 64 * 1024 * 1024
    """With less than so much free where the data directory is, no new mail is taken."""
    log_cache_bytes: int = 64 * 1024 * 1024
    max_append_bytes: int = 1024 * 1024
    max_inflight_bytes: int = 16 * 1024 * 1024
    max_pending_bytes: int = 128 * 1024 * 1024
    max_uncommitted_bytes: int = 128 * 1024 * 1024
    max_apply_bytes: int = 64 * 1024 * 1024
    lease_reads: bool = False
    snapshot_bytes_per_s: int = 64 * 1024 * 1024
    """Of all snapshots that this node sends, together; 0: as fast as it goes."""
    advertise: tuple[str, int] | None = None
    """Where the other nodes reach this one, if that is not `listen`; None: that, or what they dialled."""

    @property
    def has_company(self) -> bool:
        """Are there, or will there be, other members?"""
        return bool(self.peers or self.join)

    @property
    def election_ticks(self) -> int:
        """The shortest election timeout; the core draws up to twice as many (Raft §5.2)."""
        return max(2, self.election_timeout_ms // self.tick_ms)

    @property
    def heartbeat_ticks(self) -> int:
        """Ticks between heartbeats."""
        return max(1, min(self.heartbeat_interval_ms // self.tick_ms, self.election_ticks - 1))

    @property
    def read_lease_ms(self) -> int:
        """How long after a heartbeat left, once a majority has answered it, its leader may answer reads by itself.

        Those who answered vote for nobody for `election_ticks`, of which the first and, after a late one, the second
        can be short. A tenth is left for clocks that do not run at the same rate.
        """
        return max(0, self.election_ticks - 2) * self.tick_ms * 9 // 10

    @property
    def core_config(self) -> Config:
        """What the consensus core is told."""
        return Config(
            id=self.node_id,
            election_ticks=self.election_ticks,
            heartbeat_ticks=self.heartbeat_ticks,
            priority=self.election_priority,
            max_append_bytes=self.max_append_bytes,
            max_inflight_bytes=self.max_inflight_bytes,
            max_uncommitted_bytes=self.max_uncommitted_bytes,
            max_apply_bytes=self.max_apply_bytes,
            lease_reads=self.lease_reads,
            election=self.election,
        )

    @property
    def max_command_bytes(self) -> int:
        """The longest command that fits an entry."""
        return ENTRY_PAYLOAD_BYTES_MAX - COMMAND_HEADER_BYTES - fastlog.ENTRY_HEADER_BYTES
