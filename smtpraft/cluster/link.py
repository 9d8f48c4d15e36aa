"""All there is between this node and one peer: connections each way, tasks that dial, counters; and quiet logging.

Bookkeeping for `transport`, which makes and ends what is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final, Protocol

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.connection import Connection
from smtpraft.cluster.handshake import KEPT_CHANNELS, Channel
from smtpraft.types import NodeId

LOG_INTERVAL_S: Final = 30.0
_LOG_KEYS_MAX: Final = 256


class Receiver(Protocol):
    """The driver's side. Called on the loop's thread; must not block.

    A CorruptFrame or CorruptEntry that `frames_received` raises ends that connection; any other exception is a bug and
    goes to `on_failure`.
    """

    def frames_received(self, peer: NodeId, frames: list[tuple[int, bytes, bytes]]) -> None:
        """All frames of one read, in order: (type, head, tail)."""

    def peer_connected(self, peer: NodeId) -> None:
        """Both of our connections to `peer` are up now, and were not both before."""

    def peer_lost(self, peer: NodeId, reset: bool) -> None:
        """One connection to or from `peer` went down; once for each.

        `reset`: the other side's kernel said so, that is, its process closed it or died. Otherwise it fell silent, or
        we closed it.
        """


@dataclass(frozen=True, slots=True)
class PeerStats:
    """Counters since the start, of all connections to and from one peer. Times are the loop's, in seconds."""

    connected: bool
    connected_since: float | None
    incoming: int
    """How many connections the peer has to us now; 2 when all is well."""
    incarnation: int | None
    """Of the peer's process as it told us last."""
    sent_bytes: int
    sent_frames: int
    received_bytes: int
    received_frames: int
    unsent_frames: int
    """Frames for which `send` or `send_control` said False."""
    buffered_bytes: int
    """Waiting here to be taken by the kernel."""
    failures: int
    """Attempts to connect that failed."""
    reconnects: int
    """Connections to the peer after the first one of each channel."""
    round_trips_s: tuple[float, ...]
    """Of the last pings, `ROUND_TRIPS_KEPT` at most, on the control connection that is up; the oldest first."""
    last_error: str


@dataclass(slots=True)
class Link:
    """All there is between us and one peer."""

    peer: Peer
    outgoing: dict[Channel, Connection] = field(default_factory=dict)
    incoming: dict[Channel, Connection] = field(default_factory=dict)
    wake: dict[Channel, asyncio.Event] = field(
        default_factory=lambda: {channel: asyncio.Event() for channel in Channel}
    )
    attempts: dict[Channel, asyncio.Timeout] = field(default_factory=dict)
    addresses: list[tuple[int, str]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    directory: int = 0
    """The incarnation of the data directory that the peer must have; 0: any."""
    ahead: bool = False
    """The peer came with that directory itself, and the log of this node has not told of it yet."""
    incarnation: int | None = None
    connected_since: float | None = None
    established_count: int = 0
    failures: int = 0
    unsent_frames: int = 0
    last_error: str = ""
    sent_bytes: int = 0
    sent_frames: int = 0
    received_bytes: int = 0
    received_frames: int = 0

    @property
    def connected(self) -> bool:
        return Channel.BULK in self.outgoing and Channel.CONTROL in self.outgoing  # KEPT_CHANNELS

    def takes(self, connection: Connection, own_directory: int) -> bool:
        """May `connection`, which is proven, be one of this link?

        Who lost its disk was replaced while this node was away, or in entries that it has yet to apply. Such a peer
        knows this node's directory, and only a log can have told it: it is believed, or this node would never hear of
        what it misses. Whoever has no log cannot know it, and whether a replaced node may vote is that node's to know.
        """
        who = connection.who
        assert who is not None
        if self.directory in (0, who.directory):
            return True
        if connection.dialled or not who.wanted or who.wanted != own_directory:
            return False
        self.directory, self.ahead = who.directory, True
        for older in self.connections():
            older.abort("its data directory was replaced")
        return True

    def told(self, directory: int, removed: Container[tuple[NodeId, int]]) -> bool:
        """The log of this node says that the peer has `directory`, 0: that it is no member. False: that is the past."""
        if self.ahead and directory != self.directory and (self.peer.id, self.directory) not in removed:
            return False
        self.ahead = False
        return True

    def connections(self) -> list[Connection]:
        return [*self.outgoing.values(), *self.incoming.values()]

    def add_counters(self, connection: Connection) -> None:
        """Keep what a connection counted, after its end."""
        self.sent_bytes += connection.sent_bytes
        self.sent_frames += connection.sent_frames
        self.received_bytes += connection.received_bytes
        self.received_frames += connection.received_frames

    def stats(self) -> PeerStats:
        live = [*self.outgoing.values(), *self.incoming.values()]
        control = self.outgoing.get(Channel.CONTROL)
        return PeerStats(
            connected=self.connected,
            connected_since=self.connected_since,
            incoming=sum(channel in self.incoming for channel in KEPT_CHANNELS),
            incarnation=self.incarnation,
            sent_bytes=self.sent_bytes + sum(connection.sent_bytes for connection in live),
            sent_frames=self.sent_frames + sum(connection.sent_frames for connection in live),
            received_bytes=self.received_bytes + sum(connection.received_bytes for connection in live),
            received_frames=self.received_frames + sum(connection.received_frames for connection in live),
            unsent_frames=self.unsent_frames,
            buffered_bytes=sum(connection.buffered_bytes for connection in self.outgoing.values()),
            failures=self.failures,
            reconnects=max(0, self.established_count - len(KEPT_CHANNELS)),
            round_trips_s=tuple(control.round_trips_s) if control is not None else (),
            last_error=self.last_error,
        )


class Quiet:
    """Lets the first of equal log lines pass, then one every LOG_INTERVAL_S; keeps a bounded memory of them."""

    def __init__(self) -> None:
        self._logged_at: dict[tuple[object, ...], float] = {}

    def may_log(self, key: tuple[object, ...], now: float) -> bool:
        logged_at = self._logged_at.get(key)
        if logged_at is not None and now - logged_at < LOG_INTERVAL_S:
            return False
        if logged_at is None and len(self._logged_at) >= _LOG_KEYS_MAX:
            oldest = next(iter(self._logged_at))
            if now - self._logged_at[oldest] < LOG_INTERVAL_S:
                return False  # so many different lines within the interval are a flood
            del self._logged_at[oldest]
        self._logged_at.pop(key, None)  # so that the oldest stays first
        self._logged_at[key] = now
        return True
