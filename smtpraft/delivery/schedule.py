"""What this node has to deliver, and when: the owned messages in memory, by destination and time. No I/O, no clock.

A message is an `Item`; its open recipients at one destination are a `Job`, and a job is worked on by one attempt at a
time. The queue itself is replicated, so this is a cache that may forget: `SpoolClient.owned` and `due` bring back what
was left out, and `backlog_after` and `unloaded_due_ms` say from where.

    WAITING ──due──▶ READY ──take──▶ BUSY ──reported──▶ REPORTED ──shown──▶ WAITING, READY or GONE
                       ▲              │                    ├─ counted ───▶ COUNTED ──shown──▶ the same
                       └── put_back ──┘                    └─ not counted ▶ VOID ──reread──▶ the same

Invariant: what was reported is not taken again before the replicated state shows the result, or says that it did not
count. So nothing is sent again because a report is slow.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Final

from smtpraft.delivery.destination import DestinationQueue
from smtpraft.delivery.routes import NO_ROUTE, Destination, Routes
from smtpraft.spool.types import Changes, MessageId, MessageInfo, Outcome, Recipient, id_of_number, number_of
from smtpraft.types import NodeId

FROM_THE_START: Final = MessageId("")
DOUBTED_MS: Final = 10_000
ATTEMPT_RECIPIENTS_MAX: Final = 500
"""Of one message in one attempt: the outcome of all, with a notification about all, must fit a log entry."""
WAITING_STALE_MAX: Final = 1000
KEPT_SHARE: Final = 8  # when room is needed, one in so many of the waiting messages stays: the soonest


class JobState(enum.Enum):
    IDLE = enum.auto()
    """In nobody's hands for a moment; `_arrange` gives it its place."""
    WAITING = enum.auto()
    READY = enum.auto()
    BUSY = enum.auto()
    REPORTED = enum.auto()
    COUNTED = enum.auto()
    """Reported, and the cluster has taken it; the message does not show it yet."""
    VOID = enum.auto()
    GONE = enum.auto()


_HANDS_OFF: Final = (JobState.BUSY, JobState.REPORTED, JobState.COUNTED, JobState.VOID)
_SHOWS_LATER: Final = (JobState.REPORTED, JobState.COUNTED)


class Item:
    """A message in memory."""

    __slots__ = ("gone", "info", "jobs", "unsure")

    def __init__(self, info: MessageInfo) -> None:
        self.info = info
        self.jobs: list[Job] = []
        self.gone = False
        """Not ours to deliver any more; kept only for the attempts that still run."""
        self.unsure = False
        """It may have changed hands, and we have not read it again yet."""


class Job:
    """The open recipients of one message at one destination."""

    __slots__ = ("due_ms", "epoch", "item", "outcome", "queue", "recipients", "reported", "state")

    def __init__(self, item: Item, queue: DestinationQueue) -> None:
        self.item = item
        self.queue = queue
        self.state = JobState.IDLE
        self.due_ms = 0
        self.epoch = 0
        self.recipients: tuple[Recipient, ...] = ()
        """While BUSY: whom the attempt is for."""
        self.reported: dict[int, int] = {}
        """While REPORTED: the attempt that was reported, by ordinal."""
        self.outcome: Outcome | None = None
        """What was reported last and is not answered. The message may show it, and be tried again, before that."""

    @property
    def current(self) -> bool:
        """May the running attempt go on? Its message is here, known to be ours, and in the epoch it began in."""
        item = self.item
        return not item.gone and not item.unsure and item.info.epoch == self.epoch

    @property
    def recorded(self) -> bool:
        """Does the message show the reported results, or later ones?"""
        return all(
            recipient.state.final or recipient.attempts >= self.reported[recipient.ordinal]
            for recipient in self.item.info.recipients
            if recipient.ordinal in self.reported
        )


