"""The schedule in memory against a replicated queue that tells it everything late, and sometimes not at all."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from smtpraft.config import RouteSettings
from smtpraft.delivery.destination import DestinationQueue
from smtpraft.delivery.routes import Routes
from smtpraft.delivery.schedule import Job, Schedule
from smtpraft.spool import types as spool
from smtpraft.spool.types import Changes, MessageId, MessageInfo, Outcome, Recipient, RecipientState, message_id
from smtpraft.types import NodeId

ME = NodeId("node-1")
OTHER = NodeId("node-2")
ROUTES = [RouteSettings(domain="one.example", to="smtp://one:25"), RouteSettings(domain="*", to="smtp://any:25")]


def message(
    index: int, *recipients: str, owner: NodeId = ME, epoch: int = 1, due_ms: int = 0, attempts: int = 0
) -> MessageInfo:
    state = RecipientState.DEFERRED if attempts else RecipientState.QUEUED
    return MessageInfo(
        id=message_id(index),
        owner=owner,
        epoch=epoch,
        sender="s@example.net",
        recipients=tuple(
            Recipient(i, address, state, attempts, due_ms) for i, address in enumerate(recipients or ("a@example.org",))
        ),
        size_bytes=100,
        accepted_ms=0,
        held=False,
        is_bounce=False,
        smtputf8=False,
        body_8bitmime=False,
        accepted_by=owner,
        client_host="",
        helo="",
        auth="",
        parts=(),
    )


def schedule(loaded_max: int = 1000) -> Schedule:
    return Schedule(
        ME,
        Routes(ROUTES),
        loaded_max=loaded_max,
        make_queue=lambda to: DestinationQueue(to, connections_max=8, probe_s=60, jitter=lambda: 1.0),
    )


def take(plan: Schedule, now_ms: int = 0) -> Job | None:
    for queue in plan.queues.values():
        job = plan.take(queue, now_ms)
        if job is not None:
            return job
    return None


def reread(plan: Schedule, info: MessageInfo) -> None:
    plan.begin_reading()
    assert plan.end_rereading(info.id, info, 0)


def is_current(job: Job) -> bool:
    return job.current


def outcome(job: Job, finish: Callable[[Recipient], spool.Result] = spool.delivered) -> Outcome:
    return Outcome(job.item.info.id, job.epoch, tuple(finish(recipient) for recipient in job.recipients))


def answer(plan: Schedule, job: Job, *, counted: bool) -> bool:
    """The cluster answers what was reported last."""
    assert job.outcome is not None
    return plan.answered(job, job.outcome, counted)


def test_a_message_is_taken_once() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    assert take(plan) is not None
    assert take(plan) is None


def test_a_message_for_two_destinations_is_two_jobs() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1, "a@one.example", "b@example.org", "c@one.example"),)), 0)
    first, second = take(plan), take(plan)
    assert first is not None
    assert second is not None
    assert [r.ordinal for r in first.recipients] == [0, 2]
    assert [r.ordinal for r in second.recipients] == [1]
    assert take(plan) is None


def test_what_is_deferred_waits_for_its_time() -> None:
    plan = schedule()
    plan.load(message(1, due_ms=500, attempts=1), 0)
    assert take(plan) is None
    assert plan.next_due_ms(0) == 500
    plan.ripen(499)
    assert take(plan, 499) is None
    plan.ripen(500)
    assert take(plan, 500) is not None
    assert plan.next_due_ms(500) is None


def test_a_reported_message_waits_until_its_result_shows() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    plan.reported(job, outcome(job))
    plan.load(message(1), 0)  # a read that is older than the report
    assert take(plan) is None
    assert not answer(plan, job, counted=True)
    assert take(plan) is None
    plan.change(Changes(2, deferred=(message(1, due_ms=0, attempts=1),)), 0)
    assert take(plan) is not None


def test_a_result_that_did_not_count_is_cleared_up_by_reading() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    plan.reported(job, outcome(job))
    assert answer(plan, job, counted=False)
    plan.change(Changes(2, released=(message(1),)), 0)
    assert take(plan) is None
    reread(plan, message(1, epoch=2))
    again = take(plan)
    assert again is not None
    assert again.epoch == 2


@pytest.mark.parametrize("counted", [True, False])
def test_an_answer_that_comes_after_the_next_report_is_not_taken_for_the_answer_to_that(counted: bool) -> None:
    """Reports of many outcomes are answered together: the change that shows one may come long before."""
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    first = outcome(job, lambda recipient: spool.deferred(recipient, 0, "later"))
    plan.reported(job, first)
    plan.change(Changes(2, deferred=(message(1, attempts=1),)), 0)
    assert take(plan) is job
    plan.reported(job, outcome(job))
    assert not plan.answered(job, first, counted)
    plan.load(message(1, attempts=1), 0)
    assert take(plan) is None, "the second report is on its way"
    assert answer(plan, job, counted=False)
    reread(plan, message(1, attempts=1, epoch=2))
    assert take(plan) is not None


def test_a_message_that_is_there_and_has_no_body_is_not_tried_in_a_loop() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    plan.doubt(job)
    reread(plan, message(1))
    assert take(plan) is None
    assert plan.next_due_ms(0) == 10_000


def test_an_attempt_is_not_current_once_the_epoch_is_another() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    assert is_current(job)
    plan.change(Changes(2, moved_away=(message_id(1),)), 0)
    assert not is_current(job)
    plan.change(Changes(3, moved_here=(message(1, epoch=3),)), 0)
    assert not is_current(job)
    assert take(plan) is None, "one attempt at a time, the old one too"
    plan.put_back(job, 0)
    again = take(plan)
    assert again is not None
    assert is_current(again)


def test_what_was_not_read_again_after_a_resync_is_not_ours() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1), message(2), message(3))), 0)
    busy = take(plan)
    assert busy is not None
    plan.change(Changes(2, resync=True), 0)
    assert not busy.current
    assert take(plan) is None
    assert plan.unsure == [message_id(1)]
    plan.begin_reading()
    assert plan.end_rereading(message_id(1), None, 0)
    plan.begin_sweep()
    plan.begin_reading()
    plan.end_reading([message(2)], 0)
    assert not busy.current
    plan.put_back(busy, 0)
    job = take(plan)
    assert job is not None
    assert job.item.info.id == message_id(2)
    assert take(plan) is None


def test_a_change_during_a_read_is_newer_than_the_read() -> None:
    plan = schedule()
    plan.begin_reading()
    plan.change(Changes(1, done=(message_id(1),), deferred=(message(2, due_ms=900, attempts=1),)), 0)
    plan.end_reading([message(1), message(2), message(3)], 0)
    job = take(plan)
    assert job is not None
    assert job.item.info.id == message_id(3)
    assert take(plan) is None


def test_waiting_mail_gives_way_to_mail_that_is_due() -> None:
    plan = schedule(loaded_max=10)
    for i in range(1, 11):
        plan.load(message(i, due_ms=1000 * i, attempts=1), 0)
    plan.load(message(11), 0)
    assert take(plan) is not None
    assert plan.next_due_ms(0) == 1000
    assert plan.unloaded_due_ms == 2000
    assert plan.loaded <= 10
    assert plan.wants_due(2000)


def test_the_longest_queue_gives_way_to_others() -> None:
    plan = schedule(loaded_max=10)
    plan.begin_sweep()
    for i in range(1, 11):
        plan.load(message(i, "a@one.example"), 0)
    plan.load(message(11), 0)
    plan.load(message(12, "b@one.example"), 0)
    assert plan.loaded == 10
    assert {str(q.destination): q.loaded for q in plan.queues.values()} == {"smtp://one:25": 9, "smtp://any:25": 1}
    assert plan.backlog_after is not None
    assert plan.backlog_after < message_id(10)
    assert plan.backlog_after > message_id(9)


def test_a_message_held_and_released_while_its_result_is_on_its_way_is_not_sent_again() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    plan.reported(job, outcome(job))
    plan.change(Changes(2, held=(message_id(1),)), 0)
    plan.change(Changes(3, released=(message(1),)), 0)
    assert take(plan) is None
    plan.change(Changes(4, done=(message_id(1),)), 0)
    assert not answer(plan, job, counted=True)
    assert len(plan) == 0


def test_a_resync_makes_every_read_that_is_under_way_worthless() -> None:
    plan = schedule()
    plan.begin_reading()
    plan.change(Changes(1, resync=True), 0)
    plan.end_reading([message(1)], 0)
    assert take(plan) is None


def test_a_message_that_moved_away_while_it_was_read_again_stays_away() -> None:
    plan = schedule()
    plan.change(Changes(1, accepted=(message(1),)), 0)
    job = take(plan)
    assert job is not None
    plan.reported(job, outcome(job))
    assert answer(plan, job, counted=False)
    plan.begin_reading()
    plan.change(Changes(2, moved_away=(message_id(1),)), 0)
    assert not plan.end_rereading(message_id(1), message(1), 0)
    assert take(plan) is None
    plan.begin_reading()
    assert plan.end_rereading(message_id(1), message(1, owner=OTHER, epoch=2), 0)
    assert len(plan) == 0


class World:
    """The replicated queue, whose changes and answers reach the schedule late."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.plan = schedule(loaded_max=self.random.choice([5, 12, 1000]))
        self.now_ms = 0
        self.infos: dict[MessageId, MessageInfo] = {}
        self.mail: list[Callable[[], None]] = []  # what is on its way to the schedule, in order
        self.late: list[Callable[[], None]] = []
        self.busy: list[Job] = []
        self.sent: dict[tuple[MessageId, int, int], int] = {}
        self.doubted: list[MessageId] = []
        self.reading: list[MessageInfo] | None = None
        self.quiet = False
        self.heard = 0
        self.told_before = 0
        self.index = 0

    def tell(self, **lists: object) -> None:
        changes = Changes(0, **lists)  # type: ignore[arg-type]
        self.mail.append(lambda: self.plan.change(changes, self.now_ms))

    def accept(self) -> None:
        self.index += 1
        names = self.random.sample(["a@one.example", "b@one.example", "c@example.org", "d@example.org"], 2)
        info = message(self.index, *names, owner=self.random.choice([ME, ME, OTHER]))
        self.infos[info.id] = info
        if info.owner == ME:
            self.tell(accepted=(info,))

    def some(self) -> MessageInfo | None:
        return self.random.choice(list(self.infos.values())) if self.infos else None

    def move(self) -> None:
        info = self.some()
        if info is None:
            return
        owner = OTHER if info.owner == ME else ME
        moved = self.infos[info.id] = replace(info, owner=owner, epoch=info.epoch + 1)
        if self.random.random() < 0.3:
            self.resync_all()
        elif owner == ME:
            self.tell(moved_here=(moved,))
        else:
            self.tell(moved_away=(info.id,))

    def resync_all(self) -> None:
        def hear() -> None:
            self.plan.change(Changes(0, resync=True), self.now_ms)
            self.doubted += self.plan.unsure

        self.mail.append(hear)

    def hold_or_release(self) -> None:
        info = self.some()
        if info is None:
            return
        changed = self.infos[info.id] = replace(info, held=not info.held)
        if info.owner == ME:
            self.tell(**({"held": (info.id,)} if changed.held else {"released": (changed,)}))

    def delete(self) -> None:
        info = self.some()
        if info is not None and self.random.random() < 0.3:
            del self.infos[info.id]
            self.tell(deleted=(info.id,))

    def take(self) -> None:
        self.plan.ripen(self.now_ms)
        job = take(self.plan, self.now_ms)
        if job is not None:
            assert job.current
            self.busy.append(job)

    def finish(self) -> None:
        if not self.busy:
            return
        job = self.busy.pop(self.random.randrange(len(self.busy)))
        if not job.current:
            self.plan.put_back(job, self.now_ms, first=self.random.random() < 0.5)
            return
        if self.random.random() < 0.1:
            self.plan.put_back(job, self.now_ms, first=True)
            return
        if self.random.random() < 0.05:
            self.plan.doubt(job)
            self.doubted.append(job.item.info.id)
            return
        for recipient in job.recipients:
            key = (job.item.info.id, job.epoch, recipient.ordinal)
            # The invariant: nothing is attempted before every earlier result of ours is seen.
            assert recipient.attempts >= self.sent.get(key, 0), f"tried again although its result was on its way {key}"
            self.sent[key] = recipient.attempts + 1

        def result(recipient: Recipient) -> spool.Result:
            if self.random.random() < 0.5:
                return spool.delivered(recipient)
            return spool.deferred(recipient, 500, "later")

        what = outcome(job, result)
        self.plan.reported(job, what)
        self.commit(job, what)

    def commit(self, job: Job, what: Outcome) -> None:
        counted = self.apply(what)

        def answer() -> None:
            if self.plan.answered(job, what, counted):
                self.doubted.append(what.message)

        how = self.random.random()
        if how < 0.4:
            self.catch_up()
            answer()
        elif how < 0.8:
            self.mail.append(answer)
        else:
            self.mail.append(lambda: self.late.append(answer))  # answered with others, whose turn comes later still

    def answer_late(self) -> None:
        if self.late:
            self.late.pop(self.random.randrange(len(self.late)))()

    def catch_up(self) -> None:
        """Hear everything, but perhaps the newest: an answer from the queue can overtake one change, not two."""
        while len(self.mail) > self.random.randint(0, 1):
            self.hear()

    def apply(self, what: Outcome) -> bool:
        info = self.infos.get(what.message)
        if info is None or info.epoch != what.epoch or info.owner != ME:
            return False
        recipients = list(info.recipients)
        for one in what.results:
            old = recipients[one.ordinal]
            if old.state.final or one.attempt <= old.attempts:
                return False
            recipients[one.ordinal] = replace(
                old, state=one.state, attempts=one.attempt, next_attempt_ms=self.now_ms + one.delay_ms
            )
        changed = replace(info, recipients=tuple(recipients))
        if changed.open_recipients:
            self.infos[info.id] = changed
            self.tell(deferred=(changed,))
        else:
            del self.infos[info.id]
            self.tell(done=(info.id,))
        return True

    def hear(self) -> None:
        if self.mail:
            self.heard += 1
            self.mail.pop(0)()

    def reread(self) -> None:
        if self.doubted and self.reading is None:
            name = self.doubted.pop()
            info = self.infos.get(name)
            self.plan.begin_reading()
            for _ in range(0 if self.quiet else self.random.randint(0, 3)):
                self.random.choice([self.hear, self.move, self.delete])()
            self.catch_up()
            if not self.plan.end_rereading(name, info, self.now_ms):
                self.doubted.append(name)

    def read(self) -> None:
        """One page of a sweep, or what is due; the answer comes with a later step."""
        if self.reading is not None:
            while self.heard < self.told_before:
                self.hear()
            found, self.reading = self.reading, None
            self.plan.end_reading(found, self.now_ms)
            return
        self.told_before = self.heard + len(self.mail) - self.random.randint(0, 1)
        if self.plan.wants_sweep:
            after = self.plan.begin_sweep()
            self.plan.begin_reading()
            mine = [i for i in self.infos.values() if i.owner == ME and not i.held and i.id > after]
            self.reading = sorted(mine, key=lambda i: i.id)
        elif self.plan.wants_due(self.now_ms):
            self.plan.unloaded_due_ms = None
            self.plan.begin_reading()
            mine = [i for i in self.infos.values() if i.owner == ME and not i.held]
            self.reading = [i for i in mine if 0 < i.next_attempt_ms <= self.now_ms + 100]
            self.plan.leave_waiting(self.now_ms + 101)

    def pass_time(self) -> None:
        self.now_ms += self.random.randint(1, 300)


