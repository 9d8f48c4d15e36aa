"""The delivering half of a node, from a queue to sinks: schedule, retries, ownership, leases, outages."""

from __future__ import annotations

import asyncio
import email
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import Message
from pathlib import Path

import pytest
from msgspec.structs import replace

from smtpraft.config import DeliverySettings, RouteSettings
from smtpraft.delivery import Delivery
from smtpraft.delivery.outbox import UNREPORTED_MAX
from smtpraft.spool.types import MessageInfo, RecipientState
from tests.integration.fake_queue import ME, OTHER, FakeNode, FakeQueue
from tests.integration.sinks import DISCONNECT, HANG, OK, Sink

A = "a@example.org"


class House:
    """A queue, a node and the delivery between them."""

    def __init__(self, tmp_path: Path) -> None:
        self.queue = FakeQueue()
        self.node = FakeNode()
        self.failures: list[BaseException] = []
        self._tmp_path = tmp_path

    @asynccontextmanager
    async def deliver(
        self, *routes: tuple[str, str], loaded_max: int = 20_000, **settings: object
    ) -> AsyncIterator[Delivery]:
        table = [RouteSettings(domain=domain, to=to) for domain, to in routes]
        delivery = Delivery(
            DeliverySettings(routes=table, **{"retry_s": [0.2], "idle_timeout_s": 2.0, **settings}),  # type: ignore[arg-type]
            client=self.queue,
            node=self.node,
            hostname="mx.example.org",
            data_dir=str(self._tmp_path),
            rng=random.Random(7),
            on_failure=self.failures.append,
            loaded_max=loaded_max,
        )
        await delivery.start()
        try:
            yield delivery
        finally:
            await delivery.close()
            assert not self.failures


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def bounce_of(house: House) -> Message:
    """Return the only notification."""
    (bounce,) = house.queue.bounces
    return email.message_from_bytes(bounce[1])


def report_of(house: House) -> Message:
    """Return what the only notification says of its only recipient."""
    (part,) = [part for part in bounce_of(house).walk() if part.get_content_type() == "message/delivery-status"]
    groups = part.get_payload()
    assert isinstance(groups, list)
    group = groups[1]
    assert isinstance(group, Message)
    return group


async def test_a_message_is_delivered_once_and_leaves_the_queue(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)) as delivery:
        info = house.queue.accept([A])
        await house.queue.wait_empty()
        assert [r.recipients for r in sink.received] == [[A]]
        assert house.queue.ended[info.id].recipients[0].last_reply == "250 2.0.0 Ok: queued"
        assert delivery.metrics.recipients["delivered"] == 1
        assert delivery.loaded == 0


async def test_what_was_there_before_the_start_is_delivered(house: House) -> None:
    for _ in range(1200):
        house.queue.accept([A], silent=True)
    async with Sink() as sink, house.deliver(("*", sink.url)):
        await house.queue.wait_empty()
        assert len(sink.received) == 1200
        assert sink.most_sessions <= 8


async def test_connections_are_kept_and_bounded(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url), messages_per_connection=10, connections_per_route=2):
        for _ in range(40):
            house.queue.accept([A])
        await house.queue.wait_empty()
        assert sink.most_sessions <= 2
        assert len(sink.sessions) <= 5
        assert all(session.commands.count("DATA") <= 10 for session in sink.sessions)


async def test_an_idle_connection_is_closed_with_a_goodbye(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url), idle_timeout_s=0.1) as delivery:
        house.queue.accept([A])
        await house.queue.wait_empty()
        await sink.wait(lambda: sink.open_sessions == 0)
        assert sink.sessions[0].commands[-1] == "QUIT"
        assert delivery.metrics.connections == 0
        house.queue.accept([A])
        await house.queue.wait_empty()
        assert len(sink.sessions) == 2


async def test_a_kept_connection_that_the_server_closed_costs_no_attempt(house: House) -> None:
    closed = False

    def rule(stage: str, said: str) -> str:
        nonlocal closed
        if stage == "mail" and len(sink.received) == 1 and not closed:
            closed = True
            return DISCONNECT
        return OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url)):
        house.queue.accept([A])
        await house.queue.wait_empty()
        second = house.queue.accept([A])
        await house.queue.wait_empty()
        assert house.queue.ended[second.id].recipients[0].attempts == 1
        assert len(sink.received) == 2


