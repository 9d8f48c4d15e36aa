"""Mail out: what this node owns is delivered, and what became of it is reported.

    Changes ──▶ Schedule ──take──▶ workers ──conclude──▶ outbox ──report──▶ the cluster ──▶ Changes

The rules of ownership (docs/design.md, "Who delivers"): nothing is begun without a node lease, nothing is completed
without asking for it again at the last moment, and an attempt whose message has changed hands is dropped. A worker does
not wait for its report to commit, but no more than 128 results are ever uncommitted: so many messages, and those
under way, may be sent twice if this node dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from smtpraft.config import ConfigError, DeliverySettings
from smtpraft.delivery.addresses import canonical_domain
from smtpraft.delivery.attempt import Answer
from smtpraft.delivery.budget import ALL_BYTES_MAX, ByteBudget, MessageMemory
from smtpraft.delivery.conclusion import Concluder
from smtpraft.delivery.destination import DestinationQueue, Verge
from smtpraft.delivery.maildir import MaildirWriter
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.delivery.outbox import Outbox
from smtpraft.delivery.reader import MailQueue, Reader
from smtpraft.delivery.retry import RetrySchedule
from smtpraft.delivery.routes import Destination, Routes, Transport
from smtpraft.delivery.schedule import Job, Schedule
from smtpraft.delivery.smtp_client import Timeouts
from smtpraft.delivery.workers import Answered, DiscardWorker, MaildirWorker, SmtpWorker, UnroutedWorker
from smtpraft.spool.types import Changes, MessageInfo, MessageNotFound, Outcome
from smtpraft.types import NodeId

log = logging.getLogger(__name__)

LOADED_MAX: Final = 20_000  # recipients in memory, about 1 KB each
LEASE_MARGIN_S: Final = 0.1  # nothing is begun in the last moments of a lease
LEASE_POLL_S: Final = 0.05
MAILDIR_THREADS: Final = 4


class LeaseHolder(Protocol):
    """What delivery needs of the node."""

    @property
    def node_id(self) -> NodeId: ...

    def lease_valid(self, margin_s: float = 0.0) -> bool:
        """May this node work on what it owns, for at least `margin_s` more? Any thread may ask."""


class Delivery:
    """The delivering half of a node. `start`, then `drain` and `close`."""

    def __init__(
        self,
        settings: DeliverySettings,
        *,
        client: MailQueue,
        node: LeaseHolder,
        hostname: str,
        data_dir: str,
        rng: random.Random,
        on_failure: Callable[[BaseException], None] | None = None,
        loaded_max: int = LOADED_MAX,
    ) -> None:
        """`on_failure` hears of a part of ours that died: the node should go down with it.

        Raises:
            ConfigError: a route, or the host name, is wrong.
        """
        self.settings = settings
        self.hostname = canonical_domain(hostname)
        if not re.fullmatch(r"[\x21-\x7e]+", self.hostname):
            raise ConfigError(f"smtp.hostname {hostname!r} cannot be said in EHLO")
        self.metrics = DeliveryMetrics()
        self.draining = False
        self._client = client
        self._node = node
        self._rng = rng
        self._on_failure = on_failure
        mailboxes = os.path.join(os.path.abspath(data_dir), "mail", "{domain}", "{local_part}")
        self._routes = Routes(settings.routes, default=Destination(Transport.MAILDIR, path=mailboxes))
        self._retry = RetrySchedule(
            settings.retry_s, jitter_percent=settings.retry_jitter_percent, expire_s=settings.expire_s, rng=rng
        )
        self._concluder = Concluder(
            node=node.node_id, hostname=self.hostname, retry=self._retry, metrics=self.metrics, rng=rng
        )
        self._timeouts = Timeouts(settings.connect_timeout_s, settings.command_timeout_s)
        self._schedule = Schedule(node.node_id, self._routes, loaded_max=loaded_max, make_queue=self._make_queue)
        self._reader = Reader(client, node.node_id, self._schedule, self._follow)
        self._outbox = Outbox(client.report, answered=self._on_answered, room=self._on_room)
        self._maildir = MaildirWriter(node.node_id)
        self._threads: ThreadPoolExecutor | None = None
        self._budget = ByteBudget(ALL_BYTES_MAX)
        self._memories: dict[DestinationQueue, MessageMemory] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._blocked: set[DestinationQueue] = set()
        self._deferring: set[DestinationQueue] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms = 0
        self._lease_timer: asyncio.TimerHandle | None = None
        self._probe_timers: dict[DestinationQueue, asyncio.TimerHandle] = {}

    # --- Life

    async def start(self) -> None:
        """Begin: read what this node owns, and follow what changes."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(MAILDIR_THREADS, thread_name_prefix="maildir")
        self._client.subscribe(self._on_changes)
        self._client.subscribe_committed(self._on_committed)
        self._start_task(self._outbox.run(), "delivery-report")
        self._start_task(self._reader.run(), "delivery-read")

    async def drain(self, timeout_s: float) -> None:
        """Begin nothing more; wait until what is under way is over and reported, at most `timeout_s`."""
        self.draining = True
        deadline = self._loop.time() + timeout_s
        for queue in self._schedule.queues.values():
            for wake in list(queue.idle):
                wake()
        if self._workers:
            await asyncio.wait(self._workers, timeout=timeout_s)
        try:
            async with asyncio.timeout_at(deadline):
                await self._outbox.wait_empty()
        except TimeoutError:
            log.warning("drain timed out workers=%d unreported=%d", len(self._workers), self._outbox.unreported)

    async def close(self) -> None:
        """Stop at once. What was under way and not reported will be tried again, by us or by whoever owns it then."""
        self.draining = True
        for timer in (self._timer, self._lease_timer, *self._probe_timers.values()):
            if timer is not None:
                timer.cancel()
        self._reader.close()
        tasks = [*self._workers, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    def lease_changed(self) -> None:
        """The node has just got a lease: begin what waited for it. (Without being told we find out in 50 ms.)"""
        self._kick_all()

    @property
    def destinations(self) -> list[DestinationQueue]:
        """Every destination seen so far, for a status page."""
        return list(self._schedule.queues.values())

    @property
    def message_bytes(self) -> int:
        """Bytes of large messages under way."""
        return self._budget.used

    @property
    def loaded(self) -> int:
        """Recipients in memory."""
        return self._schedule.loaded

    # --- Following the cluster

    def _on_changes(self, changes: Changes) -> None:
        if changes.resync:
            self._reader.resync()
        self._schedule.change(changes, self._client.now_ms())
        self._follow()

    def _on_committed(self, infos: Sequence[MessageInfo]) -> None:
        """Begin with what is certain to be ours: what becomes of it is recorded with its beginning, at little cost."""
        self._schedule.foresee(infos, self._client.now_ms())
        self._follow()

    def _follow(self) -> None:
        """Something has changed in the schedule: start what is due, and set the clock for what will be."""
        now_ms = self._client.now_ms()
        self._schedule.ripen(now_ms)
        woken = self._schedule.woken
        while woken:
            self.kick(woken.pop())
        due_ms = self._schedule.next_due_ms(now_ms)
        if due_ms is not None and (self._timer is None or due_ms < self._timer_at_ms):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at_ms = due_ms
            self._timer = self._loop.call_later(max(0.001, (due_ms - now_ms) / 1000), self._on_timer)
        self._reader.consider(now_ms)

    def _on_timer(self) -> None:
        self._timer = None
        self._follow()

    def _on_answered(self, job: Job, outcome: Outcome, counted: bool) -> None:
        if not counted:
            self.metrics.stale_reports += 1
            log.info("result did not count id=%s epoch=%d", outcome.message, outcome.epoch)
        if self._schedule.answered(job, outcome, counted):
            self._reader.doubt(outcome.message)

    def _on_room(self) -> None:
        blocked, self._blocked = self._blocked, set()
        for queue in blocked:
            self.kick(queue)
        self._follow()

    # --- Workers

    def _make_queue(self, destination: Destination) -> DestinationQueue:
        connections_max = self.settings.connections_per_route
        if destination.transport is Transport.MAILDIR:
            connections_max = min(connections_max, MAILDIR_THREADS)
        queue = DestinationQueue(
            destination,
            connections_max=connections_max,
            probe_s=self.settings.retry_s[0],
            jitter=lambda: 1 + 0.2 * self._rng.uniform(-1, 1),
        )
        self._memories[queue] = MessageMemory(self._budget)
        return queue

    def kick(self, queue: DestinationQueue) -> None:
        """Start or wake workers, if there is work for them and it may be begun."""
        if not self._may_begin(queue):
            return
        due = len(queue.ready)
        while due and queue.idle:
            queue.idle.pop()()  # the one that idled least: the others may time out
            due -= 1
        while due and queue.slots < queue.slots_allowed(self._loop.time()):
            queue.slots += 1
            due -= 1
            task = self._loop.create_task(self._run_worker(queue), name=f"delivery {queue.destination}")
            self._workers.add(task)
            task.add_done_callback(self._on_worker_done)

    def _on_worker_done(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        self._on_task_done(task)

    def _start_task(self, work: Coroutine[None, None, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("delivery task died task=%s", task.get_name(), exc_info=error)
            if self._on_failure is not None:
                self._on_failure(error)

    def _kick_all(self) -> None:
        for queue in list(self._schedule.queues.values()):
            self.kick(queue)

    async def _run_worker(self, queue: DestinationQueue) -> None:
        try:
            match queue.destination.transport:
                case Transport.SMTP | Transport.LMTP:
                    await SmtpWorker(self, queue, self._timeouts).run()
                case Transport.MAILDIR:
                    assert self._threads is not None
                    await MaildirWorker(self, queue, self._maildir, self._threads).run()
                case Transport.DISCARD:
                    await DiscardWorker(self, queue).run()
                case Transport.NONE:
                    await UnroutedWorker(self, queue).run()
        finally:
            queue.slots -= 1
        self.kick(queue)  # something may have come while the last worker was leaving

    # --- Desk

    def take(self, queue: DestinationQueue) -> Job | None:
        """Return a job to begin now, or None: nothing is due, or nothing may be begun."""
        return self._schedule.take(queue, self._client.now_ms()) if self._may_begin(queue) else None

    def _may_begin(self, queue: DestinationQueue) -> bool:
        """Is there something to begin and may it be? If not, whatever ends the hindrance kicks the queue again."""
        if self.draining or not queue.ready:
            return False
        if queue.outage is not None and self._loop.time() < queue.outage.retry_at:
            return False
        if self._outbox.full:
            self._blocked.add(queue)
            return False
        if not self._node.lease_valid(LEASE_MARGIN_S):
            if self._lease_timer is None:
                self._lease_timer = self._loop.call_later(LEASE_POLL_S, self._on_lease_timer)
            return False
        return True

    def _on_lease_timer(self) -> None:
        self._lease_timer = None
        self._kick_all()

    def may_send(self, job: Job) -> Callable[[], bool]:
        """Return the question that is asked before the final step: do we hold the lease, and the message, still?"""
        lease_valid = self._node.lease_valid
        return lambda: lease_valid() and job.current

    def put_back(self, job: Job, *, first: bool = False) -> None:
        """Nothing came of it that need be reported."""
        self._schedule.put_back(job, self._client.now_ms(), first=first)
        self._follow()

    def doubt(self, job: Job) -> None:
        """The message is not in the queue any more, it seems."""
        self._schedule.doubt(job)
        self._reader.doubt(job.item.info.id)

    def conclude(self, job: Job, answered: Answered, content: Sequence[bytes], peer: str, seconds: float) -> None:
        """The attempt is over: its outcome goes to the cluster."""
        self.metrics.observe(job.queue.destination.transport.value, seconds)
        outcome = self._concluder.outcome(
            job.item.info,
            job.epoch,
            answered,
            destination=job.queue.destination,
            peer=peer,
            content=content,
            now_ms=self._client.now_ms(),
        )
        self._schedule.reported(job, outcome)
        self._outbox.put(job, outcome)

    async def defer(self, job: Job, answer: Answer) -> None:
        """Conclude without an attempt; an expired message ends, and its sender gets it back."""
        content: list[bytes] = []
        info = job.item.info
        if self._concluder.is_expired(info, self._client.now_ms()):
            try:
                content = await self.body(info)
            except MessageNotFound:
                self.doubt(job)
                return
        self.conclude(job, [(recipient, answer) for recipient in job.recipients], content, "", 0.0)

    def memory(self, queue: DestinationQueue) -> MessageMemory:
        """Return what the queue's messages take their memory from."""
        return self._memories[queue]

    async def body(self, info: MessageInfo) -> list[bytes]:
        """Return the message."""
        return await self._client.body(info)

    def session_failed(self, queue: DestinationQueue, answer: Answer) -> Verge:
        """No session could be had."""
        verge = queue.session_failed(answer, self._loop.time())
        if verge is Verge.CROWDED:
            log.info("server wants no more connections destination=%s open=%d", queue.destination, queue.connections)
        else:
            self._on_outage(queue)
        return verge

    def session_broke(self, queue: DestinationQueue, answer: Answer) -> None:
        """A session ended in the middle."""
        if queue.session_broke(answer, self._loop.time()) is Verge.DOWN:
            self._on_outage(queue)

    def session_worked(self, queue: DestinationQueue) -> None:
        """A transaction came to a regular end."""
        if queue.succeeded():
            log.info("destination up destination=%s", queue.destination)
            self.kick(queue)

    def _on_outage(self, queue: DestinationQueue) -> None:
        outage = queue.outage
        assert outage is not None
        now = self._loop.time()
        log.log(
            logging.WARNING if outage.probes == 1 else logging.INFO,
            "destination down destination=%s for_s=%.0f probe_in_s=%.1f reason=%r",
            queue.destination,
            now - outage.since,
            outage.retry_at - now,
            outage.answer.text,
        )
        self._set_probe_timer(queue, outage.retry_at - now)
        if queue.gives_up(now) and queue not in self._deferring:
            self._start_task(self._defer_all(queue, outage.answer), f"delivery-defer {queue.destination}")

    def _set_probe_timer(self, queue: DestinationQueue, delay_s: float) -> None:
        timer = self._probe_timers.pop(queue, None)
        if timer is not None:
            timer.cancel()
        self._probe_timers[queue] = self._loop.call_later(max(0.01, delay_s), self._on_probe_timer, queue)

    def _on_probe_timer(self, queue: DestinationQueue) -> None:
        del self._probe_timers[queue]
        if queue.outage is None:
            return
        early_s = queue.outage.retry_at - self._loop.time()
        if early_s > 0:  # a timer's resolution is not the clock's
            self._set_probe_timer(queue, early_s)
        else:
            self.kick(queue)

    async def _defer_all(self, queue: DestinationQueue, answer: Answer) -> None:
        """Send everything that waits for a dead destination back to its schedule, without asking it for each."""
        self._deferring.add(queue)
        try:
            for _ in range(len(queue.ready)):
                await self._outbox.wait_room()
                if queue.outage is None:
                    return
                job = self._schedule.take(queue, self._client.now_ms())
                if job is None:
                    return
                await self.defer(job, answer)
        finally:
            self._deferring.discard(queue)