@pytest.mark.parametrize("seed", range(200))
def test_no_history_makes_it_send_twice_or_forget(seed: int) -> None:
    """Invariant: while a result of ours is on its way, its recipient is not tried; in the end nothing is left."""
    world = World(seed)
    steps = [
        world.accept,
        world.take,
        world.take,
        world.finish,
        world.finish,
        world.hear,
        world.hear,
        world.hear,
        world.reread,
        world.read,
        world.read,
        world.pass_time,
        world.move,
        world.hold_or_release,
        world.delete,
        world.answer_late,
    ]
    for _ in range(600):
        world.random.choice(steps)()
    for info in list(world.infos.values()):
        if info.owner == ME and info.held:
            changed = world.infos[info.id] = replace(info, held=False)
            world.tell(released=(changed,))
    world.quiet = True
    quiet = [world.take, world.finish, world.hear, world.reread, world.read, world.pass_time, world.answer_late]
    for _ in range(4000):
        for step in quiet:
            step()
        if not any(info.owner == ME for info in world.infos.values()) and not (world.mail or world.late or world.busy):
            break
    assert not any(info.owner == ME for info in world.infos.values()), f"forgotten, seed {seed}"
    assert len(world.plan) == 0
    assert world.plan.loaded == 0
    assert all(queue.loaded == 0 for queue in world.plan.queues.values())