async def test_recipients_are_grouped_by_route(house: House) -> None:
    async with (
        Sink() as one,
        Sink(lmtp=True) as two,
        house.deliver(("one.example", one.url), (".two.example", two.url), ("*", "discard:")),
    ):
        house.queue.accept(["a@one.example", "b@x.two.example", "c@one.example", "d@nowhere.example"])
        await house.queue.wait_empty()
        assert [r.recipients for r in one.received] == [["a@one.example", "c@one.example"]]
        assert [r.recipients for r in two.received] == [["b@x.two.example"]]
        states = {r.state for info in house.queue.ended.values() for r in info.recipients}
        assert states == {RecipientState.DELIVERED}


async def test_more_than_a_hundred_recipients_go_in_several_transactions(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)):
        house.queue.accept([f"u{i}@example.org" for i in range(250)])
        await house.queue.wait_empty()
        assert [len(r.recipients) for r in sink.received] == [100, 100, 50]


async def test_recipients_that_were_too_many_follow_at_once(house: House) -> None:
    """RFC 5321 §4.5.3.1.10."""
    taken = 0

    def rule(stage: str, said: str) -> str:
        nonlocal taken
        if stage == "mail":
            taken = 0
        taken += stage == "rcpt"
        return "452 4.5.3 too many" if stage == "rcpt" and taken > 2 else OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url)):
        info = house.queue.accept([f"u{i}@example.org" for i in range(5)])
        await house.queue.wait_empty()
        assert [len(r.recipients) for r in sink.received] == [2, 2, 1]
        assert {r.attempts for r in house.queue.ended[info.id].recipients} == {1}


async def test_a_temporary_failure_is_tried_again_by_the_schedule(house: House) -> None:
    tries = 0

    def rule(stage: str, said: str) -> str:
        nonlocal tries
        tries += stage == "dot"
        return "451 4.3.0 later" if stage == "dot" and tries < 3 else OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url), retry_s=[0.1, 0.3]):
        info = house.queue.accept([A])
        await house.queue.wait_empty()
        delays = [o.results[0].delay_ms for o in house.queue.outcomes[:2]]
        assert 90 <= delays[0] <= 110
        assert 270 <= delays[1] <= 330
        assert house.queue.ended[info.id].recipients[0].attempts == 3
        assert len(sink.received) == 1


async def test_only_who_failed_is_tried_again(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)):
        sink.rule = lambda stage, said: "451 4.2.0 later" if said == "b@example.org" and not sink.received else OK
        house.queue.accept([A, "b@example.org"])
        await house.queue.wait_empty()
        assert [r.recipients for r in sink.received] == [[A], ["b@example.org"]]


async def test_a_permanent_failure_comes_back_as_a_notification(house: House) -> None:
    async with (
        Sink(lambda stage, said: "550 5.1.1 no such user" if stage == "rcpt" else OK) as sink,
        house.deliver(("*", sink.url)) as delivery,
    ):
        house.queue.accept([A])
        await house.queue.wait_empty()
        assert delivery.metrics.bounces == 1
    assert bounce_of(house)["To"] == "<sender@example.net>"
    assert report_of(house)["Final-Recipient"] == f"rfc822; {A}"
    assert report_of(house)["Status"] == "5.1.1"


async def test_a_message_from_nobody_is_never_returned(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        Sink(lambda stage, said: "550 5.1.1 no" if stage == "rcpt" else OK) as sink,
        house.deliver(("*", sink.url)) as delivery,
    ):
        house.queue.accept([A], sender="")
        await house.queue.wait_empty()
        assert delivery.metrics.dead_letters == 1
    assert not house.queue.bounces
    assert "DeadLetter" in caplog.text


async def test_a_message_expires_after_a_last_attempt(house: House) -> None:
    async with (
        Sink(lambda stage, said: "451 4.7.1 greylisted" if stage == "rcpt" else OK) as sink,
        house.deliver(("*", sink.url), retry_s=[0.1], expire_s=0.35),
    ):
        info = house.queue.accept([A])
        await house.queue.wait_empty()
        assert house.queue.ended[info.id].recipients[0].state is RecipientState.EXPIRED
        assert house.queue.ended[info.id].recipients[0].attempts >= 4
    assert report_of(house)["Status"] == "4.4.7"
    assert report_of(house)["Diagnostic-Code"] == "smtp; 451 4.7.1 greylisted"


