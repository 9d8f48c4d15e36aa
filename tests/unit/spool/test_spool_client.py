"""The queue as the rest of the house uses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.spool import client as client_module
from smtpraft.spool import commands, reports
from smtpraft.spool.client import SpoolClient
from smtpraft.spool.types import (
    CHUNK_BYTES,
    Changes,
    Envelope,
    MessageInfo,
    MessageNotFound,
    Outcome,
    RecipientState,
    Result,
    deferred,
    delivered,
    failed,
    message_id,
)

from .journal import ENVELOPE, TWO, A, B, Bench, Single


@pytest.fixture
def node(bench: Bench) -> Single:
    return Single(bench)


@pytest.fixture
async def client(node: Single) -> AsyncIterator[SpoolClient]:
    client = SpoolClient(node, node.bench.machine)
    client.attach(asyncio.get_running_loop())
    yield client
    await client.close()


def ops(bench: Bench) -> list[int]:
    return [bench.journal.read_entry(item.index)[0] for item in bench.journal.items]


async def test_an_accepted_message_can_be_read_back(client: SpoolClient) -> None:
    message = await client.accept(ENVELOPE, [b"Received: x\r\n", b"\r\n", b"hello\r\n"], deadline_s=5)
    info = await client.get(message)
    assert info is not None
    assert await client.body(info) == [b"Received: x\r\n\r\nhello\r\n"]
    assert await client.body(message) == [b"Received: x\r\n\r\nhello\r\n"]
    assert await client.list_messages(limit=10) == [info]
    assert client.counts()["queued"] == 1


async def test_a_long_message_travels_in_parts(client: SpoolClient, bench: Bench) -> None:
    content = [bytes([number % 251]) * 100_003 for number in range(40)]
    message = await client.accept(ENVELOPE, content, deadline_s=5)
    assert ops(bench) == [commands.CHUNK] * 4 + [commands.ACCEPT]
    assert all(len(bench.journal.read_entry(index)) < 2**20 for index in range(1, 6))
    parts = await client.body(message)
    assert b"".join(parts) == b"".join(content)
    assert [len(part) for part in parts] == [CHUNK_BYTES] * 4 + [40 * 100_003 - 4 * CHUNK_BYTES]


async def test_no_entry_comes_near_a_mebibyte_whatever_the_envelope(client: SpoolClient, bench: Bench) -> None:
    crowd = Envelope("a@example.org", tuple("r" * 240 + f"{number}@example.net" for number in range(1000)))
    for size in (CHUNK_BYTES - 1000, CHUNK_BYTES, 2 * CHUNK_BYTES - 1000):
        message = await client.accept(crowd, [bytes(size)], deadline_s=5)
        assert sum(map(len, await client.body(message))) == size
    assert max(len(bench.journal.read_entry(item.index)) for item in bench.journal.items) < 2**20 - 32 * 1024


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
async def test_any_length_comes_back_whole(client: SpoolClient, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    message = await client.accept(ENVELOPE, [content[:size]], deadline_s=5)
    assert b"".join(await client.body(message)) == content[:size]


async def test_parts_go_a_few_at_a_time(client: SpoolClient, node: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way = most = 0
    replicate = node.replicate

    async def slow(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        if command[0] == commands.ACCEPT:
            assert under_way == 0, "every part is committed before the envelope is proposed"
        return await replicate(command, deadline_s=deadline_s)

    monkeypatch.setattr(node, "replicate", slow)
    monkeypatch.setattr(client_module, "CHUNK_BYTES", 10)
    message = await client.accept(ENVELOPE, [b"x" * 195], deadline_s=5)
    assert most == client_module.UPLOAD_WINDOW
    assert b"".join(await client.body(message)) == b"x" * 195


async def test_a_lost_part_means_no_message_and_no_leftovers(client: SpoolClient, node: Single, bench: Bench) -> None:
    """Whatever became of the part, the envelope was not proposed: the sender may be told 4yz."""
    replicate = node.replicate
    calls = 0

    async def loses_one(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OutcomeUnknown
        return await replicate(command, deadline_s=deadline_s)

    node.replicate = loses_one  # type: ignore[method-assign]
    with pytest.raises(NotReplicated, match="a part of the message"):
        await client.accept(ENVELOPE, [bytes(5 * CHUNK_BYTES)], deadline_s=5)
    await asyncio.gather(*client._tasks)
    assert ops(bench)[-1] == commands.FORGET_UPLOAD
    assert bench.queue() == []
    assert bench.machine._store.uploaded(A, 0) == []


async def test_a_cancelled_acceptance_leaves_no_parts(client: SpoolClient, node: Single, bench: Bench) -> None:
    replicate = node.replicate
    hanging = asyncio.Event()

    async def hangs(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        if command[0] == commands.CHUNK and len(bench.journal.items) == 2:
            hanging.set()
            await asyncio.Event().wait()
        return await replicate(command, deadline_s=deadline_s)

    node.replicate = hangs  # type: ignore[method-assign]
    accepting = asyncio.create_task(client.accept(ENVELOPE, [bytes(5 * CHUNK_BYTES)], deadline_s=5))
    await hanging.wait()
    accepting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await accepting
    await asyncio.gather(*client._tasks)
    assert ops(bench)[-1] == commands.FORGET_UPLOAD


async def test_a_refused_command_is_not_replicated(client: SpoolClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "encode_accept", lambda *_, **__: b"\x63\x01\x00\x00\x00\x00")
    with pytest.raises(NotReplicated, match="MALFORMED"):
        await client.accept(ENVELOPE, [b""], deadline_s=5)


async def test_what_the_node_says_of_an_acceptance_is_passed_on(client: SpoolClient, node: Single) -> None:
    node.refuse = 1
    with pytest.raises(NotReplicated):
        await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    with pytest.raises(ValueError, match="recipient"):
        await client.accept(Envelope("a@example.org", ()), [b"x"], deadline_s=5)


async def test_outcomes_that_arrive_together_share_a_command(client: SpoolClient, bench: Bench) -> None:
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(20)]
    before = len(bench.journal.items)
    result = Result(0, 1, RecipientState.DELIVERED)
    answers = await asyncio.gather(
        *(client.report([Outcome(message, index + 1, (result,))]) for index, message in enumerate(messages))
    )
    assert answers == [[True]] * 20
    assert len(bench.journal.items) - before <= 2
    assert bench.queue() == []


async def test_many_outcomes_are_spread_over_commands(client: SpoolClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "OUTCOMES_MAX", 3)
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(8)]
    result = Result(0, 1, RecipientState.DELIVERED)
    outcomes = [Outcome(message, index + 1, (result,)) for index, message in enumerate(messages)]
    outcomes[4] = Outcome(messages[4], 99, (result,))
    assert await client.report(outcomes) == [True] * 4 + [False] + [True] * 3


async def test_a_report_is_repeated_until_it_is_recorded(
    client: SpoolClient, node: Single, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome that is known must not be lost because the cluster had no leader for a while."""
    monkeypatch.setattr(reports, "PAUSE_FIRST_S", 0)
    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    node.refuse = 3
    assert await client.report([Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),))]) == [True]
    assert node.refuse == 0


