"""What a node says of itself: facts for operators, all of one moment."""

from __future__ import annotations

from dataclasses import dataclass

from smtpraft.types import NodeId


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another node, as this one sees it. What only a leader knows is None on the others."""

    id: NodeId
    address: str
    reachable: bool
    match_index: int | None = None
    next_index: int | None = None
    state: str | None = None
    applied_index: int | None = None
    round_trip_ms: float | None = None
    """Of the last heartbeat, on the leader; on the others the usual one of the last pings."""
    disk_lag_ms: int | None = None
    disk_full: bool | None = None
    snapshot: tuple[int, int] | None = None
    """Bytes that it has, and bytes there are, of the snapshot that this node is sending to it."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. Indexes are log positions; `first_index` is the oldest entry that this node still has."""

    node_id: NodeId
    cluster_id: str
    role: str
    term: int
    leader_id: NodeId | None
    last_index: int
    commit_index: int
    applied_index: int
    durable_index: int
    first_index: int
    voters: tuple[NodeId, ...]
    peers: tuple[PeerStatus, ...]
    lease_held: bool
    lease_expires_in_ms: int
    has_quorum: bool
    disk: str
    """`ok`, `slow`, `full` or `read-only`; see `DiskState`."""
    abstains: bool
    """Its disk lost part of the log, and it has not got it back yet: it neither votes nor leads."""
    snapshot: tuple[int, int] | None
    """Bytes that are here, and bytes there are, of the snapshot that it is being sent."""
    nodes_up: tuple[NodeId, ...]
    proposals_pending: int
    proposals_pending_bytes: int
    election: str
    elections_started: int
    leader_changes: int
    log_bytes: int
    log_cached_bytes: int