async def test_a_domain_without_a_route_is_deferred_loudly(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async with house.deliver(("example.com", "discard:"), retry_s=[60.0]):
        info = house.queue.accept(["a@unknown.example"])
        await house.queue.wait(lambda: house.queue.infos[info.id].recipients[0].attempts == 1)
        recipient = house.queue.infos[info.id].recipients[0]
        assert (recipient.state, recipient.last_status) == (RecipientState.DEFERRED, "4.3.5")
    assert "no route for domain='unknown.example'" in caplog.text
    assert not house.queue.bounces


async def test_mail_without_routes_goes_into_a_maildir_below_the_data_directory(house: House, tmp_path: Path) -> None:
    async with house.deliver():
        house.queue.accept(["Alice@Example.org", "bob@example.org"])
        await house.queue.wait_empty()
    (alice,) = (tmp_path / "mail" / "example.org" / "alice" / "new").iterdir()
    assert alice.read_bytes() == (
        b"Return-Path: <sender@example.net>\nDelivered-To: Alice@Example.org\nSubject: hello\n\nworld\n"
    )
    assert len(list((tmp_path / "mail" / "example.org" / "bob" / "new").iterdir())) == 1


# --- Ownership


async def test_a_message_owned_elsewhere_is_not_sent(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)):
        house.queue.accept([A], owner=OTHER)
        house.queue.accept(["mine@example.org"])
        await house.queue.wait_empty()
        await asyncio.sleep(0.1)
        assert [r.recipients for r in sink.received] == [["mine@example.org"]]


async def test_a_message_taken_over_is_sent(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)):
        info = house.queue.accept([A], owner=OTHER)
        house.queue.move(info, ME)
        await house.queue.wait_empty()
        assert len(sink.received) == 1
        assert house.queue.outcomes[0].epoch == 2


async def test_a_resync_reads_everything_again(house: House) -> None:
    async with Sink() as sink, house.deliver(("*", sink.url)):
        house.queue.accept([A])
        await house.queue.wait_empty()
        infos = [house.queue.accept([A], owner=OTHER, silent=True) for _ in range(700)]
        for info in infos:
            house.queue.infos[info.id] = replace(info, owner=ME, epoch=2)
        house.queue.tell(resync=True)
        await house.queue.wait_empty()
        assert len(sink.received) == 701


@pytest.mark.parametrize("how", ["moved", "held", "deleted", "resync"])
async def test_an_attempt_stops_short_of_the_dot_when_the_message_changes_hands(house: House, how: str) -> None:
    info: MessageInfo | None = None

    def rule(stage: str, said: str) -> str:
        nonlocal info
        if stage == "data" and info is not None:
            match how:
                case "moved":
                    house.queue.move(info, OTHER)
                case "held":
                    house.queue.hold(info)
                case "deleted":
                    house.queue.delete(info)
                case "resync":
                    moved = house.queue.infos[info.id]
                    house.queue.infos[info.id] = replace(moved, owner=OTHER, epoch=2)
                    house.queue.tell(resync=True)
        return OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url)) as delivery:
        info = house.queue.accept([A])
        await sink.wait(lambda: bool(sink.sessions) and sink.sessions[0].over.is_set())
        await asyncio.sleep(0.1)
        assert not sink.received
        assert not house.queue.outcomes
        assert b"\r\n.\r\n" not in sink.sessions[0].got
        assert delivery.metrics.abandoned == 1
        assert delivery.loaded == 0
        if how == "held":
            rule_info, info = info, None
            house.queue.release(rule_info)
            await house.queue.wait_empty()
            assert len(sink.received) == 1


async def test_a_message_that_moved_while_its_dot_was_unanswered_does_not_count(house: House) -> None:
    info: MessageInfo | None = None

    def rule(stage: str, said: str) -> str:
        if stage == "dot" and info is not None:
            house.queue.move(info, OTHER)
        return OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url)) as delivery:
        info = house.queue.accept([A])
        await sink.wait_received(1)
        await asyncio.sleep(0.05)
        assert delivery.metrics.stale_reports == 1
        assert house.queue.infos[info.id].owner == OTHER
        assert delivery.loaded == 0
        back, info = info, None
        house.queue.move(back, ME)
        await house.queue.wait_empty()
        assert len(sink.received) == 2