def test_what_is_foreseen_is_taken_once_and_ends_with_its_end() -> None:
    plan = schedule()
    plan.foresee([message(1)], 0)
    job = take(plan)
    assert job is not None
    plan.reported(job, outcome(job))
    plan.change(Changes(7, done=(message_id(1),)), 0)  # its beginning and its end were applied together
    assert take(plan) is None
    assert not answer(plan, job, counted=True)
    assert len(plan) == 0
    assert plan.loaded == 0


def test_what_is_foreseen_and_then_told_is_taken_once() -> None:
    plan = schedule()
    plan.foresee([message(1)], 0)
    job = take(plan)
    assert job is not None
    plan.change(Changes(7, accepted=(message(1),)), 0)
    assert take(plan) is None
    plan.reported(job, outcome(job))
    plan.change(Changes(8, accepted=(message(1),)), 0)
    assert take(plan) is None
    plan.change(Changes(9, done=(message_id(1),)), 0)
    assert not answer(plan, job, counted=True)
    assert len(plan) == 0


def test_what_is_foreseen_and_held_before_it_was_taken_is_not_taken() -> None:
    plan = schedule()
    plan.foresee([message(1)], 0)
    plan.change(Changes(7, held=(message_id(1),)), 0)
    assert take(plan) is None


def test_a_foreseen_message_that_a_read_does_not_find_comes_back_with_its_change() -> None:
    plan = schedule()
    plan.foresee([message(1)], 0)
    job = take(plan)
    assert job is not None
    plan.change(Changes(5, resync=True), 0)
    plan.begin_reading()
    assert plan.end_rereading(message_id(1), None, 0)
    assert not is_current(job)
    plan.put_back(job, 0)
    assert len(plan) == 0
    plan.change(Changes(7, accepted=(message(1),)), 0)
    assert take(plan) is not None
