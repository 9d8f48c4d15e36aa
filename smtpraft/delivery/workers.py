"""The workers: one task per connection (or per thread, or per batch) that takes what is due at its destination.

A worker lives as long as there is work, and with an open connection a little longer. It never waits for the cluster:
what it found out goes to `Desk.conclude`, and the next message is begun. `Desk.take` says when there is none to begin:
nothing due, no lease, too much unreported, or the destination is down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol

from smtpraft.config import DeliverySettings
from smtpraft.delivery.addresses import BadAddress, split
from smtpraft.delivery.attempt import Abandoned, Answer, DestinationFailed, Transaction, Verdict, deferred, failed
from smtpraft.delivery.budget import MessageMemory
from smtpraft.delivery.destination import DestinationQueue, Verge
from smtpraft.delivery.maildir import Deposit, MaildirWriter, mailbox_path
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.delivery.schedule import Job
from smtpraft.delivery.smtp_client import RECIPIENTS_PER_TRANSACTION, SmtpConnection, Timeouts
from smtpraft.spool.types import MessageInfo, MessageNotFound, Recipient

log = logging.getLogger(__name__)

BATCH_MESSAGES_MAX: Final = 16  # Maildir: directories are synced once for so many
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
DISCARD_MESSAGES_MAX: Final = 100
COMPLAIN_EVERY_S: Final = 60.0

INTERNAL_ERROR: Final = deferred("4.3.0", "internal error of the delivering node", "delivery")
DISCARDED: Final = Answer(Verdict.DELIVERED, 0, "2.0.0", "discarded", "discard")

Answered = list[tuple[Recipient, Answer]]


class Desk(Protocol):
    """Where workers get their work and leave their results."""

    settings: DeliverySettings
    hostname: str
    metrics: DeliveryMetrics
    draining: bool
    """Nothing more is to be begun."""

    def take(self, queue: DestinationQueue) -> Job | None:
        """Return a job to begin now, or None."""

    def may_send(self, job: Job) -> Callable[[], bool]:
        """Return the question whether the attempt may still be completed; any thread may ask it."""

    def put_back(self, job: Job, *, first: bool = False) -> None:
        """Nothing came of it that need be reported."""

    def doubt(self, job: Job) -> None:
        """The message is not in the queue any more, it seems."""

    def conclude(self, job: Job, answered: Answered, content: Sequence[bytes], peer: str, seconds: float) -> None:
        """The attempt is over."""

    async def defer(self, job: Job, answer: Answer) -> None:
        """Conclude without an attempt: everybody gets `answer`, a temporary one; an expired message ends."""

    def memory(self, queue: DestinationQueue) -> MessageMemory:
        """Return what the queue's messages take their memory from."""

    async def body(self, info: MessageInfo) -> list[bytes]:
        """Return the message. Raises MessageNotFound."""

    def session_failed(self, queue: DestinationQueue, answer: Answer) -> Verge:
        """No session could be had."""

    def session_broke(self, queue: DestinationQueue, answer: Answer) -> None:
        """A session ended in the middle."""

    def session_worked(self, queue: DestinationQueue) -> None:
        """A transaction came to a regular end."""

    def kick(self, queue: DestinationQueue) -> None:
        """Start or wake workers, if there is work for them."""