async def test_a_report_whose_first_try_was_recorded_counts_once(
    client: SpoolClient, node: Single, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 40: the leader dies after the commit, before the answer; the retry must not count again."""
    monkeypatch.setattr(reports, "PAUSE_FIRST_S", 0)
    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    replicate = node.replicate
    calls = 0

    async def answer_lost(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        nonlocal calls
        calls += 1
        answer = await replicate(command, deadline_s=deadline_s)
        if calls == 1:
            raise OutcomeUnknown
        return answer

    node.replicate = answer_lost  # type: ignore[method-assign]
    recipient = bench.there(message).recipients[0]
    assert await client.report([Outcome(message, 1, (deferred(recipient, 1000, "451"),))]) == [False]
    assert bench.there(message).recipients[0].attempts == 1


async def test_reports_end_when_the_node_stops(client: SpoolClient, node: Single) -> None:
    async def stopped(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        raise Stopped

    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    node.replicate = stopped  # type: ignore[method-assign]
    outcome = Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),))
    answers = await asyncio.gather(client.report([outcome]), client.report([outcome]), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Stopped, Stopped]
    await client.close()
    with pytest.raises(Stopped):
        await client.report([outcome])


async def test_a_bug_while_reporting_is_not_taken_for_a_node_that_stops(client: SpoolClient, node: Single) -> None:
    async def refuses(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        raise ValueError("too large")

    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    node.replicate = refuses  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="too large"):
        await client.report([Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),))])


async def test_reports_are_cut_into_commands_that_fit_an_entry(client: SpoolClient, node: Single) -> None:
    envelope = Envelope("s@example.org", tuple(f"{number}@example.org" for number in range(100)))
    messages = [await client.accept(envelope, [b"x"], deadline_s=5) for _ in range(40)]
    words = "450 try again later " * 15
    outcomes = [
        Outcome(message, index, tuple(deferred(recipient, 1000, words) for recipient in info.recipients))
        for message in messages
        if (info := await client.get(message)) is not None
        for index in [info.epoch]
    ]
    replicate, sizes = node.replicate, []

    async def measured(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        sizes.append(len(command))
        return await replicate(command, deadline_s=deadline_s)

    node.replicate = measured  # type: ignore[method-assign]
    assert await client.report(outcomes) == [True] * 40
    assert len(sizes) == 2
    assert max(sizes) < reports.COMMAND_BYTES_MAX + 1000


async def test_closing_ends_a_report_under_way(client: SpoolClient, node: Single) -> None:
    async def hangs(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        await asyncio.Event().wait()
        return None

    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    node.replicate = hangs  # type: ignore[method-assign]
    report = asyncio.create_task(client.report([Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),))]))
    await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(Stopped):
        await report


async def test_a_reporter_that_hangs_up_does_not_undo_its_report(client: SpoolClient, bench: Bench) -> None:
    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    done = asyncio.Event()
    client.subscribe(lambda _: done.set())
    await asyncio.sleep(0)
    done.clear()
    report = asyncio.create_task(client.report([Outcome(message, 1, (Result(0, 1, RecipientState.DELIVERED),))]))
    await asyncio.sleep(0)
    report.cancel()
    await done.wait()
    assert bench.queue() == []
    assert client.counts()["delivered"] == 1


async def test_operators_act_on_some_or_all(client: SpoolClient, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "OPERATOR_BATCH_MAX", 2)
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(5)]
    assert await client.hold(messages[:3]) == 3
    assert await client.hold(None) == 2
    assert client.counts()["held"] == 5
    assert await client.release([messages[0], message_id(999)]) == 1
    assert await client.release(None) == 4
    info = bench.there(messages[0])
    await client.report([Outcome(info.id, info.epoch, (deferred(info.recipients[0], 60_000, "451"),))])
    assert await client.flush(None) == 1
    assert await client.delete(messages[:1]) == 1
    assert await client.delete(None) == 4
    assert await client.delete(None) == 0
    with pytest.raises(ValueError, match="is no message id"):
        await client.hold(["nonsense"])  # type: ignore[list-item]


async def test_all_means_what_is_there_now(client: SpoolClient, node: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a stream of new mail, deleting all must end, and must not touch what came afterwards."""
    monkeypatch.setattr(client_module, "OPERATOR_BATCH_MAX", 1)
    for _ in range(3):
        await client.accept(ENVELOPE, [b"old"], deadline_s=5)
    replicate = node.replicate

    async def busy(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: object = None
    ) -> object:
        node.bench.accept(body=b"new")
        return await replicate(command, deadline_s=deadline_s)

    monkeypatch.setattr(node, "replicate", busy)
    assert await client.delete(None) == 3
    assert {b"".join(await client.body(info)) for info in node.bench.queue()} == {b"new"}


async def test_listing_goes_in_pages(client: SpoolClient) -> None:
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(7)]
    page = await client.list_messages(limit=3)
    rest = await client.list_messages(limit=10, after=page[-1].id, linearizable=False)
    assert [info.id for info in page + rest] == messages
    assert [info.id for info in await client.owned(A, messages[4], 10)] == messages[5:]
    assert await client.owned(B, None, 10) == []


