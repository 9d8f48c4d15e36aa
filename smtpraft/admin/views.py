"""The JSON that the admin API answers with: values in, plain objects out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smtpraft._version import __version__
from smtpraft.cluster.status import NodeStatus, PeerStatus
from smtpraft.spool.types import MessageInfo, Recipient, index_of

QUEUE_STATES = ("queued", "deferred", "held")

JsonObject = dict[str, Any]


def status_view(
    status: NodeStatus,
    counts: dict[str, int],
    digest: tuple[str, int],
    compiled: bool,
    compiled_parts: Mapping[str, bool],
) -> JsonObject:
    """Return what `GET /v1/status` says. `digest` is of the state at `digest_index`."""
    digest_value, digest_index = digest
    return {
        "node_id": status.node_id,
        "cluster_id": status.cluster_id,
        "version": __version__,
        "compiled": compiled,
        "compiled_parts": dict(compiled_parts),
        "role": status.role,
        "term": status.term,
        "leader_id": status.leader_id or None,
        "has_quorum": status.has_quorum,
        "abstains": status.abstains,
        "receiving_snapshot": _progress_view(status.snapshot),
        "disk": status.disk,
        "election": status.election,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "durable_index": status.durable_index,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "digest": digest_value,
        "digest_index": digest_index,
        "voters": list(status.voters),
        "nodes_up": list(status.nodes_up),
        "peers": {peer.id: _peer_view(peer) for peer in status.peers},
        "queue": {state: counts.get(state, 0) for state in QUEUE_STATES},
        "totals": {name: count for name, count in counts.items() if name not in QUEUE_STATES},
        "lease": {"held": status.lease_held, "expires_ms": status.lease_expires_in_ms},
        "proposals_pending": status.proposals_pending,
        "elections_started": status.elections_started,
        "leader_changes": status.leader_changes,
    }


def _peer_view(peer: PeerStatus) -> JsonObject:
    return {
        "address": peer.address,
        "reachable": peer.reachable,
        "match_index": peer.match_index,
        "next_index": peer.next_index,
        "state": peer.state,
        "applied_index": peer.applied_index,
        "round_trip_ms": peer.round_trip_ms,
        "disk_lag_ms": peer.disk_lag_ms,
        "disk_full": peer.disk_full,
        "sending_snapshot": _progress_view(peer.snapshot),
    }


def _progress_view(progress: tuple[int, int] | None) -> JsonObject | None:
    if progress is None:
        return None
    done, size = progress
    return {"bytes": done, "of_bytes": size, "percent": done * 100 // size if size else 100}


def message_view(message: MessageInfo) -> JsonObject:
    """Return one queued message. Times are seconds since 1970 by the cluster's clock; null: now, or never yet."""
    tried = [recipient for recipient in message.recipients if recipient.last_attempt_ms]
    latest = max(tried, key=lambda recipient: recipient.last_attempt_ms, default=None)
    return {
        "id": message.id,
        "index": index_of(message.id),
        "state": message.state,
        "owner": message.owner,
        "epoch": message.epoch,
        "sender": message.sender,
        "size_bytes": message.size_bytes,
        "arrival_time": message.accepted_ms // 1000,
        "accepted_by": message.accepted_by,
        "client": message.client_host,
        "helo": message.helo,
        "is_bounce": message.is_bounce,
        "attempts": max((recipient.attempts for recipient in message.recipients), default=0),
        "next_attempt": _seconds(message.next_attempt_ms),
        "last_reply": (latest.last_reply or None) if latest else None,
        "recipients": [_recipient_view(recipient) for recipient in message.recipients],
    }


def _recipient_view(recipient: Recipient) -> JsonObject:
    return {
        "address": recipient.address,
        "state": recipient.state.value,
        "attempts": recipient.attempts,
        "next_attempt": None if recipient.state.final else _seconds(recipient.next_attempt_ms),
        "last_attempt": _seconds(recipient.last_attempt_ms),
        "last_status": recipient.last_status or None,
        "last_reply": recipient.last_reply or None,
    }


def _seconds(stamp_ms: int) -> float | None:
    return stamp_ms / 1000 if stamp_ms else None
