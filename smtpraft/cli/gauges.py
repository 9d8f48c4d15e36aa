"""The counters of parts that `admin` may not know, as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from smtpraft.admin.metrics import counter, gauge, labelled
from smtpraft.cluster.commits import COMMIT_BUCKETS_S
from smtpraft.cluster.durations import Durations
from smtpraft.cluster.node import Node
from smtpraft.delivery.destination import DestinationQueue
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.storage.stats import BATCH_BUCKETS, SYNC_BUCKETS_S, WalStats


def histogram(name: str, text: str, bounds: Sequence[float], counts: Sequence[int], total: float) -> Metric:
    """Return a histogram from counts that are not cumulative, the last of them for what is above every bound."""
    family = HistogramMetricFamily(f"smtpraft_{name}", text)
    family.add_metric([], _buckets(bounds, counts), total)
    return family


def durations(name: str, text: str, times: Durations) -> Metric:
    """Return a histogram of seconds."""
    return histogram(name, text, times.bounds, times.counts, times.seconds)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip([*map(floatToGoString, bounds), "+Inf"], counts, strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def node_metrics(node: Node) -> Iterable[Metric]:
    """Yield what the disk and the network have done for this node."""
    stats: WalStats = node.writer_stats
    yield histogram(
        "wal_fsync_duration_seconds", "Syncs of the log.", SYNC_BUCKETS_S, stats.sync_counts, stats.sync_seconds
    )
    yield counter("wal_write_bytes", "Bytes written to the log.", stats.bytes_written)
    yield counter("wal_batches", "Batches written to the log.", stats.batches)
    yield counter("wal_entries", "Entries written to the log.", stats.entries)
    yield counter("wal_rolls", "Segments begun.", stats.rolls)
    segments, size_bytes = node.wal_usage()
    yield gauge("wal_segments", "Files of the log in use.", segments)
    yield gauge("wal_segment_bytes", "Their bytes.", size_bytes)
    yield histogram("raft_batch_entries", "Entries in one write.", BATCH_BUCKETS, stats.batch_counts, stats.entries)
    times = node.commit_times
    yield histogram(
        "raft_commit_duration_seconds", "Proposal to answer.", COMMIT_BUCKETS_S, times.counts, times.seconds
    )
    yield counter("raft_proposals_failed", "Proposals of this node not applied, or unknown.", node.proposals_failed)
    yield gauge(
        "raft_leader_last_contact_seconds",
        "Since the leader was heard of; on the leader: since a majority was.",
        node.leader_contact_s(),
    )
    beats = node.heartbeats
    yield counter("raft_heartbeat_send_failures", "Heartbeats that found no connection (leader).", beats.unsent)
    trips = HistogramMetricFamily(
        "smtpraft_network_peer_round_trip_time_seconds", "Heartbeats to a peer and back (leader).", labels=["peer"]
    )
    for peer, times_of in beats.round_trips.items():
        trips.add_metric([str(peer)], _buckets(times_of.bounds, times_of.counts), times_of.seconds)
    yield trips
    yield counter(
        "leases_taken_over",
        "Leases of other nodes that ended: live nodes took their messages over.",
        beats.sessions_ended,
    )
    texts = {"save": "Copies of the state made here.", "send": "Snapshots sent.", "receive": "Snapshots received."}
    for kind, spent in node.snapshot_times().items():
        yield durations(f"snapshot_{kind}_duration_seconds", texts[kind], spent)
    traffic = node.traffic()
    linked = {str(peer): float(stats.connected) for peer, stats in traffic.items()}
    again = {str(peer): float(stats.reconnects) for peer, stats in traffic.items()}
    yield labelled("network_peer_connected", "Do the connections to a peer stand?", "peer", linked)
    yield labelled("network_peer_reconnects", "Connections to a peer made anew.", "peer", again, counts=True)
    sent = {str(peer): float(stats.sent_bytes) for peer, stats in traffic.items()}
    received = {str(peer): float(stats.received_bytes) for peer, stats in traffic.items()}
    unsent = {str(peer): float(stats.unsent_frames) for peer, stats in traffic.items()}
    yield labelled("network_peer_sent_bytes", "Bytes sent to a peer.", "peer", sent, counts=True)
    yield labelled("network_peer_received_bytes", "Bytes received from a peer.", "peer", received, counts=True)
    yield labelled("network_peer_sent_failures", "Frames that could not be sent.", "peer", unsent, counts=True)
    yield gauge("loop_lag_seconds", "How late the last tick of the event loop was.", node.loop_lag_s)


def smtp_metrics(statistics: SmtpStatistics) -> Iterable[Metric]:
    """Yield what the SMTP side has seen."""
    yield gauge("smtp_connections", "Open connections.", statistics.connections)
    listeners = {text: float(count) for text, count in statistics.connections_by_listener.items()}
    yield labelled("smtp_connections", "Connections since the start.", "listener", listeners, counts=True)
    denied = {reason: float(count) for reason, count in statistics.connections_denied.items()}
    yield labelled("smtp_connections_denied", "Connections turned away.", "reason", denied, counts=True)
    received = {text: float(count) for text, count in statistics.received_by_listener.items()}
    yield labelled("messages_received", "Messages answered with 250.", "listener", received, counts=True)
    yield counter("recipients_received", "Their recipients.", statistics.recipients_received)
    yield counter("smtp_clients_gone", "Messages queued whose client left before the 250.", statistics.clients_gone)
    yield counter("messages_received_bytes", "Their bytes.", statistics.bytes_received)
    rejected = CounterMetricFamily("smtpraft_messages_rejected", "Refusals.", labels=["stage", "code"])
    for (stage, code), count in statistics.messages_rejected.items():
        rejected.add_metric([stage, str(code)], count)
    yield rejected
    yield counter("smtp_outcomes_unknown", "Connections closed without a reply.", statistics.outcomes_unknown)
    yield counter("smtp_timeouts", "Connections closed for silence.", statistics.timeouts)
    times, sizes = statistics.ack_seconds, statistics.message_bytes
    yield histogram("smtp_ack_duration_seconds", "Final dot to reply.", times.bounds, times.counts, times.sum)
    yield histogram("message_size_bytes", "Sizes of messages.", sizes.bounds, sizes.counts, sizes.sum)


def worker_metrics(rows: Sequence[Mapping[str, object]]) -> Iterable[Metric]:
    """Yield what the processes that speak SMTP for the node are doing."""
    listening = sum(row["state"] == "listens" for row in rows)
    yield gauge("smtp_workers", "Processes that speak SMTP for this node and listen.", listening)
    restarts = sum(int(str(row["restarts"])) for row in rows)
    yield counter("smtp_worker_restarts", "Times that such a process ended and another was started.", restarts)


def delivery_metrics(metrics: DeliveryMetrics, destinations: Sequence[DestinationQueue]) -> Iterable[Metric]:
    """Yield what this node has delivered."""
    results = {result: float(count) for result, count in metrics.recipients.items()}
    yield labelled("deliveries", "Recipients by the result of an attempt.", "result", results, counts=True)
    durations = HistogramMetricFamily("smtpraft_delivery_duration_seconds", "Attempts.", labels=["transport"])
    for transport, times in metrics.duration_s.items():
        durations.add_metric([transport], _buckets(times.bounds, times.counts), times.total)
    yield durations
    down = sum(queue.outage is not None for queue in destinations)
    yield gauge("delivery_destinations_down", "Destinations that take no connection now.", down)
    yield counter("delivery_bounces", "Notifications proposed.", metrics.bounces)
    yield counter("delivery_dead_letters", "Failures that nobody could be told of.", metrics.dead_letters)
    yield counter("delivery_abandoned", "Attempts broken off because the lease ended.", metrics.abandoned)
    yield counter("delivery_stale_reports", "Results that did not count any more.", metrics.stale_reports)
    yield gauge("delivery_connections", "Open connections to destinations.", metrics.connections)
    yield counter("delivery_connections_failed", "Connections that failed.", metrics.connections_failed)