async def test_a_linearizable_read_asks_the_cluster_first(client: SpoolClient, node: Single) -> None:
    async def no_leader(*, deadline_s: float | None = None) -> int:
        raise NotReplicated

    node.read_index = no_leader  # type: ignore[method-assign]
    with pytest.raises(NotReplicated):
        await client.list_messages(limit=1)
    with pytest.raises(NotReplicated):
        await client.get(message_id(1))
    assert await client.list_messages(limit=1, linearizable=False) == []
    assert await client.get(message_id(1), linearizable=False) is None


async def test_a_body_is_read_from_its_copy_once_the_log_forgot_it(
    client: SpoolClient, node: Single, bench: Bench
) -> None:
    content = bytes(2 * CHUNK_BYTES + 5)
    long = await client.accept(ENVELOPE, [content], deadline_s=5)
    short = await client.accept(ENVELOPE, [b"short"], deadline_s=5)
    bench.machine.before_compaction(2)
    node.first_index = 3
    assert b"".join(await client.body(long)) == content
    bench.machine.before_compaction(4)
    node.first_index = 5
    assert b"".join(await client.body(long)) == content
    assert await client.body(short) == [b"short"]


async def test_the_body_of_a_message_that_left_is_gone(client: SpoolClient, node: Single, bench: Bench) -> None:
    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    info = bench.there(message)
    bench.machine.before_compaction(1)
    await client.report([Outcome(message, 1, (delivered(info.recipients[0]),))])
    with pytest.raises(MessageNotFound):
        await client.body(message)
    node.first_index = 2
    with pytest.raises(MessageNotFound):
        await client.body(info)
    ended = await client.ended(message)
    assert ended is not None
    assert ended.how == "done"


