"""TCP between the nodes of a cluster: keeps two connections to every peer, and hands on what peers send.

    node-1  ── control ─▶  node-2    Each node dials every peer twice and sends on what it dialled; it receives on what
            ── bulk ────▶            it accepted. Control carries heartbeats and other small frames, so that they never
            ◀─ control ──            wait behind bulk, in our buffers or in the kernel's.
            ◀──── bulk ──         A snapshot gets a connection of its own, for as long as it takes (`open_channel`).

Refuses: strangers (see `handshake.py`), more than a few connections that have not proven who they are, frames above a
size, and to buffer without bound: `send` says False instead, and nothing was sent. Frames may be lost when a connection
goes down and are never repeated or reordered on one channel; Raft lives with that. Knows nothing of what frames mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from smtpraft.cluster.addresses import Peer, format_address, is_explicit, parse_peer, source_for
from smtpraft.cluster.connection import CONTROL_BUFFER_BYTES_MAX, FRAME_REMOVED, Connection
from smtpraft.cluster.handshake import (
    HANDSHAKE_TIMEOUT_S,
    KEPT_CHANNELS,
    Acceptor,
    Channel,
    Dialler,
    Established,
    Identity,
)
from smtpraft.cluster.link import Link, PeerStats, Quiet, Receiver
from smtpraft.config import ConfigError
from smtpraft.fastlog import encode_frame
from smtpraft.types import NodeId

__all__ = ["Peer", "PeerStats", "Receiver", "Transport"]

log = logging.getLogger(__name__)

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
BUFFERED_BYTES_MAX: Final = 64 * 1024 * 1024
SILENCE_LIMIT_S: Final = 3.0  # many elections long: only for connections that nothing else ends
CONNECT_TIMEOUT_S: Final = 2.0  # the kernel repeats a lost SYN after 1 s
STALE_ATTEMPT_S: Final = 0.1  # longer than any round trip over which an election would work
RESOLVE_TIMEOUT_S: Final = 5.0
RETRY_FIRST_S: Final = 0.02
RETRY_LAST_S: Final = 1.0
STEADY_S: Final = 1.0  # a connection that lived this long starts the back-off anew
UNPROVEN_MAX: Final = 64
CLOSE_TIMEOUT_S: Final = 1.0
_WATCHES_PER_LIMIT: Final = 6


class Transport:
    """All connections of one node. One event loop, one thread."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        cluster_id: bytes,
        secret: bytes | None,
        listen: tuple[str, int],
        advertise: tuple[str, int] | None = None,
        receiver: Receiver,
        incarnation: int,
        peers: Sequence[Peer] = (),
        directory: int = 0,
        takes_part: bool = False,
        max_frame_bytes: int = FRAME_BYTES_MAX,
        max_buffered_bytes: int = BUFFERED_BYTES_MAX,
        bind_source: bool | None = None,
        silence_limit_s: float = SILENCE_LIMIT_S,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        on_failure: Callable[[Exception], None] | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        known = advertise or (listen if is_explicit(listen[0]) and listen[1] else None)
        self._identity = Identity(
            node_id,
            cluster_id,
            incarnation,
            secret,
            directory=directory,
            takes_part=takes_part,
            address=format_address(*known) if known else "",
        )
        self._listen = listen
        self._receiver = receiver
        self._max_frame_bytes = max_frame_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._silence_limit_s = silence_limit_s
        self._handshake_timeout_s = handshake_timeout_s
        self._on_failure = on_failure
        self._jitter = jitter if jitter is not None else random.Random()
        # A fixed source address makes "node A" and "what comes from A's address" the same thing to a firewall.
        explicit = is_explicit(listen[0])
        self._source = listen[0] if explicit and bind_source is not False else None
        self._links = {peer.id: Link(peer) for peer in peers}
        assert len(self._links) == len(peers)
        assert node_id not in self._links
        self._unproven: dict[Connection, None] = {}
        self.removed: Mapping[tuple[NodeId, int], int] = {}
        """Nodes, with their data directory, that are members no more: told so when they connect."""
        self.describe: Callable[[], bytes] | None = None
        """Returns the frame for whoever asks who is here."""
        self.on_removed: Callable[[int], None] | None = None
        """Told that a member says that this node is a member no more since the entry at an index."""
        self._server: asyncio.Server | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._watched_at = 0.0
        self._stopping = False
        self._quiet = Quiet()

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and begin to dial every peer; returns without waiting for any of them.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._loop = asyncio.get_running_loop()
        host, port = self._listen
        self._server = await self._loop.create_server(self._accept, host, port, reuse_address=True, backlog=128)
        for link in self._links.values():
            self._begin_to_dial(link)
        self._watched_at = self._loop.time()
        self._watch()
        log.info("listening for nodes address=%s peers=%d", format_address(*self.listening), len(self._links))

    async def close(self) -> None:
        """Send what is buffered, for a second at most, and close everything. The receiver hears no more."""
        self._stopping = True
        if self._watch_timer is not None:
            self._watch_timer.cancel()
        if self._server is not None:
            self._server.close()
        tasks = [task for link in self._links.values() for task in link.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        connections = [connection for link in self._links.values() for connection in link.outgoing.values()]
        for connection in connections:
            connection.finish()
        await self._wait_closed(connections)
        connections += [connection for link in self._links.values() for connection in link.incoming.values()]
        connections += self._unproven
        for connection in connections:
            connection.abort("closed here", tell=False)
            connection.give_up()
        await self._wait_closed(connections)
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self._server.wait_closed()

    async def _wait_closed(self, connections: Sequence[Connection]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for connection in connections:
                    await connection.closed.wait()

    @property
    def listening(self) -> tuple[str, int]:
        """The address that is really listened on (a port of 0 has become one)."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    # --- who the peers are ---------------------------------------------------------------------------------------

    def set_peer(self, peer: Peer, directory: int = 0) -> None:
        """Keep connections to `peer`, which must have this data directory (0: any) at this address."""
        assert peer.id != self._identity.node
        link = self._links.get(peer.id)
        if link is None:
            link = self._links[peer.id] = Link(peer, directory=directory)
            if self._server is not None and not self._stopping:
                self._begin_to_dial(link)
            return
        if not link.told(directory, self.removed):
            return
        moved = (link.peer.host, link.peer.port) != (peer.host, peer.port)
        link.peer, link.directory = peer, directory
        if moved:
            link.addresses.clear()
        for connection in link.connections():
            assert connection.who is not None
            if directory and connection.who.directory != directory:
                connection.abort(f"{peer.id} is known with data directory {directory:016x}")
            elif moved and connection.dialled:
                connection.abort("its address has changed")
        for wake in link.wake.values():
            wake.set()

    def drop_peer(self, node: NodeId) -> None:
        """Let `node` go: no connections to it or from it any more."""
        link = self._links.get(node)
        if link is None or not link.told(0, self.removed):
            return
        del self._links[node]
        for task in link.tasks:
            task.cancel()
        for connection in link.connections():
            connection.abort(f"{node} is no member any more")
        self._receiver.peer_lost(node, False)

    def take_part(self) -> None:
        """Tell whoever connects from now on that this node is more than fresh."""
        self._identity = replace(self._identity, takes_part=True)

    def knows_us(self, peer: NodeId) -> bool:
        """Has `peer` asked for the very data directory that this node has?"""
        link = self._links.get(peer)
        return link is not None and any(
            connection.who is not None and 0 != connection.who.wanted == self._identity.directory
            for connection in link.incoming.values()
        )

    def directory_of(self, peer: NodeId) -> tuple[int, bool]:
        """Return the incarnation of a connected peer's data directory and whether its node took part; else (0, False).

        A node of a release without directories has 0 too.
        """
        link = self._links.get(peer)
        for connection in link.connections() if link is not None else ():
            if connection.who is not None:
                return connection.who.directory, connection.who.takes_part
        return 0, False

    @property
    def identity(self) -> Identity:
        """What this node says of itself."""
        return self._identity

    @property
    def is_listening(self) -> bool:
        """Do we take connections?"""
        return self._server is not None and not self._stopping

    @property
    def address(self) -> str:
        """Where others reach this node, as far as it knows; empty if it does not."""
        return self._identity.address

    def _begin_to_dial(self, link: Link) -> None:
        for channel in KEPT_CHANNELS:
            task = self._loop.create_task(
                self._keep_connected(link, channel), name=f"dial-{link.peer.id}-{channel.name.lower()}"
            )
            task.add_done_callback(self._task_done)
            link.tasks.append(task)

    # --- sending -------------------------------------------------------------------------------------------------

    def send(self, peer: NodeId, type: int, head: bytes, spans: Sequence[bytes | memoryview] = ()) -> bool:
        """Send a frame on the bulk connection: its head and, as tail, `spans` (of bytes; not to be changed any more).

        False: not connected, or what waits for this peer would pass `max_buffered_bytes`; nothing was sent.

        Raises:
            ValueError: the frame is above `max_frame_bytes`, which no peer would take.
        """
        link = self._links.get(peer)
        if link is None:
            return False
        connection = link.outgoing.get(Channel.BULK)
        if connection is not None and connection.send(type, head, spans):
            return True
        link.unsent_frames += 1
        return False

    def send_control(self, peer: NodeId, frame: bytes) -> bool:
        """Send a complete small frame (as `fastlog.encode_heartbeat` returns) on the control connection.

        False: not connected, or the peer does not take what was sent before; nothing was sent.
        """
        link = self._links.get(peer)
        if link is None:
            return False
        connection = link.outgoing.get(Channel.CONTROL)
        if connection is not None and connection.send_frame(frame):
            return True
        link.unsent_frames += 1
        return False

    async def open_channel(self, peer: NodeId, channel: Channel) -> Connection | None:
        """Dial `peer` for a connection that is not kept: the caller's, who closes it. None if that fails now."""
        link = self._links.get(peer)
        return await self._dial(link, channel) if link is not None and not self._stopping else None

    def connected(self, peer: NodeId) -> bool:
        """Are both of our connections to `peer` up?"""
        link = self._links.get(peer)
        return link is not None and link.connected

    def stats(self, peer: NodeId) -> PeerStats:
        """Return the counters of a configured peer.

        Raises:
            KeyError: there is no such peer.
        """
        return self._links[peer].stats()

    def traffic(self) -> dict[NodeId, PeerStats]:
        """Return the counters of every peer."""
        return {peer: link.stats() for peer, link in self._links.items()}

    # --- dialling ------------------------------------------------------------------------------------------------

    async def _keep_connected(self, link: Link, channel: Channel) -> None:
        wait_s = RETRY_FIRST_S
        wake = link.wake[channel]
        while True:
            wake.clear()
            connection = await self._dial(link, channel)
            if connection is not None:
                await connection.closed.wait()
                if self._loop.time() - connection.established_at >= STEADY_S:
                    wait_s = RETRY_FIRST_S
                # What has woken us meanwhile is no news, and nothing may make two nodes spin on a connection that
                # always fails right after its handshake.
                wake.clear()
            # Jitter, so that nodes which lost each other at one moment do not find each other in lockstep.
            pause_s = wait_s * self._jitter.uniform(0.5, 1.0)
            wait_s = min(wait_s * 2, RETRY_LAST_S)
            if connection is not None:
                await asyncio.sleep(pause_s)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await wake.wait()
                await asyncio.sleep(RETRY_FIRST_S * self._jitter.random())

    async def _dial(self, link: Link, channel: Channel) -> Connection | None:
        """Try all addresses of the peer once; return the connection when its handshake is done."""
        try:
            addresses = await self._resolve(link)
        except OSError as error:
            self._dial_failed(link, channel, f"cannot resolve {link.peer.host}: {str(error) or 'timed out'}")
            return None
        for family, host in addresses:
            dialled = format_address(link.peer.host, link.peer.port)
            dialler = Dialler(self._identity, link.peer.id, channel, wanted=link.directory, dialled=dialled)
            connection = self._make(dialler, channel)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S) as link.attempts[channel]:
                    await self._loop.create_connection(
                        lambda connection=connection: connection,
                        host,
                        link.peer.port,
                        family=family,
                        local_addr=source_for(self._source, family, host),
                    )
            except TimeoutError:
                self._dial_failed(link, channel, f"no answer from {format_address(host, link.peer.port)}")
                continue
            except OSError as error:
                self._dial_failed(link, channel, str(error))
                continue
            finally:
                link.attempts.pop(channel, None)
            try:
                await connection.settled.wait()
            except asyncio.CancelledError:
                connection.abort("closed here", tell=False)
                raise
            if connection.who is not None:
                return connection
            self._dial_failed(link, channel, connection.failure)
        return None

    async def _resolve(self, link: Link) -> list[tuple[int, str]]:
        """Return (family, address) of the peer in the resolver's order; the last known while the resolver fails."""
        host = link.peer.host
        try:
            version = ipaddress.ip_address(host.partition("%")[0]).version
        except ValueError:
            pass
        else:
            return [(socket.AF_INET6 if version == 6 else socket.AF_INET, host)]
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                infos = await self._loop.getaddrinfo(host, link.peer.port, type=socket.SOCK_STREAM)
        except OSError:
            if not link.addresses:
                raise
        else:
            link.addresses = list(dict.fromkeys((int(info[0]), str(info[4][0])) for info in infos))
        return link.addresses

    def _dial_failed(self, link: Link, channel: Channel, error: str) -> None:
        link.failures += 1
        link.last_error = error
        if self._quiet.may_log((link.peer.id, error), self._loop.time()):
            log.warning(
                "cannot connect peer=%s channel=%s address=%s error=%r",
                link.peer.id,
                channel.name.lower(),
                format_address(link.peer.host, link.peer.port),
                error,
            )

    # --- accepting -----------------------------------------------------------------------------------------------

    def _accept(self) -> Connection:
        # The oldest goes: an honest handshake takes milliseconds, so what has waited longest is least likely to be one.
        if len(self._unproven) >= UNPROVEN_MAX:
            oldest = next(iter(self._unproven))
            if self._quiet.may_log(("unproven",), self._loop.time()):
                log.warning("too many unproven connections limit=%d dropped=%s", UNPROVEN_MAX, oldest.address)
            oldest.abort("too many unproven connections")
            self._unproven.pop(oldest, None)
        wanted = {node: link.directory for node, link in self._links.items()}
        connection = self._make(Acceptor(self._identity, wanted, self.removed), Channel.CONTROL)
        if self._stopping:
            connection.abort("closed here")
        else:
            self._unproven[connection] = None
        return connection

    def _make(self, handshake: Dialler | Acceptor, channel: Channel) -> Connection:
        return Connection(
            self,
            handshake,
            loop=self._loop,
            frame_bytes_max=self._max_frame_bytes,
            buffered_bytes_max=CONTROL_BUFFER_BYTES_MAX if channel is Channel.CONTROL else self._max_buffered_bytes,
            silence_limit_s=self._silence_limit_s,
            handshake_timeout_s=self._handshake_timeout_s,
        )

    # --- what connections tell (connection.Owner) ----------------------------------------------------------------

    def established(self, connection: Connection, who: Established) -> bool:
        """See `connection.Owner`."""
        if who.asks or who.removed_index:
            self._unproven.pop(connection, None)
            if who.removed_index:
                if self._quiet.may_log((who.peer, "removed"), self._loop.time()):
                    log.warning("told that it is no member any more peer=%s address=%s", who.peer, connection.address)
                words = encode_frame(FRAME_REMOVED, who.removed_index.to_bytes(8, "big"))
            else:
                words = self.describe() if self.describe is not None else b""
            connection.dismiss(words, "told what it wanted to know")
            return False
        link = self._links.get(who.peer) or self._visitor(connection, who)
        if self._stopping or link is None:
            connection.abort("closed here" if self._stopping else "no address to answer to", tell=not self._stopping)
            return False
        if not link.takes(connection, self._identity.directory):
            connection.abort("known with another data directory by now")
            return False
        log.info(
            "peer connected peer=%s channel=%s direction=%s address=%s version=%d incarnation=%d",
            who.peer,
            who.channel.name.lower(),
            connection.direction,
            connection.address,
            who.version,
            who.incarnation,
        )
        link.incarnation = who.incarnation
        if connection.dialled:
            was_connected = link.connected
            assert who.channel not in link.outgoing
            link.outgoing[who.channel] = connection
            link.established_count += who.channel in KEPT_CHANNELS
            if link.connected and not was_connected:
                link.connected_since = self._loop.time()
                self._receiver.peer_connected(who.peer)
            return not connection.failure
        self._unproven.pop(connection, None)
        if not self._identity.address and who.dialled:
            self._identity = replace(self._identity, address=who.dialled)
        older = link.incoming.get(who.channel)
        link.incoming[who.channel] = connection
        if older is not None:
            # The peer gave that one up, or its process ended without our hearing of it.
            assert older.who is not None
            if older.who.incarnation != who.incarnation and self._quiet.may_log((who.peer, "twice"), self._loop.time()):
                log.warning(
                    "peer restarted unheard, or two processes have its id peer=%s addresses=%s,%s incarnations=%d,%d",
                    who.peer,
                    older.address,
                    connection.address,
                    older.who.incarnation,
                    who.incarnation,
                )
            older.abort("replaced by a newer connection")
        # It is there: do not wait for the end of our back-off, nor for the kernel to repeat a SYN that went nowhere.
        for wake in link.wake.values():
            wake.set()
        now = self._loop.time()
        for attempt in link.attempts.values():
            ends_at = attempt.when()
            if ends_at is not None and not attempt.expired() and now > ends_at - CONNECT_TIMEOUT_S + STALE_ATTEMPT_S:
                attempt.reschedule(now)
        return True

    def frames_received(self, connection: Connection, frames: list[tuple[int, bytes, bytes]]) -> None:
        """See `connection.Owner`."""
        assert connection.who is not None
        if not self._stopping:
            self._receiver.frames_received(connection.who.peer, frames)

    def lost(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        who = connection.who
        if who is None:
            self._unproven.pop(connection, None)
            if not connection.dialled and connection.refusal is not None:
                self._log_refusal(connection)
            return
        self._unproven.pop(connection, None)  # if it was not wanted after all
        link = self._links.get(who.peer)
        if link is None or who.asks or who.removed_index:
            return  # let go meanwhile, or never kept
        link.add_counters(connection)
        if link.outgoing.get(who.channel) is connection:
            del link.outgoing[who.channel]
            if not link.connected:
                link.connected_since = None
        elif link.incoming.get(who.channel) is connection:
            del link.incoming[who.channel]
        if self._stopping:
            return
        link.last_error = connection.failure
        log.info(
            "peer connection lost peer=%s channel=%s direction=%s address=%s reason=%r",
            who.peer,
            who.channel.name.lower(),
            connection.direction,
            connection.address,
            connection.failure,
        )
        if who.channel in KEPT_CHANNELS:
            self._receiver.peer_lost(who.peer, connection.by_peer)

    def _visitor(self, connection: Connection, who: Established) -> Link | None:
        """Somebody unknown who knows the secret, the cluster and this directory: a member of whom the log will tell.

        A node that was away while members came and went could not hear its leader otherwise.
        """
        if connection.dialled or not who.wanted or who.wanted != self._identity.directory:
            return None
        try:
            peer = parse_peer(f"{who.peer}={who.address}")
        except ConfigError:
            return None
        log.info("peer not known yet peer=%s address=%s", who.peer, who.address)
        self.set_peer(peer, who.directory)
        return self._links[who.peer]

    def told_removed(self, connection: Connection, index: int) -> None:
        """See `connection.Owner`."""
        if not self._stopping and self.on_removed is not None:
            self.on_removed(index)

    def failed(self, error: Exception) -> None:
        """See `connection.Owner`."""
        log.error("transport failed", exc_info=error)
        if self._on_failure is not None:
            self._on_failure(error)

    def _log_refusal(self, connection: Connection) -> None:
        refusal = connection.refusal
        assert refusal is not None
        # Keyed by the address, not by what a stranger says: it could say something new each time.
        key = (connection.address.rpartition(":")[0], refusal.reason)
        if self._quiet.may_log(key, self._loop.time()):
            log.warning("connection refused address=%s reason=%r", connection.address, connection.failure)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            self.failed(error)

    # --- watching ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        now = self._loop.time()
        interval_s = self._silence_limit_s / _WATCHES_PER_LIMIT
        was_asleep = now - self._watched_at > 2 * interval_s
        self._watched_at = now
        self._watch_timer = self._loop.call_later(interval_s, self._watch)
        for link in list(self._links.values()):
            for connection in link.connections():
                connection.watch(now, was_asleep=was_asleep)