async def test_a_report_that_did_not_count_makes_us_read_the_message_again(house: House) -> None:
    """Its epoch rose without our being told: what counts is what the queue says."""
    info: MessageInfo | None = None

    def rule(stage: str, said: str) -> str:
        nonlocal info
        if stage == "dot" and info is not None:
            moved = house.queue.infos[info.id]
            house.queue.infos[info.id] = replace(moved, epoch=2)
            info = None
        return OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url)):
        info = house.queue.accept([A])
        await house.queue.wait_empty()
        assert [o.epoch for o in house.queue.outcomes] == [1, 2]
        assert len(sink.received) == 2


async def test_nothing_is_begun_without_a_lease(house: House) -> None:
    house.node.lease = False
    async with Sink() as sink, house.deliver(("*", sink.url)) as delivery:
        house.queue.accept([A])
        await asyncio.sleep(0.2)
        assert not sink.sessions
        house.node.lease = True
        delivery.lease_changed()
        await house.queue.wait_empty()
        house.node.lease = False
        house.queue.accept([A])
        await asyncio.sleep(0.2)
        assert len(sink.received) == 1
        house.node.lease = True  # and nobody tells us
        await house.queue.wait_empty()


async def test_a_lease_lost_just_before_the_dot_keeps_the_dot(house: House) -> None:
    def rule(stage: str, said: str) -> str:
        if stage == "text" and not house.queue.outcomes and len(sink.sessions) == 1:
            house.node.lease = False
        return OK

    content = [b"Subject: x\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 20_000]
    async with Sink(rule, read_pause_s=0.1) as sink, house.deliver(("*", sink.url)):
        house.queue.accept([A], content)
        await sink.wait(lambda: bool(sink.sessions) and sink.sessions[0].over.is_set())
        assert not sink.received
        assert not house.queue.outcomes
        house.node.lease = True
        await house.queue.wait_empty()
        assert len(sink.received) == 1


async def test_a_lost_lease_stops_a_maildir_too(house: House, tmp_path: Path) -> None:
    async with house.deliver(("*", f"maildir://{tmp_path}/{{local_part}}")):
        # The first question lets it begin, the second is asked before the rename.
        house.node.on_ask = lambda count: setattr(house.node, "lease", not tmp_path.joinpath("a", "tmp").exists())
        house.queue.accept([A])
        while not tmp_path.joinpath("a", "tmp").exists():  # noqa: ASYNC110 - a file system tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert not list(tmp_path.joinpath("a", "new").iterdir())
        assert not list(tmp_path.joinpath("a", "tmp").iterdir())
        assert not house.queue.outcomes
        house.node.on_ask = lambda count: None
        house.node.lease = True
        await house.queue.wait_empty()
        assert len(list(tmp_path.joinpath("a", "new").iterdir())) == 1


async def test_few_results_are_ever_uncommitted(house: House) -> None:
    """Q5: that many messages can be sent twice when this node dies."""
    house.queue.commit_s = 0.1
    most = 0

    def took() -> int:
        return len(sink.received) - len(house.queue.ended)

    async with Sink() as sink, house.deliver(("*", sink.url)):
        for _ in range(600):
            house.queue.accept([A])
        while house.queue.infos:
            most = max(most, took())
            await asyncio.sleep(0.005)
        assert len(sink.received) == 600
        assert most <= UNREPORTED_MAX + 8


# --- Outages


async def test_a_dead_destination_is_probed_and_does_not_stall_the_others(house: House) -> None:
    port = unused_port()
    async with (
        Sink() as alive,
        house.deliver(("dead.example", f"smtp://127.0.0.1:{port}"), ("*", alive.url)) as delivery,
    ):
        for i in range(500):
            house.queue.accept([f"u{i}@dead.example"])
            house.queue.accept([f"u{i}@example.org"])
        await alive.wait_received(500)
        assert delivery.metrics.connections_failed <= 3
        async with Sink(port=port) as risen:
            await house.queue.wait_empty()
            assert len(risen.received) == 500
        assert sum(o.results[0].state is RecipientState.DEFERRED for o in house.queue.outcomes) <= 10


async def test_a_hanging_destination_does_not_stall_the_others(house: House) -> None:
    async with (
        Sink(lambda stage, said: HANG if stage == "connect" else OK) as dead,
        Sink() as alive,
        house.deliver(("dead.example", dead.url), ("*", alive.url)),
    ):
        for i in range(100):
            house.queue.accept([f"u{i}@dead.example", f"u{i}@example.org"])
        await alive.wait_received(100)
        assert dead.most_sessions == 1


async def test_mail_for_a_destination_long_dead_goes_back_to_its_schedule(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtpraft.delivery.destination.KEEP_WAITING_S", 0.1)
    monkeypatch.setattr("smtpraft.delivery.destination.PROBE_S_MIN", 0.15)
    async with house.deliver(("*", f"smtp://127.0.0.1:{unused_port()}"), retry_s=[60.0]) as delivery:
        infos = [house.queue.accept([A]) for _ in range(300)]
        await house.queue.wait(lambda: all(i.recipients[0].attempts == 1 for i in house.queue.infos.values()))
        assert delivery.metrics.connections_failed <= 3
        assert "Connection refused" in house.queue.infos[infos[-1].id].recipients[0].last_reply


async def test_a_server_that_wants_fewer_connections_gets_fewer(house: House) -> None:
    def rule(stage: str, said: str) -> str:
        return "421 4.7.0 too many connections" if stage == "connect" and sink.open_sessions > 2 else OK

    async with Sink(rule, delay_s={"dot": 0.01}) as sink, house.deliver(("*", sink.url)):
        for _ in range(100):
            house.queue.accept([A])
        await house.queue.wait_empty()
        assert len(sink.received) == 100
        assert all(o.results[0].state is RecipientState.DELIVERED for o in house.queue.outcomes)
        assert len(sink.sessions) <= 12


async def test_a_server_that_drops_every_session_is_left_alone(house: House) -> None:
    async with (
        Sink(lambda stage, said: DISCONNECT if stage == "mail" else OK) as sink,
        house.deliver(("*", sink.url), retry_s=[60.0]),
    ):
        for _ in range(200):
            house.queue.accept([A])
        await asyncio.sleep(0.5)
        assert len(sink.sessions) <= 12


async def test_a_flush_tries_at_once_what_waits_and_what_was_down(house: House) -> None:
    port = unused_port()
    async with house.deliver(("*", f"smtp://127.0.0.1:{port}"), retry_s=[3600.0]):
        info = house.queue.accept([A])
        house.queue.accept([A])
        await house.queue.wait(lambda: house.queue.infos[info.id].recipients[0].attempts == 1)
        async with Sink(port=port) as sink:
            house.queue.flush()
            await house.queue.wait_empty(timeout_s=0.9)
            assert len(sink.received) == 2


# --- Bounds


@pytest.mark.parametrize("loaded_max", [20, 100])
async def test_a_queue_larger_than_memory_is_delivered_completely(house: House, loaded_max: int) -> None:
    for i in range(1000):
        house.queue.accept([f"u{i}@example.org"], silent=i % 2 == 0)
    async with Sink() as sink, house.deliver(("*", sink.url), loaded_max=loaded_max) as delivery:
        most = 0
        for i in range(1000):
            house.queue.accept([f"v{i}@example.org"])
            most = max(most, delivery.loaded)
        await house.queue.wait_empty(timeout_s=60)
        assert len(sink.received) == 2000
        assert most <= loaded_max


async def test_deferred_mail_beyond_memory_comes_back_when_due(house: House) -> None:
    first = True

    def rule(stage: str, said: str) -> str:
        return "451 4.3.0 later" if stage == "rcpt" and first else OK

    async with Sink(rule) as sink, house.deliver(("*", sink.url), loaded_max=50, retry_s=[0.5]) as delivery:
        for i in range(300):
            house.queue.accept([f"u{i}@example.org"])
        await house.queue.wait(lambda: all(i.recipients[0].attempts for i in house.queue.infos.values()), 20)
        assert delivery.loaded <= 50
        first = False
        await house.queue.wait_empty(timeout_s=20)
        assert len(sink.received) == 300


async def test_a_crowd_for_one_destination_leaves_room_for_another(house: House) -> None:
    async with (
        Sink(lambda stage, said: HANG if stage == "mail" else OK) as slow,
        Sink() as quick,
        house.deliver(("slow.example", slow.url), ("*", quick.url), loaded_max=50),
    ):
        for i in range(500):
            house.queue.accept([f"u{i}@slow.example"])
        for i in range(500):
            house.queue.accept([f"u{i}@example.org"])
        await quick.wait_received(500)


async def test_big_messages_share_a_bounded_memory(house: House) -> None:
    body = [b"Subject: x\r\n\r\n", *[b"y" * 998 + b"\r\n"] * 24_000]
    async with Sink() as sink, house.deliver(("*", sink.url)) as delivery:
        for _ in range(6):
            house.queue.accept([A], body)
        most = 0
        while house.queue.infos:
            most = max(most, delivery.message_bytes)
            await asyncio.sleep(0.01)
        assert len(sink.received) == 6
        assert 0 < most <= 64 * 1024 * 1024
        assert delivery.message_bytes == 0
        assert sink.received[0].content == b"".join(body)


async def test_large_messages_that_hang_at_one_destination_leave_memory_for_another(house: House) -> None:
    body = [b"Subject: x\r\n\r\n", *[b"y" * 998 + b"\r\n"] * 10_000]
    async with (
        Sink(lambda stage, said: HANG if stage == "text" else OK) as stuck,
        Sink() as alive,
        house.deliver(("stuck.example", stuck.url), ("*", alive.url)) as delivery,
    ):
        for _ in range(20):
            house.queue.accept(["a@stuck.example"], body)
        await stuck.wait(lambda: sum("DATA" in session.commands for session in stuck.sessions) == 3)
        for _ in range(5):
            house.queue.accept([A], body)
            house.queue.accept([A])
        await alive.wait_received(10)
        assert delivery.message_bytes <= 64 * 1024 * 1024


# --- The end


async def test_draining_finishes_what_is_under_way_and_begins_nothing(house: House) -> None:
    async with Sink(delay_s={"dot": 0.3}) as sink, house.deliver(("*", sink.url), connections_per_route=1) as delivery:
        for _ in range(5):
            house.queue.accept([A])
        await sink.wait(lambda: bool(sink.sessions) and "DATA" in sink.sessions[0].commands)
        await delivery.drain(5.0)
        assert len(sink.received) == 1
        assert len(house.queue.ended) == 1
        await sink.wait(lambda: sink.open_sessions == 0)
        assert sink.sessions[0].commands[-1] == "QUIT"


async def test_draining_ends_in_time(house: House) -> None:
    async with (
        Sink(lambda stage, said: HANG if stage == "dot" else OK) as sink,
        house.deliver(("*", sink.url)) as delivery,
    ):
        house.queue.accept([A])
        await sink.wait(lambda: bool(sink.sessions) and "DATA" in sink.sessions[0].commands)
        async with asyncio.timeout(2):
            await delivery.drain(0.2)


# --- What the log says


@pytest.mark.parametrize(
    ("rule", "kind", "wanted"),
    [
        (lambda stage, said: OK, "Delivery", "code=250 enhanced_code=2.0.0"),
        (lambda stage, said: "451 4.3.0 no" if stage == "dot" else OK, "TransientFailure", "code=451"),
        (lambda stage, said: "550 5.7.1 no" if stage == "dot" else OK, "Bounce", "command='end of data'"),
    ],
)
async def test_each_result_is_one_line(
    house: House, caplog: pytest.LogCaptureFixture, rule: Callable[[str, str], str], kind: str, wanted: str
) -> None:
    caplog.set_level(logging.INFO, logger="smtpraft.delivery")
    async with Sink(rule) as sink, house.deliver(("*", sink.url), retry_s=[60.0]):
        info = house.queue.accept([A])
        await house.queue.wait(lambda: bool(house.queue.outcomes))
    (line,) = [
        r.getMessage() for r in caplog.records if r.name == "smtpraft.delivery.records" and "id=" in r.getMessage()
    ]
    assert line.startswith(f"{kind} id={info.id} sender='sender@example.net' recipient='{A}' queue={sink.url} ")
    assert wanted in line
    assert "num_attempts=1" in line
    assert "world" not in line