class Schedule:
    """The cache. `make_queue` makes the queue of a destination seen for the first time."""

    def __init__(
        self,
        node: NodeId,
        routes: Routes,
        *,
        loaded_max: int,
        make_queue: Callable[[Destination], DestinationQueue],
    ) -> None:
        self._node = node
        self._routes = routes
        self._loaded_max = loaded_max
        self._make_queue = make_queue
        self._items: dict[MessageId, Item] = {}
        self._waiting: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._touched: set[MessageId] | None = None
        self._overtaken = False
        self._left_out: set[DestinationQueue] = set()
        self._unseen = True
        self.queues: dict[Destination, DestinationQueue] = {}
        self.loaded = 0
        """Recipients in memory."""
        self.backlog_after: MessageId | None = FROM_THE_START
        """Messages that are due and not in memory have ids above this; None: there are none."""
        self.unloaded_due_ms: int | None = None
        """No message that waits and is not in memory is due before this; None: there are none."""
        self.found = 0
        """Messages taken in since the start."""
        self.refused = 0
        """Messages that were due and found no room, or had to give it."""
        self.woken: set[DestinationQueue] = set()
        """Queues that got something due; the caller empties it."""

    def __len__(self) -> int:
        return len(self._items)

    # --- What the replicated queue says

    def change(self, changes: Changes, now_ms: int) -> None:
        """Follow one applied batch."""
        if changes.resync:
            self._forget_all()
        for infos in (changes.accepted, changes.moved_here, changes.deferred, changes.released, changes.flushed):
            for info in infos:
                self._touch(info.id)
                self.load(info, now_ms)
        for info in changes.flushed:
            for recipient in info.open_recipients:
                queue = self._queue_of(recipient)
                queue.hurry()
                self.woken.add(queue)
        for messages in (changes.held, changes.done, changes.deleted, changes.moved_away):
            for message in messages:
                self._touch(message)
                self._remove(message)

    def foresee(self, infos: Iterable[MessageInfo], now_ms: int) -> None:
        """Take in messages that are committed, and that the replicated state does not show yet.

        Whatever may be read meanwhile knows nothing of them: if that makes us forget them, `change` brings them back.
        """
        for info in infos:
            self._touch(info.id)
            self.load(info, now_ms)

    def begin_reading(self) -> None:
        """A read of the replicated queue starts: what changes from now on is newer than what it will return."""
        assert self._touched is None, "one read at a time"
        self._touched = set()
        self._overtaken = False

    def end_reading(self, infos: Iterable[MessageInfo], now_ms: int) -> None:
        """Take in what a read returned, except what has changed since it began."""
        touched = self._end_reading()
        if self._overtaken:
            return  # the resync that overtook it has it all read again
        for info in infos:
            if info.id not in touched:
                self.load(info, now_ms)

    def end_rereading(self, message: MessageId, info: MessageInfo | None, now_ms: int) -> bool:
        """Take in what a read of one message returned, which `answered` or `doubt` asked for; `info` None: it is gone.

        Return False if the message has changed meanwhile: read it once more.
        """
        touched = self._end_reading()
        if self._overtaken or message in touched:
            return message not in self._items
        self._reread(message, info, now_ms)
        return True

    def _end_reading(self) -> set[MessageId]:
        touched = self._touched
        assert touched is not None
        self._touched = None
        return touched

    def load(self, info: MessageInfo, now_ms: int) -> None:
        """Take a message in, or its newer state; one that finds no room is noted as left out."""
        item = self._items.get(info.id)
        if item is None:
            if info.owner != self._node or info.held or not info.open_recipients:
                return
            if self.loaded + len(info.recipients) > self._loaded_max and not self._make_room(info, now_ms):
                return
            item = self._items[info.id] = Item(info)
            self.loaded += len(info.recipients)
            self.found += 1
        elif _older(info, item.info):
            return
        else:
            before, item.info = item.info, info
            if info.owner != self._node or info.held:
                self._remove(info.id)
                return
            if not (item.gone or item.unsure) and info.epoch == before.epoch and info.recipients == before.recipients:
                return  # what was foreseen is there now: nothing has changed
            item.gone = item.unsure = False
        self._arrange(item, now_ms)

    def _touch(self, message: MessageId) -> None:
        if self._touched is not None:
            self._touched.add(message)

    def _arrange(self, item: Item, now_ms: int) -> None:
        """Make the item's jobs agree with its info, all but those in somebody's hands."""
        due: dict[DestinationQueue, int] = {}
        for recipient in item.info.open_recipients:
            queue = self._queue_of(recipient)
            next_ms = recipient.next_attempt_ms
            if due.setdefault(queue, next_ms) > next_ms:
                due[queue] = next_ms
        for job in list(item.jobs):
            due_ms = due.pop(job.queue, None)
            if job.state in _HANDS_OFF and not (job.state in _SHOWS_LATER and job.recorded):
                continue
            if due_ms is None:
                self._drop_job(job)
            else:
                self._place(job, due_ms, now_ms)
        for queue, due_ms in due.items():
            job = Job(item, queue)
            item.jobs.append(job)
            queue.loaded += 1
            self._place(job, due_ms, now_ms)
        if not item.jobs:
            self._drop(item)

    def _queue_of(self, recipient: Recipient) -> DestinationQueue:
        destination = self._routes.find(recipient.address) or NO_ROUTE
        queue = self.queues.get(destination)
        if queue is None:
            queue = self.queues[destination] = self._make_queue(destination)
        return queue

    def _place(self, job: Job, due_ms: int, now_ms: int) -> None:
        if due_ms <= now_ms:
            if job.state is not JobState.READY:
                self._make_ready(job)
        elif job.state is not JobState.WAITING or job.due_ms != due_ms:
            job.state = JobState.WAITING
            job.due_ms = due_ms
            if len(self._waiting) > WAITING_STALE_MAX + 2 * self.loaded:  # what was flushed leaves its old time behind
                self._waiting = sorted(entry for entry in self._waiting if _waits(entry))
            heapq.heappush(self._waiting, (due_ms, next(self._order), job))

    def _make_ready(self, job: Job) -> None:
        job.state = JobState.READY
        job.queue.ready.append(job)
        self.woken.add(job.queue)

    # --- Time

    def next_due_ms(self, now_ms: int) -> int | None:
        """Return when something becomes due, in memory or not; None: nothing that we know of."""
        while self._waiting and not _waits(self._waiting[0]):
            heapq.heappop(self._waiting)
        first = self._waiting[0][0] if self._waiting else None
        unloaded = self.unloaded_due_ms
        if unloaded is None or unloaded <= now_ms:  # what is overdue is read as soon as there is room, not by the clock
            return first
        return unloaded if first is None else min(first, unloaded)

    def ripen(self, now_ms: int) -> None:
        """Make ready what has become due."""
        while self._waiting and (self._waiting[0][0] <= now_ms or not _waits(self._waiting[0])):
            entry = heapq.heappop(self._waiting)
            if _waits(entry):
                self._make_ready(entry[2])

    # --- Attempts

    def take(self, queue: DestinationQueue, now_ms: int) -> Job | None:
        """Return the next job that is due, with its recipients: the caller's until `reported` or `put_back`."""
        ready = queue.ready
        while ready:
            job = ready.popleft()
            if job.state is not JobState.READY:
                continue
            info = job.item.info
            job.recipients = self._due_of(job, now_ms)
            if job.item.unsure:
                job.state = JobState.IDLE  # until it was read again
            elif not job.recipients:
                job.state = JobState.IDLE
                self._arrange(job.item, now_ms)
            else:
                job.state = JobState.BUSY
                job.epoch = info.epoch
                return job
        return None

    def _due_of(self, job: Job, now_ms: int) -> tuple[Recipient, ...]:
        """Return whom an attempt is for now."""
        recipients = job.item.info.open_recipients
        if len(recipients) == 1 and len(job.item.jobs) == 1:  # nearly all messages
            return recipients if recipients[0].next_attempt_ms <= now_ms else ()
        queue = job.queue
        due = (
            recipient
            for recipient in recipients
            if recipient.next_attempt_ms <= now_ms and self._queue_of(recipient) is queue
        )
        return tuple(itertools.islice(due, ATTEMPT_RECIPIENTS_MAX))

    def put_back(self, job: Job, now_ms: int, *, first: bool = False) -> None:
        """The attempt came to nothing that need be reported: the job is as it was, `first` in its queue again."""
        assert job.state is JobState.BUSY
        job.recipients = ()
        if first and job.current:
            job.state = JobState.READY
            job.queue.ready.appendleft(job)
        else:
            job.state = JobState.IDLE
            self._settle(job, now_ms)

    def doubt(self, job: Job) -> None:
        """The message of the attempt is not what we think it is; it must be read again."""
        assert job.state is JobState.BUSY
        job.recipients = ()
        job.reported = {}
        job.state = JobState.VOID
        job.item.unsure = True

    def reported(self, job: Job, outcome: Outcome) -> None:
        """The attempt is over and its outcome goes to the cluster."""
        assert job.state is JobState.BUSY
        job.state = JobState.REPORTED
        job.recipients = ()
        job.reported = {result.ordinal: result.attempt for result in outcome.results}
        job.outcome = outcome

    def answered(self, job: Job, outcome: Outcome, counted: bool) -> bool:
        """The cluster has answered a report. Return whether the message must be read again (`end_rereading`)."""
        if job.outcome is not outcome:
            return False  # a late answer: the message has shown the result, and the job has been reported once more
        job.outcome = None
        if job.state is not JobState.REPORTED:
            return False
        if job.item.gone:
            self._drop_job(job)
            if not job.item.jobs:
                self._drop(job.item)
            return False
        if counted:
            job.state = JobState.COUNTED  # `change` brings the new state
            return False
        job.state = JobState.VOID
        job.item.unsure = True
        return True

    def _reread(self, message: MessageId, info: MessageInfo | None, now_ms: int) -> None:
        item = self._items.get(message)
        if item is None:
            return
        void = [job for job in item.jobs if job.state is JobState.VOID]
        for job in void:
            job.state = JobState.IDLE
        if info is None:
            self._remove(message)
            return
        self.load(info, now_ms)
        if item.gone:
            self._remove(message)
            return
        item.unsure = False
        self._arrange(item, now_ms)
        for job in void:
            if job.state is JobState.READY and not job.reported:
                self._place(job, now_ms + DOUBTED_MS, now_ms)  # it is there, and yet it was not

    def _settle(self, job: Job, now_ms: int) -> None:
        item = job.item
        if not item.gone:
            self._arrange(item, now_ms)
            return
        self._drop_job(job)
        if not item.jobs:
            self._drop(item)

    # --- Forgetting

    def _forget_all(self) -> None:
        """Everything may have changed. Running attempts go on, but not to their final step before we have read."""
        self._overtaken = True
        for item in list(self._items.values()):
            for job in list(item.jobs):
                if job.state not in _HANDS_OFF:
                    self._drop_job(job)
            if item.jobs:
                item.unsure = True
            else:
                self._drop(item)
        self.backlog_after = FROM_THE_START
        self._unseen = True
        self.unloaded_due_ms = None

    @property
    def unsure(self) -> list[MessageId]:
        """Messages of running attempts that may have changed hands; `end_rereading` says of each what became of it."""
        return [message for message, item in self._items.items() if item.unsure]

    def _remove(self, message: MessageId) -> None:
        item = self._items.get(message)
        if item is None:
            return
        item.gone = True
        for job in list(item.jobs):
            # What is reported stays until it is answered: the message may come back before that, and must not be sent
            # again for want of knowing.
            if job.state not in _HANDS_OFF or job.state is JobState.COUNTED:
                self._drop_job(job)
        if not item.jobs:
            self._drop(item)

    def _drop(self, item: Item) -> None:
        for job in list(item.jobs):
            self._drop_job(job)
        if self._items.get(item.info.id) is item:
            del self._items[item.info.id]
            self.loaded -= len(item.info.recipients)

    def _drop_job(self, job: Job) -> None:
        job.state = JobState.GONE
        job.item.jobs.remove(job)
        job.queue.loaded -= 1

    # --- Room

    @property
    def has_room(self) -> bool:
        """Is memory at least half empty?"""
        return self.loaded * 2 <= self._loaded_max

    @property
    def has_room_for_waiting(self) -> bool:
        """Is there room for what is not due yet?"""
        return self.loaded * 4 <= self._loaded_max * 3

    @property
    def wants_sweep(self) -> bool:
        """Is something left out that is due, and room for it, or a destination that could give way to it?"""
        if self.backlog_after is None:
            return False
        if self.has_room or self._unseen:
            return True
        return any(not queue.ready and queue.outage is None for queue in self._left_out)

    def wants_due(self, now_ms: int) -> bool:
        """Is something left out that waited and is now due, and room for it, or something to give way to it?"""
        return (
            self.unloaded_due_ms is not None
            and self.unloaded_due_ms <= now_ms
            and (self.has_room_for_waiting or len(self._waiting) * 4 > self._loaded_max)  # what waits gives way
        )

    def begin_sweep(self, *, going_on: bool = False) -> MessageId:
        """Pages of `owned` are about to be read, from the id returned; what finds no room is noted anew.

        `going_on`: they will begin where the last ones ended, so what those left out is still left out.
        """
        after = self.backlog_after
        self.backlog_after = None
        self._unseen = False
        if not going_on:
            self._left_out.clear()
        return FROM_THE_START if after is None else after

    def leave_out_after(self, message: MessageId, *, unseen: bool = False) -> None:
        """Messages that are due and not in memory may have ids above `message`; `unseen`: for any destination."""
        self._unseen = self._unseen or unseen
        if self.backlog_after is None or message < self.backlog_after:
            self.backlog_after = message

    def _leave_out(self, info: MessageInfo, queue: DestinationQueue) -> None:
        self.refused += 1
        self._left_out.add(queue)
        self.leave_out_after(id_of_number(number_of(info.id) - 1))

    def leave_waiting(self, due_ms: int) -> None:
        """A message that is due at `due_ms` is not in memory."""
        if self.unloaded_due_ms is None or due_ms < self.unloaded_due_ms:
            self.unloaded_due_ms = due_ms

    def _make_room(self, info: MessageInfo, now_ms: int) -> bool:
        """Make room for `info`, or note that it is left out.

        What waits gives way to what is due; then the destination with most in memory gives way to any other, so that
        one with a long queue leaves the others theirs.
        """
        if info.next_attempt_ms > now_ms:
            self.leave_waiting(info.next_attempt_ms)
            return False
        needed = len(info.recipients)
        self._evict_waiting()
        if self.loaded + needed <= self._loaded_max:
            return True
        queue = self._queue_of(info.open_recipients[0])
        biggest = max(self.queues.values(), key=lambda queue: queue.loaded)
        if queue is not biggest:
            self._evict_newest(biggest, needed)
        if self.loaded + needed <= self._loaded_max or not self._items:
            return True
        self._leave_out(info, queue)
        return False

    def _evict_waiting(self) -> None:
        entries = sorted(entry for entry in self._waiting if _waits(entry))
        kept = len(entries) // KEPT_SHARE
        for due_ms, _, job in entries[kept:]:
            if all(other.state is JobState.WAITING for other in job.item.jobs):
                info = job.item.info
                if info.next_attempt_ms:
                    self.leave_waiting(min(due_ms, info.next_attempt_ms))
                else:  # it waits only here (`DOUBTED_MS`): `due` would not find it
                    self._leave_out(info, job.queue)
                self._drop(job.item)
        self._waiting = [entry for entry in entries if _waits(entry)]  # sorted is a heap

    def _evict_newest(self, queue: DestinationQueue, needed: int) -> None:
        for _ in range(len(queue.ready)):
            if self.loaded + needed <= self._loaded_max:
                return
            job = queue.ready.pop()
            if job.state is not JobState.READY:
                continue
            if any(other.state in _HANDS_OFF for other in job.item.jobs):
                queue.ready.appendleft(job)
                continue
            self._leave_out(job.item.info, queue)
            self._drop(job.item)


def _older(info: MessageInfo, than: MessageInfo) -> bool:
    """Attempts only grow and epochs only grow: a read that was overtaken by a change is told by them."""
    if info.epoch != than.epoch:
        return info.epoch < than.epoch
    if len(info.recipients) == 1:
        return info.recipients[0].attempts < than.recipients[0].attempts
    return sum(r.attempts for r in info.recipients) < sum(r.attempts for r in than.recipients)


def _waits(entry: tuple[int, int, Job]) -> bool:
    due_ms, _, job = entry
    return job.state is JobState.WAITING and job.due_ms == due_ms
