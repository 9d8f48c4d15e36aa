"""Limits of a session: sizes and numbers, bad manners, time, and the end of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from smtpraft.smtp import protocol, session
from smtpraft.smtp.connection import DATA_BYTES_PER_S_MIN, DATA_GRACE_S, LINGER_S, STRESS_TIMEOUT_S
from smtpraft.smtp.rules import (
    ERRORS_MAX,
    JUNK_COMMANDS_MAX,
    OVERDUE_COMMIT_S,
    RECIPIENTS_REFUSED_MAX,
)

from .halves import plain_modules
from .peer import MAIL, RCPT, Peer, codes

pytestmark = pytest.mark.usefixtures("engine")

# Sizes and numbers.


async def test_a_declared_size_is_checked_at_mail() -> None:
    """RFC 1870 §6.1."""
    peer = Peer(max_message_bytes=1000)
    output = await peer.say(b"EHLO c\r\nMAIL FROM:<a@b> SIZE=1001\r\nMAIL FROM:<a@b> SIZE=1000\r\n")
    assert codes(output) == [250, 552, 250]
    assert b"552 5.3.4 " in output
    await peer.finish()


async def test_a_large_message_is_refused_after_its_dot_and_the_session_goes_on() -> None:
    peer = Peer(max_message_bytes=1000)
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    assert await peer.say(b"x" * 1000) == b""
    assert await peer.say(b"\r\n") == b""
    output = await peer.say(b".\r\n" + MAIL + RCPT + b"DATA\r\n")
    assert output.startswith(b"552 5.3.4 ")
    assert codes(output) == [552, 250, 250, 354]
    assert codes(await peer.say(b"small\r\n.\r\n")) == [250]
    assert len(peer.accepted) == 1
    await peer.finish()


async def test_too_many_recipients_draw_452_and_the_rest_is_delivered() -> None:
    """RFC 5321 §4.5.3.1.10; a repeated recipient takes no place."""
    peer = Peer(max_recipients=2)
    output = await peer.say(b"EHLO c\r\n" + MAIL + RCPT + RCPT + b"RCPT TO:<e@f>\r\nRCPT TO:<g@h>\r\nDATA\r\n")
    assert codes(output) == [250, 250, 250, 250, 250, 452, 354]
    assert b"452 4.5.3 " in output
    await peer.say(b"x\r\n.\r\n")
    assert peer.accepted[0][0].recipients == ("c@d", "e@f")
    await peer.finish()


async def test_a_loop_is_cut() -> None:
    """RFC 5321 §6.3."""
    peer = Peer(max_received_headers=3)
    for received, code in ((3, 250), (4, 554)):
        await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
        output = await peer.say(b"Received: x\r\n" * received + b"\r\nReceived: y\r\n.\r\n")
        assert codes(output) == [code]
    assert output.startswith(b"554 5.4.6 ")
    assert len(peer.accepted) == 1
    await peer.finish()


async def test_a_stranger_may_only_send_here() -> None:
    peer = Peer(host="192.0.2.9", local_domains=["Local.example"])
    output = await peer.say(
        b"EHLO c\r\n" + MAIL + b"RCPT TO:<a@else.where>\r\nRCPT TO:<a@local.EXAMPLE>\r\nRCPT TO:<a@mx.test>\r\n"
        b"RCPT TO:<Postmaster>\r\nRCPT TO:<a@sub.local.example>\r\nRCPT TO:<@local.example:a@else.where>\r\n"
        b"RCPT TO:<a%else.where@mx.test>\r\nRCPT TO:<a@[192.0.2.1]>\r\n"
    )
    assert codes(output) == [250, 250, 550, 250, 250, 250, 550, 550, 250, 550]
    assert output.count(b"550 5.7.1 ") == 4
    await peer.finish()


async def test_memory_for_content_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session, protocol, plain_modules()["protocol"]):
        monkeypatch.setattr(module, "MEMORY_WAIT_S", 0.01)
    peer = Peer(max_inflight_bytes=100_000, max_message_bytes=90_000)
    budget = peer.server.memory
    assert budget.try_reserve(60_000)  # other sessions
    assert codes(await peer.say(b"EHLO c\r\n" + MAIL + RCPT)) == [250, 250, 250]
    peer.hear(b"DATA\r\n")
    await peer.until(lambda: peer.transport.writes[-1].startswith(b"452 4.3.1 "))
    budget.release(30_000)
    assert codes(await peer.say(b"DATA\r\n")) == [354]  # the transaction is as it was
    peer.hear(b"x" * 85_000)  # begun, and there is no more
    await peer.until(lambda: budget.used_bytes == 30_000)
    assert (await peer.say(b"\r\n.\r\n")).startswith(b"452 4.3.1 ")
    budget.release(30_000)
    assert codes(await peer.say(MAIL + RCPT + b"DATA\r\n")) == [250, 250, 354]
    assert codes(await peer.say(b"x" * 85_000 + b"\r\n.\r\n")) == [250]
    await peer.finish()


async def test_a_session_without_memory_waits_and_does_not_read() -> None:
    peer = Peer(max_inflight_bytes=100_000, max_message_bytes=90_000)
    assert peer.server.memory.try_reserve(60_000)
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT)
    peer.hear(b"DATA\r\n")
    await peer.wait_committing()
    assert codes(peer.output) == [220, 250, 250, 250]
    peer.hear(b"early content\r\n.\r\n")
    assert not peer.transport.is_reading()
    peer.server.memory.release(60_000)
    await peer.settle()
    assert codes(peer.output)[-2:] == [354, 250]
    assert peer.transport.is_reading()
    await peer.finish()


# Bad manners.


async def test_errors_are_counted_and_end_the_session() -> None:
    peer = Peer()
    output = await peer.say(b"FOO\r\n" * (ERRORS_MAX + 5))
    assert codes(output) == [500] * (ERRORS_MAX + 1) + [421]
    assert peer.transport.half_closed
    await peer.finish()


async def test_accepted_mail_wipes_the_slate() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n")
    for _ in range(3):
        await peer.say(b"FOO\r\n" * (ERRORS_MAX - 1) + b"NOOP\r\n" * (JUNK_COMMANDS_MAX - 1))
        assert codes(await peer.say(MAIL + RCPT + b"DATA\r\n.\r\n"))[-1] == 250
    await peer.finish()


async def test_chatter_without_mail_ends_the_session() -> None:
    peer = Peer()
    assert codes(await peer.say(b"NOOP\r\n" * (JUNK_COMMANDS_MAX + 5)))[-2:] == [250, 421]
    await peer.finish()


async def test_refused_mail_without_end_ends_the_session() -> None:
    peer = Peer(ready=False)
    await peer.say(b"EHLO c\r\n")
    assert codes(await peer.say(MAIL * (JUNK_COMMANDS_MAX + 5)))[-2:] == [451, 421]
    await peer.finish()


async def test_a_full_disk_is_452_before_and_after_the_content() -> None:
    """RFC 5321 §4.2.3: insufficient system storage; the client keeps the message and tries again."""
    peer = Peer()
    peer.full = True
    await peer.say(b"EHLO c\r\n")
    assert await peer.say(MAIL) == b"452 4.3.1 Error: insufficient system storage, try again later\r\n"
    peer.full = False
    assert codes(await peer.say(MAIL + RCPT + b"DATA\r\n")) == [250, 250, 354]
    peer.full = True
    assert codes(await peer.say(b"Subject: x\r\n\r\nx\r\n.\r\n")) == [452]
    assert peer.accepted == []
    await peer.finish()


async def test_guessing_recipients_ends_the_session() -> None:
    peer = Peer(host="192.0.2.9")
    await peer.say(b"EHLO c\r\n" + MAIL)
    output = codes(await peer.say(b"RCPT TO:<a@else.where>\r\n" * (RECIPIENTS_REFUSED_MAX + 10)))
    assert output == [550] * (RECIPIENTS_REFUSED_MAX + 1) + [421]
    await peer.finish()


async def test_a_web_client_is_sent_away_before_it_can_send_mail() -> None:
    peer = Peer()
    request = b"POST / HTTP/1.1\r\nHost: mx\r\n\r\nEHLO x\r\n" + MAIL + RCPT + b"DATA\r\nspam\r\n.\r\n"
    assert codes(await peer.say(request)) == [521]
    assert not peer.accepted
    await peer.finish()


async def test_long_commands() -> None:
    """RFC 5321 §4.5.3.1.4 and §4.1.1.11: parameters may make MAIL and RCPT longer than 512 octets."""
    peer = Peer()
    assert codes(await peer.say(b"NOOP " + b"x" * 505 + b"\r\n")) == [250]
    assert codes(await peer.say(b"NOOP " + b"x" * 506 + b"\r\n")) == [500]
    assert codes(await peer.say(b"EHLO c\r\nMAIL FROM:<" + b"x" * 2100 + b"@y>\r\nNOOP\r\n")) == [250, 500, 250]
    long_route = b"MAIL FROM:<" + b",".join([b"@relay%d.example" % number for number in range(60)]) + b":a@b>\r\n"
    assert 512 < len(long_route) < 2048
    assert codes(await peer.say(long_route)) == [250]
    await peer.finish()


@pytest.mark.parametrize("bad", [b"NOOP\n", b"NOOP\rNOOP\r\n", b"NO\0OP\r\n"])
async def test_a_bare_octet_in_a_command_is_refused(bad: bytes) -> None:
    peer = Peer()
    output = await peer.say(bad)
    assert output.startswith(b"500 5.5.2 ")
    assert len(codes(output)) == 1
    await peer.finish()


async def test_a_bare_octet_in_content_ends_the_session() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    assert (await peer.say(b"Subject: x\n.\nNOOP\r\n.\r\n")).startswith(b"521 5.5.2 ")
    assert peer.transport.half_closed
    assert not peer.transport.closed  # else the reply could be lost on the way
    peer.hear(b"MAIL FROM:<smuggled@x>\r\n")
    peer.session.check_time(peer.loop.time() + LINGER_S + 1, False)
    assert peer.transport.aborted
    assert not peer.accepted
    await peer.finish()


# Time. The server looks at every session now and then; here we do.


async def test_a_silent_client_is_told_and_left() -> None:
    peer = Peer(command_timeout_s=300.0)
    await peer.say(b"EHLO c\r\n")
    now = peer.loop.time()
    peer.session.check_time(now + 299, False)
    await peer.settle()
    assert not peer.transport.half_closed
    peer.session.check_time(now + 301, False)
    await peer.wait_committing()
    assert peer.transport.writes[-1].startswith(b"421 4.4.2 ")
    assert peer.server.statistics.timeouts == 1
    await peer.finish()


async def test_silence_is_shorter_when_places_run_out() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n")
    peer.session.check_time(peer.loop.time() + STRESS_TIMEOUT_S + 1, True)
    await peer.wait_committing()
    assert peer.transport.writes[-1].startswith(b"421 4.4.2 ")
    await peer.finish()


async def test_a_command_that_comes_letter_by_letter_gains_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    peer = Peer(command_timeout_s=300.0)
    monkeypatch.setattr(peer.session, "loop", ClockLoop(peer.loop, lambda: now))
    await peer.say(b"EHLO c\r\n")
    for _ in range(4):
        now += 100
        peer.session.check_time(now, False)
        peer.hear(b"N")
        await peer.wait_committing()
    assert peer.transport.writes[-1].startswith(b"421 4.4.2 ")


class ClockLoop:
    """The loop, with another clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, time: Callable[[], float]) -> None:
        self._loop = loop
        self.time = time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


