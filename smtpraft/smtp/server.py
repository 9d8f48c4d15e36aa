"""The SMTP listener of one node: who is let in, for how long, and how it ends.

    server = SmtpServer(settings, submit=client.submit, ready=node.has_quorum)
    await server.start()
    ...
    await server.drain(10.0)   # 421 to new and idle sessions; messages under way are answered
    await server.close()

Drain before the node stops: the messages under way still need their commits.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from smtpraft.config import ENGINE_AIOSMTPD, Address, SmtpSettings, parse_address
from smtpraft.smtp.connection import AnySession, Client
from smtpraft.smtp.fast import FastSession
from smtpraft.smtp.handler import MailHandler, SubmitMail
from smtpraft.smtp.memory import MemoryBudget
from smtpraft.smtp.policy import RelayPolicy, client_address, client_key
from smtpraft.smtp.protocol import shared_buffer
from smtpraft.smtp.proxy import Peer, ProxyGate
from smtpraft.smtp.session import SmtpSession
from smtpraft.smtp.statistics import SmtpStatistics

log = logging.getLogger(__name__)

BACKLOG: Final = 511
SWEEP_S_MAX: Final = 1.0
SWEEP_S_MIN: Final = 0.02
STRESS_PERCENT: Final = 80  # of max_connections; then silent clients get seconds instead of minutes


class SmtpServer:
    """Takes mail for `submit`. One per node, on the loop it was started on."""

    def __init__(
        self,
        settings: SmtpSettings,
        *,
        submit: SubmitMail,
        ready: Callable[[], bool],
        full: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
        instance: str = "",
        sockets: Sequence[socket.socket] = (),
        names: Sequence[str] = (),
    ) -> None:
        """`ready` says whether a message could be committed now; MAIL is answered 451 while it does not.
        `full` says whether there is too little room on the disk to take one: 452 while it does.

        `instance` begins the transaction ids of `Received:` lines; empty: random. `clock` dates these lines, no more.
        `sockets` are listeners that are open already; with them `settings.listen` is not opened. `names` are what
        metrics call them; if there are none, their addresses.
        """
        self.statistics = SmtpStatistics()
        self._names = list(names) or [listener_name(listening) for listening in sockets]
        for text in self._names or settings.listen:
            self.statistics.connections_by_listener[text] = self.statistics.received_by_listener[text] = 0
        self.memory = MemoryBudget(settings.max_inflight_bytes)
        self.draining = False
        self._submit = submit
        self._ready = ready
        self._full = full
        self._clock = clock
        self._instance = instance or secrets.token_hex(4)
        self._sockets = sockets
        self.buffer = shared_buffer()
        self._listeners: list[asyncio.Server] = []
        self._sessions: dict[AnySession, int] = {}
        self._gates: set[ProxyGate] = set()
        self._proxied: dict[AnySession, Peer] = {}  # from the making of a session to its admission
        self._per_client: Counter[int] = Counter()
        self._all_over = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self.configure(settings)

    def configure(self, settings: SmtpSettings) -> None:
        """Take new settings for the sessions that begin from now on; what sessions have begun ends as it began.

        `listen` and `max_inflight_bytes` are as they were at the start, until the next one.
        """
        self.settings = settings
        self._balancers = [ipaddress.ip_network(text) for text in settings.proxy_protocol]
        self._policy = RelayPolicy(
            hostname=settings.hostname,
            relay_networks=settings.relay_networks,
            local_domains=settings.local_domains,
            postmaster=settings.postmaster,
        )
        self.handler = MailHandler(
            settings,
            policy=self._policy,
            submit=self._submit,
            ready=self._ready,
            full=self._full,
            statistics=self.statistics,
            clock=self._clock,
            instance=self._instance,
        )
        self.hooks: dict[str, Any] = {
            "MAIL": self.handler.handle_MAIL,
            "RCPT": self.handler.handle_RCPT,
            "DATA": self.handler.handle_DATA,
        }
        hostname = settings.hostname.encode()
        self.greeting = b"220 %b ESMTP smtpraft\r\n" % hostname
        self.helo_reply = b"250 %b\r\n" % hostname
        self.ehlo_reply = (
            b"250-%b\r\n250-PIPELINING\r\n250-SIZE %d\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 ENHANCEDSTATUSCODES\r\n"
        ) % (hostname, settings.max_message_bytes)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: host and port as bound, in the order of the settings."""
        return [listening.getsockname()[:2] for listener in self._listeners for listening in listener.sockets]

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: an address cannot be bound; none is then.
        """
        self._loop = loop = asyncio.get_running_loop()
        try:
            for name, listening in zip(self._names, self._sockets, strict=True):
                met = partial(self._meet, name)
                self._listeners.append(await loop.create_server(met, sock=listening, backlog=BACKLOG))
            for text in () if self._sockets else self.settings.listen:
                address = parse_address(text)
                self._listeners.append(
                    await loop.create_server(
                        partial(self._meet, text),
                        address.host,
                        address.port,
                        reuse_address=True,
                        backlog=BACKLOG,
                    )
                )
        except BaseException:
            self._close_listeners()
            raise
        self._sweeper = loop.create_task(self._sweep(), name="smtp-timeouts")
        log.info("listening addresses=%s", ",".join(f"{host}:{port}" for host, port in self.addresses))

    def session(self, loop: asyncio.AbstractEventLoop) -> FastSession | SmtpSession:
        """Return a new session of the engine that the settings name, for a transport to connect."""
        return SmtpSession(self, loop) if self.settings.engine == ENGINE_AIOSMTPD else FastSession(self, loop)

    async def drain(self, timeout_s: float) -> None:
        """Listen no more, part with idle clients, wait up to `timeout_s` until the messages under way are answered."""
        self.draining = True
        self._close_listeners()
        for gate in list(self._gates):
            gate.abort()
        for session in list(self._sessions):
            session.drain()
        if not self._sessions:
            return
        self._all_over.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_over.wait()
        except TimeoutError:
            log.warning("drain ended sessions_left=%d", len(self._sessions))

    async def close(self) -> None:
        """Cut every connection. What was handed over and is not yet answered stays unanswered."""
        self.draining = True
        self._close_listeners()
        for gate in list(self._gates):
            gate.abort()
        for session in list(self._sessions):
            session.abandon()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        await asyncio.sleep(0)  # the transports close in the next turn of the loop

    # What a session calls.

    def admit(self, session: AnySession, peer: Any) -> Client | str:
        """Take the connection in, or return the reply that turns it away."""
        statistics = self.statistics
        settings = self.settings
        peer = self._proxied.pop(session, peer)
        statistics.connections_total += 1
        address = client_address(peer[0]) if peer else None
        key = client_key(address)
        if self.draining:
            return self._deny("draining", f"421 4.3.2 {settings.hostname} Service shutting down")
        if self._connections() >= settings.max_connections:
            return self._deny("total", f"421 4.3.2 {settings.hostname} Error: too many connections")
        if self._connections_of(key) >= settings.max_connections_per_client:
            return self._deny("client", f"421 4.7.0 {settings.hostname} Error: too many connections from your address")
        self._sessions[session] = key
        self._per_client[key] += 1
        statistics.connections += 1
        client = Client(session.loop, address, self._policy.may_relay(address))
        client.peer = peer
        return client

    def forget(self, session: AnySession) -> None:
        """The session is over and its connection closed."""
        key = self._sessions.pop(session)
        self._per_client[key] -= 1
        if not self._per_client[key]:
            del self._per_client[key]
        self.statistics.connections -= 1
        if not self._sessions:
            self._all_over.set()

    def _connections(self) -> int:
        """Return how many connections count towards `max_connections`."""
        return len(self._sessions)

    def _connections_of(self, client: int) -> int:
        """Return how many of them are this client's."""
        return self._per_client[client]

    def _deny(self, reason: str, reply: str) -> str:
        self.statistics.connections_denied[reason] += 1
        self.statistics.messages_rejected["connect", 421] += 1
        return reply

    def _meet(self, listener: str) -> asyncio.BaseProtocol:
        """Return what the next connection to `listener` talks to first."""
        if self._balancers:
            session_of = partial(self._session_of, listener)
            return ProxyGate(self._loop, self._is_balancer, session_of, self._gates)
        return self._session_of(listener, None)

    def _is_balancer(self, peer: Peer) -> bool:
        address = client_address(peer[0])
        return address is not None and any(address in network for network in self._balancers)

    def _session_of(self, listener: str, peer: Peer | None) -> asyncio.BaseProtocol:
        """Return a session with `peer`, or, if None, with who is at the other end of the connection."""
        self.statistics.connections_by_listener[listener] += 1
        session = self.session(self._loop)
        session.listener = listener
        if peer is not None:
            self._proxied[session] = peer
        return session

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    async def _sweep(self) -> None:
        """Look at all sessions now and then: cheaper than a timer that every command moves."""
        settings = self.settings
        interval_s = max(SWEEP_S_MIN, min(SWEEP_S_MAX, settings.command_timeout_s / 4, settings.data_timeout_s / 4))
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            stressed = self._connections() * 100 >= settings.max_connections * STRESS_PERCENT
            now = loop.time()
            for session in list(self._sessions):
                session.check_time(now, stressed)


def listener_name(listening: socket.socket) -> str:
    """Return what metrics call a listener that was open already: its address, as `smtp.listen` would have it."""
    name = listening.getsockname()
    return str(Address(*name[:2])) if isinstance(name, tuple) else str(name)