class SmtpWorker:
    """One connection at a time to an SMTP or LMTP server."""

    def __init__(self, desk: Desk, queue: DestinationQueue, timeouts: Timeouts) -> None:
        self._desk = desk
        self._queue = queue
        self._timeouts = timeouts
        self._memory = desk.memory(queue)
        self._loop = asyncio.get_running_loop()
        self._connection: SmtpConnection | None = None
        self._peer = ""

    async def run(self) -> None:
        """Work until there is nothing to do."""
        try:
            while not self._desk.draining and (self._connection is not None or self._may_connect()):
                job = self._desk.take(self._queue)
                if job is not None:
                    await self._work(job)
                elif self._connection is None or not await self._idle(self._connection):
                    break
        except BaseException:
            self._leave(politely=False)
            raise
        self._leave()

    def _may_connect(self) -> bool:
        return self._queue.slots <= self._queue.slots_allowed(self._loop.time())

    async def _idle(self, connection: SmtpConnection) -> bool:
        """Wait for work with the connection open; return whether to go on."""
        if not connection.usable:
            return False
        woken: asyncio.Future[bool] = self._loop.create_future()
        connection.lost = self._loop.create_future()
        connection.lost.add_done_callback(lambda _: _wake(woken, False))
        timer = self._loop.call_later(self._desk.settings.idle_timeout_s, _wake, woken, False)
        wake_for_work = partial(_wake, woken, True)
        self._queue.idle.append(wake_for_work)
        try:
            return await woken
        finally:
            timer.cancel()
            connection.lost = None
            if wake_for_work in self._queue.idle:
                self._queue.idle.remove(wake_for_work)

    async def _work(self, job: Job) -> None:
        info = job.item.info
        await self._memory.acquire(info.size_bytes)
        try:
            content = await self._desk.body(info)
            await self._attempt(job, info, content)
        except MessageNotFound:
            self._desk.doubt(job)
        finally:
            self._memory.release(info.size_bytes)

    async def _attempt(self, job: Job, info: MessageInfo, content: list[bytes]) -> None:
        started = self._loop.time()
        pending = list(job.recipients)
        answered: Answered = []
        crowded = False
        try:
            await self._transactions(job, info, content, pending, answered)
        except Abandoned:
            self._desk.metrics.abandoned += 1
            log.info("abandoned id=%s destination=%s", info.id, self._queue.destination)
        except DestinationFailed as error:
            crowded = self._desk.session_failed(self._queue, error.answer) is Verge.CROWDED
            if answered or not crowded:
                answered += [(recipient, error.answer) for recipient in pending]
        except Exception:
            # A bug of ours must not take the other mail down, nor be tried in a loop.
            log.exception("attempt failed id=%s destination=%s", info.id, self._queue.destination)
            answered += [(recipient, INTERNAL_ERROR) for recipient in pending]
            self._leave(politely=False)
        if answered:
            self._desk.conclude(job, answered, content, self._peer, self._loop.time() - started)
        else:
            self._desk.put_back(job, first=crowded)
        if self._connection is not None and not self._connection.usable:
            self._leave()

    async def _transactions(
        self, job: Job, info: MessageInfo, content: list[bytes], pending: list[Recipient], answered: Answered
    ) -> None:
        """Move recipients from `pending` to `answered`, a hundred at a time."""
        may_send = self._desk.may_send(job)
        while pending:
            batch = pending[:RECIPIENTS_PER_TRANSACTION]
            addresses = [recipient.address for recipient in batch]
            transaction = Transaction(info.id, info.sender, addresses, content, info.smtputf8, may_send)
            connection = await self._ready_connection()
            reused = connection.messages > 0
            answers = await connection.send(transaction)
            if reused and not connection.usable and not connection.answered:
                continue  # the server had closed it while it was idle; nothing was said, so nothing was tried
            later = [r for r, answer in zip(batch, answers, strict=True) if answer.verdict is Verdict.NOT_NOW]
            answered += [
                (r, answer) for r, answer in zip(batch, answers, strict=True) if answer.verdict is not Verdict.NOT_NOW
            ]
            pending[:] = later + pending[len(batch) :]
            if not connection.usable and all(answer.code in (0, 421) for answer in answers):
                self._desk.session_broke(self._queue, answers[-1])
            else:
                self._desk.session_worked(self._queue)
            if not connection.usable and pending:
                answered += [(recipient, answers[-1]) for recipient in pending]
                pending.clear()

    async def _ready_connection(self) -> SmtpConnection:
        """Return a connection that can take another message."""
        connection = self._connection
        if connection is not None:
            if connection.usable and connection.messages < self._desk.settings.messages_per_connection:
                return connection
            self._leave()
        try:
            connection = await SmtpConnection.open(
                self._queue.destination, hostname=self._desk.hostname, timeouts=self._timeouts
            )
        except DestinationFailed:
            self._desk.metrics.connections_failed += 1
            raise
        self._connection = connection
        self._peer = connection.peer
        self._desk.metrics.connections_opened += 1
        self._desk.metrics.connections += 1
        self._queue.connected()
        self._desk.kick(self._queue)  # it answers: others may come too
        return connection

    def _leave(self, *, politely: bool = True) -> None:
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        self._desk.metrics.connections -= 1
        self._queue.disconnected()
        if politely:
            connection.quit()
        else:
            connection.abort()


