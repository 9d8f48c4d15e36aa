"""Whether the election timeout suits the network: how far away each peer is, and what to do if it is too far.

A candidate needs two round trips, of the pre-vote and of the vote, before anybody else's timer ends, or nobody wins
(Raft §5.6: broadcastTime << electionTimeout); networks vary, so ten round trips are wanted, as of a disk ten writes.

What counts are the pings of the control connection. They need no leader: without one the timeout may be why. One slow
sample is no network but a busy machine, so all of the last ones must be slow before it is said, once for each peer; and
half of them quick before it is well again. A machine that is busy for seconds is as bad as a network: either elects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

from smtpraft.cluster.connection import ROUND_TRIPS_KEPT
from smtpraft.cluster.link import PeerStats
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

TIMEOUT_ROUND_TRIPS: Final = 10
ADVISED_ROUND_TRIPS: Final = 12  # or the next change of the network would be spoken of again
LOOK_EVERY_S: Final = 1.0
_ADVISED_STEP_MS: Final = 100


class Distances:
    """The peers of one node, as far away as their pings say. Loop thread; times in seconds."""

    def __init__(self, election_timeout_ms: int, traffic: Callable[[], Mapping[NodeId, PeerStats]]) -> None:
        self._election_timeout_ms = election_timeout_ms
        self._traffic = traffic
        self._far: set[NodeId] = set()
        self._look_at = 0.0

    def usual_s(self, peer: NodeId) -> float | None:
        """Return the median of the last round trips; None if there was none on the connection that is up."""
        stats = self._traffic().get(peer)
        return median(stats.round_trips_s) if stats is not None and stats.round_trips_s else None

    def sweep(self, now: float) -> None:
        """Look at all peers, now and then."""
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            traffic = self._traffic()
            self._far &= traffic.keys()
            for peer, stats in traffic.items():
                self._judge(peer, stats)

    def _judge(self, peer: NodeId, stats: PeerStats) -> None:
        far = is_far(stats.round_trips_s, self._election_timeout_ms)
        if far is None or far == (peer in self._far):
            return
        usual_ms = median(stats.round_trips_s) * 1000
        if far:
            self._far.add(peer)
            log.warning(
                "peer answers too late for the election timeout peer=%s round_trip_ms=%.1f election_timeout_ms=%d: "
                "expect elections without need, or no leader at all; set cluster.election_timeout_ms to %d or more "
                "on all nodes, %d round trips (and cluster.lease_ms above twice that)",
                peer,
                usual_ms,
                self._election_timeout_ms,
                advised_timeout_ms(usual_ms),
                ADVISED_ROUND_TRIPS,
            )
        else:
            self._far.discard(peer)
            log.warning(
                "peer answers soon enough again peer=%s round_trip_ms=%.1f election_timeout_ms=%d",
                peer,
                usual_ms,
                self._election_timeout_ms,
            )


def is_far(round_trips_s: Sequence[float], election_timeout_ms: int) -> bool | None:
    """Return whether a peer is too far away; None if that cannot be told yet, or some are quick and most are slow."""
    if len(round_trips_s) < ROUND_TRIPS_KEPT:
        return None
    limit_s = election_timeout_ms / 1000 / TIMEOUT_ROUND_TRIPS
    if min(round_trips_s) > limit_s:
        return True
    return False if median(round_trips_s) <= limit_s else None


def advised_timeout_ms(round_trip_ms: float) -> int:
    """Return the election timeout that suits such a round trip, in full tenths of a second."""
    return int(-(-round_trip_ms * ADVISED_ROUND_TRIPS // _ADVISED_STEP_MS) * _ADVISED_STEP_MS)