async def test_due_messages_come_soonest_first(client: SpoolClient, bench: Bench) -> None:
    delays = [5000, 1000, 3000]
    for delay in delays:
        info = bench.there(await client.accept(ENVELOPE, [b"x"], deadline_s=5))
        await client.report([Outcome(info.id, info.epoch, (deferred(info.recipients[0], delay, "451"),))])
    infos = await client.due(A, 2**62, 2)
    assert [info.next_attempt_ms for info in infos] == sorted(info.next_attempt_ms for info in bench.queue())[:2]


async def test_subscribers_hear_of_each_batch_once_on_the_loop(client: SpoolClient, bench: Bench) -> None:
    heard: list[Changes] = []
    client.subscribe(heard.append)
    message = await client.accept(TWO, [b"x"], deadline_s=5)
    info = bench.there(message)
    assert heard == [], "not on the apply thread"
    await asyncio.sleep(0)
    assert heard == [Changes(1, accepted=(info,))]
    bob, carol = info.recipients
    bounce = b"Subject: failed\r\n\r\n"
    await client.report([Outcome(message, 1, (delivered(bob), failed(carol, "550")), bounce)])
    await asyncio.sleep(0)
    assert heard[1:] == [Changes(2, accepted=tuple(bench.queue()), done=(message,))]


async def test_a_closed_queue_says_so(tmp_path: Path) -> None:
    bench = Bench(str(tmp_path / "other.db"))
    client = SpoolClient(Single(bench), bench.machine)
    bench.machine.close()
    with pytest.raises(Stopped):
        await client.list_messages(limit=1)