class MaildirWorker:
    """One thread's worth of Maildir deliveries, some messages at a time."""

    def __init__(self, desk: Desk, queue: DestinationQueue, writer: MaildirWriter, threads: Executor) -> None:
        self._desk = desk
        self._queue = queue
        self._writer = writer
        self._threads = threads
        self._memory = desk.memory(queue)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Work until there is nothing to do."""
        self._queue.connected()
        try:
            while jobs := self._take():
                await self._work(jobs)
        finally:
            self._queue.disconnected()

    def _take(self) -> list[Job]:
        jobs: list[Job] = []
        size_bytes = 0
        while len(jobs) < BATCH_MESSAGES_MAX and size_bytes < BATCH_BYTES_MAX:
            job = self._desk.take(self._queue)
            if job is None:
                break
            jobs.append(job)
            size_bytes += job.item.info.size_bytes
        if self._queue.ready:
            self._desk.kick(self._queue)
        return jobs

    async def _work(self, jobs: list[Job]) -> None:
        # All the memory at once: workers that each hold a part and wait for more would wait for each other.
        size_bytes = sum(job.item.info.size_bytes for job in jobs)
        await self._memory.acquire(size_bytes)
        try:
            contents: list[tuple[Job, list[bytes]]] = []
            for job in jobs:
                try:
                    contents.append((job, await self._desk.body(job.item.info)))
                except MessageNotFound:
                    self._desk.doubt(job)
            await self._deposit(contents)
        finally:
            self._memory.release(size_bytes)

    async def _deposit(self, contents: list[tuple[Job, list[bytes]]]) -> None:
        started = self._loop.time()
        deposits: list[Deposit] = []
        places: list[list[int | Answer]] = []  # by job and recipient: the number of the deposit, or an answer at once
        for job, content in contents:
            info = job.item.info
            transaction = Transaction(info.id, info.sender, (), content, info.smtputf8, self._desk.may_send(job))
            row: list[int | Answer] = []
            for recipient in job.recipients:
                try:
                    path = mailbox_path(self._queue.destination, recipient.address, self._desk.hostname)
                except BadAddress as error:
                    row.append(failed("5.1.3", str(error), "maildir"))
                    continue
                row.append(len(deposits))
                deposits.append(Deposit(path, recipient.address, transaction))
            places.append(row)
        try:
            answers = await self._loop.run_in_executor(self._threads, self._writer.deliver, deposits)
        except Exception:
            log.exception("attempt failed destination=%s messages=%d", self._queue.destination, len(contents))
            answers = [INTERNAL_ERROR] * len(deposits)
        seconds = self._loop.time() - started
        for (job, content), row in zip(contents, places, strict=True):
            answered: Answered = []
            for recipient, place in zip(job.recipients, row, strict=True):
                answer = place if isinstance(place, Answer) else answers[place]
                if answer is not None:
                    answered.append((recipient, answer))
            if answered:
                self._desk.conclude(job, answered, content, "", seconds)
            else:
                self._desk.metrics.abandoned += 1
                self._desk.put_back(job)
        troubles = [answer for answer in answers if answer is not None and answer.verdict is Verdict.DEFERRED]
        if len(troubles) == len(answers) > 0:
            self._desk.session_broke(self._queue, troubles[-1])
        else:
            self._desk.session_worked(self._queue)


class DiscardWorker:
    """Delivers nothing and says it did."""

    def __init__(self, desk: Desk, queue: DestinationQueue) -> None:
        self._desk = desk
        self._queue = queue

    async def run(self) -> None:
        """Work until there is nothing to do."""
        while True:
            for _ in range(DISCARD_MESSAGES_MAX):
                job = self._desk.take(self._queue)
                if job is None:
                    return
                self._desk.conclude(job, [(recipient, DISCARDED) for recipient in job.recipients], (), "", 0.0)
            await asyncio.sleep(0)


class UnroutedWorker:
    """Defers what no route takes, and says so to the operator."""

    def __init__(self, desk: Desk, queue: DestinationQueue) -> None:
        self._desk = desk
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._complained_at = -COMPLAIN_EVERY_S

    async def run(self) -> None:
        """Work until there is nothing to do."""
        while (job := self._desk.take(self._queue)) is not None:
            _, domain = split(job.recipients[0].address)
            if self._loop.time() >= self._complained_at + COMPLAIN_EVERY_S:
                self._complained_at = self._loop.time()
                log.error("no route for domain=%r, its mail is deferred id=%s", domain, job.item.info.id)
            await self._desk.defer(job, deferred("4.3.5", f"no route for domain {domain!a}", "route"))


def _wake(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
