"""One node with all its parts: built, run together, drained in order.

    start   node (recovers, takes part)  →  delivery  →  SMTP listens  →  admin listens  →  READY to the service manager
    SIGHUP  the settings are read again; what can change in a running node does
    stop    /readyz says 503  →  leadership handed over  →  SMTP and delivery drain  →  node leaves  →  exit 0

A part that dies takes the node down, and the service manager brings it back clean. A deadline in a thread of its own
ends the process even if the loop is stuck: a node that stops loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import logging
import os
import random
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from prometheus_client import Metric

from smtpraft.admin.loglevel import LogLevel
from smtpraft.admin.metrics import build_info, queue_metrics, raft_metrics
from smtpraft.admin.server import Admin
from smtpraft.admin.views import QUEUE_STATES
from smtpraft.cli import halves, logs, preflight, worker
from smtpraft.cli.configuration import read_secrets
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.gauges import delivery_metrics, node_metrics, smtp_metrics, worker_metrics
from smtpraft.cli.manager import START_STEP_S, ServiceManager
from smtpraft.cli.observing import Observing
from smtpraft.cli.reload import compare
from smtpraft.cluster.addresses import parse_advertise, parse_listen, parse_peers
from smtpraft.cluster.joining import CannotJoin
from smtpraft.cluster.node import Node
from smtpraft.cluster.settings import NodeOptions, derive_cluster_id
from smtpraft.config import Config, ConfigError
from smtpraft.delivery.delivery import Delivery
from smtpraft.errors import Fatal, NewerFormat, Removed, SmtpRaftError
from smtpraft.smtp import SmtpServer, SmtpWorkers, WorkersFailed
from smtpraft.smtp.worker_frames import State
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.keyclient import KeyValues
from smtpraft.spool.machine import SpoolMachine
from smtpraft.storage.errors import DirectoryInUse, IdentityMismatch
from smtpraft.types import NodeId, parse_node_id

log = logging.getLogger(__name__)

STOP_S: Final = 15.0  # service managers and the cluster's other nodes wait 20
DRAIN_S: Final = 6.0
LINGER_S: Final = 1.0  # if all nodes stop at once, the others need us for a majority until they have drained too
NODE_STOP_S: Final = 5.0
SIGNAL_PAIR_S: Final = 0.5
QUORUM_SAMPLE_S: Final = 0.1
STATUS_S: Final = 1.0
QUORUM_GRACE_S: Final = 3.0  # several elections long: a failover is waited out, a lost majority is not
HINTS: Final = {
    errno.EADDRINUSE: "another process has it: stop that one, or choose another address",
    errno.EADDRNOTAVAIL: "no network card of this machine has that address",
    errno.EACCES: "ports below 1024 take CAP_NET_BIND_SERVICE, or a socket of systemd's; never root",
}


class PartDied(Exception):
    """A part of the node ended that should have run on."""


def node_options(config: Config, secret: bytes | None) -> NodeOptions:
    """Return what `cluster.Node` is told.

    Raises:
        ConfigError: an address or id cannot be used.
    """
    cluster = config.cluster
    node_id = parse_node_id(config.node.id)
    others = parse_peers(cluster.peers, node_id)
    shared = {field.name for field in dataclasses.fields(NodeOptions)} & set(cluster.__struct_fields__)
    given = {name: getattr(cluster, name) for name in shared - {"listen", "advertise", "peers", "join"}}
    return NodeOptions(
        node_id=node_id,
        data_dir=str(Path(config.node.data_dir).resolve()),
        cluster_id=derive_cluster_id(cluster.name, [node_id, *(peer.id for peer in others)]),
        cluster_name=cluster.name,
        listen=parse_listen(cluster.listen),
        advertise=parse_advertise(cluster.advertise) if cluster.advertise else None,
        peers=others,
        join=tuple(parse_listen(text, "cluster.join") for text in cluster.join),
        secret=secret,
        **given,
    )


class _LeaseHolder:
    """What delivery needs of the node."""

    def __init__(self, node: Node) -> None:
        self.node_id = node.id
        self.lease_valid = node.lease_valid


class Daemon:
    """The parts of one node and their life."""

    def __init__(
        self,
        config: Config,
        secret: bytes | None,
        token: bytes,
        *,
        manager: ServiceManager,
        sockets: Sequence[socket.socket] = (),
        reread: Callable[[], Config] | None = None,
    ) -> None:
        """`sockets`: SMTP listeners of the service manager. `reread` loads the settings again, for SIGHUP."""
        self.config = config
        self._manager = manager
        self._sockets = sockets
        self._reread = reread
        self._secret = secret
        self._token = token
        self._stop = asyncio.Event()
        self._signals = 0
        self._serving = False
        self._stands = logs.Standing(config.node.id)
        self._signalled_at: float | None = None
        self._quorum_seen_at = -QUORUM_GRACE_S
        self._quorum_met = False
        self._delivery_error: asyncio.Future[BaseException]
        self._workers_error: asyncio.Future[BaseException]

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; return the exit status.

        Raises:
            CommandError: a part cannot start.
        """
        loop = asyncio.get_running_loop()
        self._delivery_error = loop.create_future()
        self._workers_error = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._build()
        try:
            async with contextlib.AsyncExitStack() as parts:
                try:
                    await self._start_in_time(parts)
                    gc.collect()
                    gc.freeze()  # what is here now stays: later collections need not look at it
                    await self._run_until_stopped()
                except BaseException:
                    self._arm_deadline(Exit.SOFTWARE)
                    raise
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
            log.error("ended node=%s reason=%s: %s", self.config.node.id, type(error).__name__, error)
            return Exit.SOFTWARE
        log.info("ended node=%s", self.config.node.id)
        return Exit.OK

    async def _start_in_time(self, parts: contextlib.AsyncExitStack) -> None:
        """Start, and ask the service manager for patience as long as the loop runs: a log may be long."""
        patience = asyncio.create_task(self._ask_for_patience(), name="patience")
        try:
            await self._start(parts)
        finally:
            patience.cancel()
        if not self._stop.is_set():
            self._manager.ready()

    async def _ask_for_patience(self) -> None:
        while True:
            self._manager.starting()
            await asyncio.sleep(START_STEP_S)

    async def _run_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(self._watch_node(), name="node-watch"),
                tasks.create_task(self._watch_quorum(), name="quorum-watch"),
                tasks.create_task(self._scrub_queue(), name="queue-scrub"),
                tasks.create_task(self._watch_delivery(), name="delivery-watch"),
                tasks.create_task(self._watch_workers(), name="workers-watch"),
                tasks.create_task(self._tell_status(), name="status"),
            ]
            watchdog = None
            if self._manager.watchdog_interval_s:
                watchdog = tasks.create_task(self._feed_watchdog(), name="watchdog")
            await self._stop.wait()
            log.info("stopping")
            self._arm_deadline(Exit.OK)
            for watcher in watchers:
                watcher.cancel()
            await self._drain()
            if watchdog is not None:
                watchdog.cancel()

    # ---- build and start ----

    def _build(self) -> None:
        config = self.config
        self._data_dir = Path(config.node.data_dir).resolve()
        spool = self._data_dir / "spool"
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            spool.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reason = "it is no directory" if isinstance(error, FileExistsError) else error.strerror
            raise CommandError(Exit.CONFIG, f"node.data_dir: cannot use {self._data_dir}: {reason}") from None
        node_id = NodeId(config.node.id)
        self.machine = SpoolMachine(str(spool / "queue.db"), node_id)
        try:
            self.node = Node(node_options(config, self._secret), self.machine)
            self.machine.read_entry = self.node.read_entry_blocking
            self.machine.on_damage = self.node.damaged
            self.client = SpoolClient(self.node, self.machine)
            self.keys = KeyValues(self.node, self.machine)
            self.smtp: SmtpServer | SmtpWorkers = self._smtp_side()
            self.delivery = Delivery(
                config.delivery,
                client=self.client,
                node=_LeaseHolder(self.node),
                hostname=config.smtp.hostname,
                data_dir=str(self._data_dir),
                rng=random.Random(secrets.randbits(64)),
                on_failure=self._delivery_failed,
            )
            self.observing = Observing(self.node, self.client, self.smtp, self.delivery, str(self._data_dir))
            self.admin = Admin(
                config.admin,
                self.node,
                self.client,
                self.keys,
                ready=self._ready_for_all,
                digest=self.machine.digest_now,
                workers=self.smtp.view if isinstance(self.smtp, SmtpWorkers) else list,
                compiled=halves.complete(halves.parts()),
                compiled_parts=halves.parts(),
                metrics=[self._metrics],
                routes=self.observing.routes,
                token=self._token,
                data_dir=str(self._data_dir),
                log_level=LogLevel(logs.level_now, logs.set_level),
            )
        except ConfigError as error:
            raise CommandError(Exit.CONFIG, *error.problems) from None

    def _smtp_side(self) -> SmtpServer | SmtpWorkers:
        """Return what speaks SMTP: this process, or others."""
        settings = self.config.smtp
        if not settings.workers:
            return SmtpServer(
                settings, submit=self.client.submit, ready=self._ready, full=self._full, sockets=self._sockets
            )
        logs.share_stderr()
        command, environ = worker.command()
        return SmtpWorkers(
            settings,
            node=self.config.node.id,
            loop_name=self.config.node.loop,
            submit=self.client.submit,
            submit_encoded=self.client.submit_encoded,
            state=self._state_for_workers,
            command=command,
            environ=environ,
            on_failure=self._workers_failed,
            sockets=self._sockets,
        )

    async def _look_first(self) -> None:
        """A clock or a disk with which this node would do harm or no good."""
        problem = preflight.clock_problem(self._data_dir, time.time())
        if problem is not None:
            raise CommandError(Exit.UNAVAILABLE, problem)
        if not (self.config.cluster.peers or self.config.cluster.join):
            return  # a node alone has no leader to lose
        try:
            took_s = await asyncio.to_thread(preflight.measure_syncs_s, self._data_dir)
        except OSError as error:
            log.warning("the disk was not measured: %s", error.strerror or error)  # full, perhaps: that is told later
            return
        refusal, warning = preflight.judge_disk(took_s, self.config.cluster.election_timeout_ms)
        if refusal is not None:
            raise CommandError(Exit.CONFIG, refusal)
        if warning is not None:
            log.warning("%s", warning)

    async def _start(self, parts: contextlib.AsyncExitStack) -> None:
        config = self.config
        await self._look_first()
        self.client.attach(asyncio.get_running_loop())
        parts.push_async_callback(self._stop_node)
        async with _explained("cluster.listen", config.cluster.listen):
            await self.node.start()
        logs.configure(logs.level_now(), config.log.format, self._standing)
        parts.push_async_callback(self.client.close)
        parts.push_async_callback(self.delivery.close)
        await self.delivery.start()
        parts.push_async_callback(self.smtp.close)
        self._quorum_seen_at = asyncio.get_running_loop().time()  # a first election is waited out like any other
        async with _explained("smtp.listen", ", ".join(config.smtp.listen)):
            await self.smtp.start()
        self.observing.start()
        parts.push_async_callback(self.admin.stop)
        parts.push_async_callback(self.observing.close)
        async with _explained("admin.listen", config.admin.listen):
            await self.admin.start()
        log.info(
            "serving node=%s data_dir=%s smtp=%s admin=%s:%d",
            config.node.id,
            self._data_dir,
            ",".join(f"{host}:{port}" for host, port in self.smtp.addresses),
            *self.admin.address,
        )
        self._serving = True

    # ---- run ----

    async def _watch_node(self) -> None:
        error = await self.node.wait_failed()
        if not isinstance(error, Removed):
            raise error
        log.warning("%s: it stops, and will not start again with this data directory", error)
        self._stop.set()

    async def _watch_delivery(self) -> None:
        raise PartDied("delivery") from await self._delivery_error

    def _delivery_failed(self, error: BaseException) -> None:
        if not self._delivery_error.done():
            self._delivery_error.set_result(error)

    async def _watch_workers(self) -> None:
        raise PartDied("SMTP workers") from await self._workers_error

    def _workers_failed(self, error: BaseException) -> None:
        if not self._workers_error.done():
            self._workers_error.set_result(error)

    def _state_for_workers(self) -> State:
        return State(self._ready(), self._full(), self._stands.term, logs.level_now(), self.config.log.format)

    async def _scrub_queue(self) -> None:
        if rate := self.config.cluster.scrub_bytes_per_s:
            await self.client.scrub(rate)

    async def _watch_quorum(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.node.has_quorum():
                self._quorum_seen_at = loop.time()
                self._quorum_met = True
            if self.node.term != self._stands.term:  # for the log of messages: not made anew for every line
                self._stands = logs.Standing(self.node.id, self.node.term)
            await asyncio.sleep(QUORUM_SAMPLE_S)

    async def _tell_status(self) -> None:
        while True:
            status = self.node.status()
            leader = "leads" if status.leader_id == status.node_id else f"follows {status.leader_id or 'nobody yet'}"
            queued = self.client.counts()["messages"]
            self._manager.status(f"{leader}, term {status.term}, {queued} messages queued")
            await asyncio.sleep(STATUS_S)

    async def _feed_watchdog(self) -> None:
        """From the loop, and from nowhere else: that it comes at all is the message."""
        while True:
            self._manager.alive()
            await asyncio.sleep(self._manager.watchdog_interval_s)

    def _standing(self) -> logs.Standing:
        return self._stands

    def _full(self) -> bool:
        """Is there too little room on the disk to take on a message?"""
        return self.node.short_of_room

    def _ready(self) -> bool:
        """May a client begin a message? During an election yes, its commit waits that long; without a majority no."""
        if self.node.has_quorum():
            return True
        return asyncio.get_running_loop().time() - self._quorum_seen_at < QUORUM_GRACE_S

    def _ready_for_all(self) -> bool:
        """May a balancer send clients here? As `_ready`, or an election would take all nodes out at once, and close
        the door to clients that it should let wait; but not before there was a majority at all.
        """
        return self.node.has_quorum() or (self._quorum_met and self._ready())

    def _metrics(self) -> Iterable[Metric]:
        yield build_info(halves.complete(halves.parts()), self.config.node.loop)
        yield from raft_metrics(self.node.status())
        yield from node_metrics(self.node)
        yield from queue_metrics(self.client.counts(), QUEUE_STATES)
        yield from smtp_metrics(self.smtp.statistics)
        yield from worker_metrics(self.smtp.view() if isinstance(self.smtp, SmtpWorkers) else [])
        yield from delivery_metrics(self.delivery.metrics, self.delivery.destinations)
        yield from self.observing.metrics()

    # ---- stop ----

    def _signalled(self, number: int) -> None:
        now = time.monotonic()
        if self._signalled_at is not None and now - self._signalled_at < SIGNAL_PAIR_S:
            return  # one wish told twice: a supervisor that signals the process and then its group
        self._signals += 1
        self._signalled_at = now
        if self._signals > 1:
            log.warning("second signal=%s: ending at once", signal.Signals(number).name)
            logging.shutdown()
            os._exit(128 + number)
        log.info("signal=%s", signal.Signals(number).name)
        self._manager.stopping()
        if not self._serving:
            self._arm_deadline(Exit.OK)  # the start must come to its end first, or to this
        self._stop.set()

    def _reload(self) -> None:
        """Blocks the loop for a moment: three small files are read."""
        if self._reread is None or not self._serving or self._stop.is_set():
            log.warning("signal=SIGHUP: nothing is reloaded while the node starts or stops")
            return
        self._manager.reloading()
        try:
            change = compare(self.config, self._reread())
            _, token = read_secrets(change.merged)
        except ConfigError as error:
            for problem in error.problems:
                log.error("not reloaded: %s", problem)
            self._manager.ready()
            self._manager.status("the settings cannot be used and were not reloaded; see the log")
            return
        self.config = change.merged
        if any(name.startswith("smtp.") for name in change.live):
            self.smtp.configure(self.config.smtp)
        logs.configure(self.config.log.level, self.config.log.format, self._standing)
        self.admin.set_token(token)
        log.info("reloaded changed=%s", ",".join(change.live) or "nothing")
        if change.waiting:
            log.warning("these settings wait for a restart: %s", ", ".join(change.waiting))
        self._manager.ready()

    def _arm_deadline(self, status: Exit) -> None:
        def end() -> None:
            log.warning("not stopped in time: ending at once; nothing acknowledged is lost")
            logging.shutdown()
            os._exit(status)

        timer = threading.Timer(STOP_S + self.config.smtp.drain_delay_s, end)
        timer.daemon = True
        timer.start()

    async def _drain(self) -> None:
        self.admin.draining = True
        self.observing.draining()
        if self.node.is_leader and self.node.has_others:
            with contextlib.suppress(SmtpRaftError):
                await self.node.transfer_leadership()  # first, so that the messages under way commit without a pause
        # Balancers look at /readyz now and then: until they have, clients still come, and are served.
        await asyncio.sleep(self.config.smtp.drain_delay_s)
        await asyncio.gather(self.delivery.drain(DRAIN_S), self.smtp.drain(DRAIN_S))
        if self.node.has_others:
            await asyncio.sleep(LINGER_S)

    async def _stop_node(self) -> None:
        try:
            async with asyncio.timeout(NODE_STOP_S):
                await self.node.stop()
        except TimeoutError:
            log.warning("the node did not stop within %.0f s", NODE_STOP_S)


@asynccontextmanager
async def _explained(setting: str, address: str) -> AsyncIterator[None]:
    """Turn what can go wrong at the start into one line and an exit status."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise CommandError(Exit.UNAVAILABLE, f"{error.filename}: {error.strerror}") from None
        number = error.errno or 0
        reason = (
            os.strerror(number) if number > 0 else error.strerror or str(error)
        )  # loops put sentences into strerror
        hint = f"; {HINTS[number]}" if number in HINTS else ""
        raise CommandError(Exit.UNAVAILABLE, f"{setting}: cannot listen on {address}: {reason}{hint}") from None
    except (DirectoryInUse, CannotJoin, WorkersFailed) as error:
        raise CommandError(Exit.UNAVAILABLE, str(error)) from None
    except (IdentityMismatch, ConfigError, NewerFormat) as error:
        raise CommandError(Exit.CONFIG, str(error)) from None
    except Fatal as error:
        raise CommandError(Exit.SOFTWARE, f"{type(error).__name__}: {error}") from None