async def test_the_next_report_goes_while_the_one_before_waits_for_its_answer(
    client: SpoolClient, node: Single
) -> None:
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(2)]
    replicate = node.replicate
    commits: list[Callable[[], object]] = []
    answer = asyncio.Event()

    async def slow(
        command: bytes, *, deadline_s: float | None = None, foreseen: object = None, committed: Callable[[], object]
    ) -> object:
        commits.append(committed)
        await answer.wait()
        return await replicate(command, deadline_s=deadline_s)

    node.replicate = slow  # type: ignore[method-assign, assignment]
    told: list[int] = []
    tasks = []
    for at, message in enumerate(messages):
        outcome = Outcome(message, at + 1, (Result(0, 1, RecipientState.DELIVERED),))
        tasks.append(asyncio.create_task(client.report([outcome], told.append)))
        await asyncio.sleep(0.01)
    assert (len(commits), told) == (1, [])
    commits[0]()
    await asyncio.sleep(0.01)
    assert (len(commits), told) == (2, [1])
    answer.set()
    assert [await task for task in tasks] == [[True], [True]]
    assert told == [1, 1]


async def test_of_a_report_in_several_commands_each_part_is_told(
    client: SpoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "OUTCOMES_MAX", 3)
    messages = [await client.accept(ENVELOPE, [b"x"], deadline_s=5) for _ in range(8)]
    outcomes = [Outcome(each, at + 1, (Result(0, 1, RecipientState.DELIVERED),)) for at, each in enumerate(messages)]
    told: list[int] = []
    assert await client.report(outcomes, told.append) == [True] * 8
    assert told == [3, 3, 2]


async def test_a_message_is_told_of_at_its_commit_as_the_machine_will_show_it(
    client: SpoolClient, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[MessageInfo] = []
    client.subscribe_committed(told.extend)
    message = await client.accept(TWO, [b"Subject: x\r\n\r\n", b"text\r\n"], deadline_s=5)
    for _ in range(100):
        await asyncio.sleep(0.001)
        if told:
            break
    shown = bench.there(message)
    assert [replace(info, accepted_ms=shown.accepted_ms) for info in told] == [shown]
    assert await client.body(told[0]) == [b"Subject: x\r\n\r\ntext\r\n"]


async def test_a_message_is_told_of_before_what_became_of_it(client: SpoolClient) -> None:
    """Told of after it has left the queue, it would be delivered once more."""
    told: list[object] = []
    client.subscribe_committed(lambda infos: told.extend(info.id for info in infos))
    client.subscribe(lambda changes: told.extend(["accepted", *changes.deleted]))
    message = await client.accept(ENVELOPE, [b"x"], deadline_s=5)
    assert await client.delete([message]) == 1
    await asyncio.sleep(3 * client_module.GATHER_S)
    assert told == [message, "accepted", "accepted", message]


async def test_a_message_in_parts_is_told_of_by_the_machine_alone(
    client: SpoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[MessageInfo] = []
    client.subscribe_committed(told.extend)
    await client.accept(ENVELOPE, [bytes(CHUNK_BYTES), b"more"], deadline_s=5)
    await asyncio.sleep(3 * client_module.GATHER_S)
    assert told == []


async def test_closing_ends_a_report_that_has_just_begun(client: SpoolClient) -> None:
    for passes in range(6):
        again = reports.Reports(lambda *_: asyncio.Event().wait())
        outcome = Outcome(message_id(1), 1, (Result(0, 1, RecipientState.DELIVERED),))
        report = asyncio.create_task(again.report([outcome]))
        for _ in range(passes):
            await asyncio.sleep(0)
        await again.close()
        with pytest.raises(Stopped):
            await asyncio.wait_for(report, 5)


async def test_a_closed_client_tells_of_nothing_more(client: SpoolClient) -> None:
    told: list[MessageInfo] = []
    client.subscribe_committed(told.extend)
    await client.accept(ENVELOPE, [b"body"], deadline_s=5)
    await client.close()
    before = list(told)
    await asyncio.sleep(2 * client_module.GATHER_S)
    assert told == before


async def test_a_whole_message_that_claims_parts_is_not_replicated(client: SpoolClient, bench: Bench) -> None:
    heard: list[tuple[object, Exception | None]] = []
    command = commands.encode_accept(ENVELOPE, [b"body"], chunk_count=1, chunk_bytes=10)
    client.submit_encoded(command, deadline_s=5, done=lambda message, error: heard.append((message, error)))
    [(message, error)] = heard
    assert message is None
    assert isinstance(error, NotReplicated)
    assert ops(bench) == []
