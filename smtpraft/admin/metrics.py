"""Prometheus metrics: the parts count in plain integers, and this turns them into text when somebody asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from smtpraft._version import __version__
from smtpraft.cluster.status import NodeStatus

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Sequence[Metric], data_dir: str = "") -> bytes:
    """Return the text of `families`, of the process's own metrics, and how much room `data_dir` has.

    Reads /proc and the file system: call it on a thread.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families([*families, *_room(data_dir)]))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return generate_latest(registry)


def _room(data_dir: str) -> Iterable[Metric]:
    if data_dir:
        with contextlib.suppress(OSError):  # a disk that cannot even say this is told of elsewhere
            facts = os.statvfs(data_dir)
            yield gauge("disk_free_bytes", "Room for the data directory.", facts.f_bavail * facts.f_frsize)
            yield gauge("disk_size_bytes", "Size of its file system.", facts.f_blocks * facts.f_frsize)
            yield gauge("disk_free_inodes", "Files that it may have more.", facts.f_favail)


def gauge(name: str, text: str, value: float) -> Metric:
    """Return one value that goes up and down."""
    return GaugeMetricFamily(f"smtpraft_{name}", text, value)


def counter(name: str, text: str, value: float) -> Metric:
    """Return one value that only grows; `name` goes without its `_total`."""
    return CounterMetricFamily(f"smtpraft_{name}", text, value)


def labelled(name: str, text: str, label: str, values: dict[str, float], *, counts: bool = False) -> Metric:
    """Return one value per label value."""
    kind = CounterMetricFamily if counts else GaugeMetricFamily
    family = kind(f"smtpraft_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def build_info(compiled: bool, loop: str) -> Metric:
    """Return the version and how this process runs, as labels."""
    family = GaugeMetricFamily("smtpraft_build_info", "Version and build.", labels=["version", "compiled", "loop"])
    family.add_metric([__version__, "yes" if compiled else "no", loop], 1)
    return family


def raft_metrics(status: NodeStatus) -> list[Metric]:
    """Return what the consensus of this node says."""
    peers = status.peers
    matches = {str(peer.id): float(peer.match_index) for peer in peers if peer.match_index is not None}
    return [
        gauge("raft_has_leader", "Is a leader known?", bool(status.leader_id)),
        gauge("raft_is_leader", "Is this node the leader?", status.role == "leader"),
        gauge("raft_is_learner", "Is this node a learner?", status.role == "learner"),
        gauge("raft_has_quorum", "Would a proposal be likely to commit?", status.has_quorum),
        gauge("raft_abstains", "Does this node not vote, because its disk lost part of the log?", status.abstains),
        gauge("disk_slow", "Are this node's writes slow?", status.disk == "slow"),
        gauge("disk_full", "Is there too little room for new mail here?", status.disk in ("full", "read-only")),
        counter("raft_leader_changes", "Changes of leader seen.", status.leader_changes),
        counter("raft_elections_started", "Elections this node started.", status.elections_started),
        gauge("raft_term", "Current term.", status.term),
        gauge("raft_commit_index", "Last committed index.", status.commit_index),
        gauge("raft_last_applied_index", "Last index applied to the spool.", status.applied_index),
        gauge("raft_last_written_index", "Last index synced to this node's disk.", status.durable_index),
        gauge("raft_snapshot_index", "Up to here the log was cut; the spool has what it said.", status.first_index - 1),
        gauge("raft_last_index", "Last index in the log.", status.last_index),
        gauge("raft_first_index", "First index still in the log.", status.first_index),
        counter("raft_proposals_committed", "Entries committed, as this node knows.", status.commit_index),
        counter("raft_proposals_applied", "Entries applied on this node.", status.applied_index),
        gauge("raft_proposals_pending", "Proposals of this node under way.", status.proposals_pending),
        gauge("raft_proposals_pending_bytes", "Their bytes.", status.proposals_pending_bytes),
        gauge("raft_log_bytes", "Bytes of the log.", status.log_bytes),
        gauge("raft_log_cached_bytes", "Bytes of the log in memory.", status.log_cached_bytes),
        labelled("raft_peer_match_index", "Last index known to be on a peer (leader).", "peer", matches),
        gauge("network_active_peers", "Peers this node can reach.", sum(peer.reachable for peer in peers)),
        gauge("leases_held", "Does this node hold its lease?", status.lease_held),
    ]


def queue_metrics(counts: dict[str, int], states: Sequence[str]) -> list[Metric]:
    """Return what the mail queue says: the cluster's, the same on every node, but for `owned`."""
    return [
        labelled(
            "queue_messages", "Messages in the queue.", "state", {state: counts.get(state, 0) for state in states}
        ),
        gauge("queue_bytes", "Bytes of the messages in the queue.", counts.get("bytes", 0)),
        gauge("queue_recipients", "Open recipients in the queue.", counts.get("recipients", 0)),
        gauge("kv_keys", "Keys in the key-value map.", counts.get("keys", 0)),
        gauge("kv_bytes", "Bytes of its keys and values.", counts.get("key_bytes", 0)),
        gauge("queue_owned_messages", "Messages that this node is to deliver.", counts.get("owned", 0)),
        counter("queue_moved", "Messages that changed their owner, in the whole cluster.", counts.get("moved", 0)),
    ]