async def test_a_slow_but_steady_message_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5321 §4.5.3.2.5: the timer is for one block. aiosmtpd's one is for all of DATA."""
    now = 1000.0
    peer = Peer(data_timeout_s=180.0)
    monkeypatch.setattr(peer.session, "loop", ClockLoop(peer.loop, lambda: now))
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    for _ in range(100):
        now += 170
        peer.session.check_time(now, True)
        await peer.say(b"x" * 20_000 + b"\r\n")
    assert codes(await peer.say(b".\r\n")) == [250]
    await peer.finish()


async def test_a_message_that_stalls_or_drips_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for drips in (False, True):
        now = 1000.0
        peer = Peer(data_timeout_s=180.0)
        monkeypatch.setattr(peer.session, "loop", ClockLoop(peer.loop, lambda: now))  # noqa: B023 -- read at once
        await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\nxx")
        if drips:
            for _ in range(int(DATA_GRACE_S) // 100):
                now += 100
                peer.session.check_time(now, False)
                assert await peer.say(b"x" * (DATA_BYTES_PER_S_MIN // 10)) == b""
        now += 181 - 80 * drips
        peer.session.check_time(now, False)
        await peer.wait_committing()
        assert peer.transport.writes[-1].startswith(b"421 4.4.2 ")
        await peer.finish()


async def test_the_commit_has_its_own_time_and_the_clients_are_not_counted() -> None:
    peer = Peer(command_timeout_s=1.0, data_timeout_s=1.0, commit_timeout_s=10.0)
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    peer.gate = peer.loop.create_future()
    peer.hear(b"x: y\r\n\r\n.\r\n")
    await peer.wait_committing()
    peer.session.check_time(peer.loop.time() + 10 + OVERDUE_COMMIT_S - 1, True)
    assert not peer.transport.closed
    peer.session.check_time(peer.loop.time() + 10 + OVERDUE_COMMIT_S + 1, False)
    assert peer.transport.aborted  # the client will repeat it
    peer.session.connection_lost(None)
    peer.gate.set_result(None)
    await peer.wait_committing()
    assert len(peer.accepted) == 1
    assert peer.server.statistics.connections == 0


async def test_draining_ends_idle_sessions_and_finishes_messages() -> None:
    idle = Peer()
    await idle.say(b"EHLO c\r\n" + MAIL)
    await idle.server.drain(0.0)
    await idle.wait_committing()
    assert idle.transport.writes[-1].startswith(b"421 4.3.2 ")
    await idle.finish()

    busy = Peer()
    await busy.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\nx: y\r\n")
    await busy.server.drain(0.0)
    assert codes(await busy.say(b"more\r\n")) == []
    assert codes(await busy.say(b".\r\n" + MAIL)) == [250, 421]
    assert len(busy.accepted) == 1
    await busy.finish()
