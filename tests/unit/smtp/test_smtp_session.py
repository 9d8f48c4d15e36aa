"""One session: which command when, replies and their grouping, what is handed over, and the promise of the 250."""

from __future__ import annotations

import asyncio

import pytest

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.smtp.rules import COMMANDS_PER_TURN
from smtpraft.spool.types import Envelope

from .peer import MAIL, RCPT, Peer, codes

pytestmark = pytest.mark.usefixtures("engine")

STATES = {
    "new": b"",
    "greeted": b"EHLO x\r\n",
    "mail": b"EHLO x\r\n" + MAIL,
    "refused": b"EHLO x\r\n" + MAIL + b"RCPT TO:<>\r\n",
    "rcpt": b"EHLO x\r\n" + MAIL + RCPT,
}
# The reply to each command in each state, in the order of STATES: RFC 5321 §4.1.4, §4.3.2.
ORDER = {
    b"EHLO x": (250, 250, 250, 250, 250),
    b"HELO x": (250, 250, 250, 250, 250),
    b"EHLO": (501, 501, 501, 501, 501),
    b"MAIL FROM:<a@b>": (503, 250, 503, 503, 503),
    b"RCPT TO:<e@f>": (503, 503, 250, 250, 250),
    b"DATA": (503, 503, 503, 554, 354),
    b"DATA now": (501, 501, 501, 501, 501),
    b"RSET": (250, 250, 250, 250, 250),
    b"RSET x": (501, 501, 501, 501, 501),
    b"NOOP": (250, 250, 250, 250, 250),
    b"noop ignored words": (250, 250, 250, 250, 250),
    b"VRFY joe": (252, 252, 252, 252, 252),
    b"VRFY": (501, 501, 501, 501, 501),
    b"HELP": (214, 214, 214, 214, 214),
    b"EXPN list": (502, 502, 502, 502, 502),
    b"AUTH PLAIN AGEAYg==": (502, 502, 502, 502, 502),
    b"STARTTLS": (502, 502, 502, 502, 502),
    b"QUIT": (221, 221, 221, 221, 221),
    b"QUIT now": (501, 501, 501, 501, 501),
    b"BDAT 0 LAST": (500, 500, 500, 500, 500),
    b"": (500, 500, 500, 500, 500),
    b" NOOP": (500, 500, 500, 500, 500),
    b"NOOP\xff": (500, 500, 500, 500, 500),
    b"VRFY \xff": (501, 501, 501, 501, 501),
    b"EHLO \xc3\xbc": (501, 501, 501, 501, 501),
}


@pytest.mark.parametrize("command", ORDER)
@pytest.mark.parametrize("state", STATES)
async def test_each_command_in_each_state(state: str, command: bytes) -> None:
    peer = Peer()
    if STATES[state]:
        await peer.say(STATES[state])
    output = await peer.say(command + b"\r\n")
    assert codes(output) == [ORDER[command][list(STATES).index(state)]]
    await peer.finish()


async def test_every_reply_but_greeting_and_ehlo_has_an_enhanced_status_code() -> None:
    """RFC 2034 §3."""
    for command in ORDER:
        peer = Peer()
        output = await peer.say(command + b"\r\n")
        if not command.upper().startswith((b"EHLO X", b"HELO X")):
            assert output[4:5] == output[:1].replace(b"3", b"2")
            assert output[5:6] == b"."
        await peer.finish()


async def test_the_ehlo_reply_is_one_write() -> None:
    peer = Peer(max_message_bytes=12345)
    await peer.say(b"EHLO client\r\n")
    greeting, hello = peer.transport.writes
    assert greeting == b"220 mx.test ESMTP smtpraft\r\n"
    assert hello.split(b"\r\n") == [
        b"250-mx.test",
        b"250-PIPELINING",
        b"250-SIZE 12345",
        b"250-8BITMIME",
        b"250-SMTPUTF8",
        b"250 ENHANCEDSTATUSCODES",
        b"",
    ]
    await peer.finish()


async def test_a_pipelined_group_is_answered_in_order_in_one_write() -> None:
    """RFC 2920 §3.2."""
    peer = Peer()
    await peer.say(b"EHLO client\r\n")
    before = len(peer.transport.writes)
    await peer.say(MAIL + RCPT + b"RCPT TO:<>\r\nRCPT TO:<e@f>\r\nDATA\r\n")
    assert len(peer.transport.writes) == before + 1
    assert codes(peer.transport.writes[-1]) == [250, 250, 501, 250, 354]
    await peer.say(b"Subject: x\r\n\r\n.\r\n" + MAIL + RCPT + b"DATA\r\n")
    assert len(peer.transport.writes) == before + 2
    assert codes(peer.transport.writes[-1]) == [250, 250, 250, 354]
    assert b"250 2.0.0 Ok: queued as ID1\r\n" in peer.transport.writes[-1]
    await peer.finish()


async def test_a_group_is_answered_before_the_commit_is_waited_for() -> None:
    peer = Peer()
    await peer.say(b"EHLO client\r\n")
    peer.gate = peer.loop.create_future()
    peer.hear(MAIL + RCPT + b"DATA\r\nSubject: x\r\n\r\n.\r\nQUIT\r\n")
    await peer.wait_committing()
    assert codes(peer.transport.writes[-1]) == [250, 250, 354]
    peer.gate.set_result(None)
    await peer.settle()
    assert codes(peer.transport.writes[-1]) == [250, 221]
    await peer.finish()


async def test_half_a_command_waits_for_the_rest_but_not_the_answers_before_it() -> None:
    peer = Peer()
    assert codes(await peer.say(b"NOOP\r\nNOOP\r\nNO")) == [250, 250]
    assert codes(await peer.say(b"OP\r\n")) == [250]
    await peer.finish()


async def test_a_busy_session_does_not_read_ahead() -> None:
    peer = Peer()
    await peer.say(b"EHLO client\r\n" + MAIL + RCPT + b"DATA\r\n")
    peer.gate = peer.loop.create_future()
    peer.hear(b"Subject: x\r\n\r\n.\r\n")
    await peer.wait_committing()
    assert peer.transport.is_reading()
    peer.hear(b"NOOP\r\n")
    assert not peer.transport.is_reading()
    peer.gate.set_result(None)
    await peer.settle()
    assert codes(peer.transport.writes[-1]) == [250, 250]
    assert peer.transport.is_reading()
    await peer.finish()


async def test_a_client_that_takes_no_replies_is_not_read_from() -> None:
    peer = Peer()
    await peer.settle()
    peer.session.pause_writing()
    peer.hear(b"NOOP\r\n")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(peer.transport.writes) == 1
    peer.session.resume_writing()
    await peer.settle()
    assert codes(peer.output) == [220, 250]
    await peer.finish()


async def test_a_flood_of_commands_leaves_the_loop_to_others() -> None:
    peer = Peer()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    await peer.say(b"EHLO client\r\n" + MAIL)
    task = asyncio.create_task(other())
    before, writes = turns, len(peer.transport.writes)
    await peer.say(b"".join(b"RCPT TO:<%d@x>\r\n" % number for number in range(640)))
    assert turns - before >= 640 // COMMANDS_PER_TURN - 1  # so many gaps are between the groups
    assert len(peer.transport.writes) == writes + 1
    task.cancel()
    await peer.finish()


async def test_what_is_handed_over() -> None:
    peer = Peer()
    await peer.say(b"EHLO client.example\r\nMAIL FROM:<Ann@Example.org> BODY=8BITMIME\r\n")
    await peer.say(
        b"RCPT TO:<@relay:joe@x.y>\r\nRCPT TO:<joe@X.Y>\r\nRCPT TO:<Joe@x.y>\r\nRCPT TO:<postmaster>\r\nDATA\r\n"
    )
    await peer.say(b"Subject: x\r\n\r\n..dot\r\n.\r\n")
    envelope, content = peer.accepted[0]
    assert envelope == Envelope(
        sender="Ann@Example.org",
        recipients=("joe@x.y", "Joe@x.y", "postmaster@mx.test"),
        body_8bitmime=True,
        client_host="127.0.0.1",
        helo="client.example",
    )
    assert content == (
        b"Received: from client.example ([127.0.0.1])\r\n\tby mx.test (smtpraft) with ESMTP id t-1;\r\n"
        b"\tThu, 01 Jan 1970 00:00:00 +0000\r\nSubject: x\r\n\r\n.dot\r\n"
    )
    await peer.finish()


@pytest.mark.parametrize(
    ("hello", "parameters", "protocol"),
    [(b"HELO", b"", b"SMTP"), (b"EHLO", b"", b"ESMTP"), (b"EHLO", b" SMTPUTF8", b"UTF8SMTP")],
)
async def test_the_trace_names_the_protocol_and_the_only_recipient(
    hello: bytes, parameters: bytes, protocol: bytes
) -> None:
    """RFC 3848, RFC 6531 §4.3."""
    peer = Peer()
    await peer.say(hello + b" c\r\nMAIL FROM:<>" + parameters + b"\r\n" + RCPT + b"DATA\r\n")
    await peer.say(b"x: y\r\n\r\n.\r\n")
    envelope, content = peer.accepted[0]
    assert envelope.sender == ""
    assert b" with " + protocol + b" id t-1\r\n\tfor <c@d>; " in content
    await peer.finish()


async def test_eight_bit_content_is_noticed_without_a_declaration() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    await peer.say("Grüße\r\n.\r\n".encode())
    assert peer.accepted[0][0].body_8bitmime
    assert not peer.accepted[0][0].smtputf8
    await peer.finish()


async def test_content_that_begins_with_a_blank_is_not_folded_into_our_line() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    await peer.say(b" indented\r\n.\r\n")
    assert peer.accepted[0][1].endswith(b"+0000\r\n\r\n indented\r\n")
    await peer.finish()


async def test_utf8_addresses() -> None:
    """RFC 6531."""
    peer = Peer()
    assert codes(await peer.say("EHLO c\r\nMAIL FROM:<ü@b>\r\n".encode())) == [250, 553]
    assert codes(await peer.say("MAIL FROM:<ü@b> SMTPUTF8\r\nRCPT TO:<jürgen@münchen.example>\r\n".encode())) == [
        250,
        250,
    ]
    assert codes(await peer.say(b"DATA\r\n")) == [354]
    assert codes(await peer.say("Subject: ü\r\n\r\n.\r\n".encode())) == [250]
    envelope, content = peer.accepted[0]
    assert envelope.smtputf8
    assert envelope.recipients == ("jürgen@münchen.example",)
    assert "for <jürgen@münchen.example>;" in content.decode()
    assert codes(await peer.say(MAIL + "RCPT TO:<jürgen@x>\r\n".encode())) == [250, 553]
    await peer.finish()


# The promise.


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (NotReplicated("no leader"), b"451 4.3.0 "),
        (Stopped("bye"), b"421 4.3.2 "),
        (OutcomeUnknown("who knows"), b""),
        (RuntimeError("a bug behind the door"), b""),
    ],
)
async def test_a_failed_commit_is_answered_as_the_rfc_wants(answer: Exception, reply: bytes) -> None:
    """RFC 5321 §4.2.5: after 4yz the message must never be delivered; what is not known draws no reply at all."""
    peer = Peer()
    peer.answer = lambda: answer
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    output = await peer.say(b"x: y\r\n\r\n.\r\n")
    if reply:
        assert output.startswith(reply)
    else:
        assert output == b""
        assert peer.transport.closed
        assert peer.server.statistics.outcomes_unknown == 1
    if isinstance(answer, NotReplicated):
        peer.answer = lambda: "ID9"
        assert codes(await peer.say(MAIL + RCPT + b"DATA\r\n.\r\n")) == [250, 250, 354, 250]
    await peer.finish()


async def test_a_client_that_leaves_undoes_nothing() -> None:
    peer = Peer()
    await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    peer.gate = peer.loop.create_future()
    peer.hear(b"x: y\r\n\r\n.\r\n")
    await peer.wait_committing()
    peer.session.connection_lost(ConnectionResetError())
    await peer.wait_committing()
    assert peer.server.statistics.connections == 1  # its message is under way
    peer.gate.set_result(None)
    await peer.wait_committing()
    assert len(peer.accepted) == 1
    assert peer.server.statistics.clients_gone == 1
    assert peer.server.statistics.messages_received == 1
    assert peer.server.statistics.connections == 0
    assert peer.server.memory.used_bytes == 0


async def test_content_without_its_dot_is_never_handed_over() -> None:
    for end in ("eof", "lost"):
        peer = Peer()
        await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
        await peer.say(b"x: y\r\n\r\nnearly all\r\n.\r")
        if end == "eof":
            peer.session.eof_received()
        else:
            peer.session.connection_lost(None)
        await peer.wait_committing()
        assert not peer.accepted
        assert peer.server.memory.used_bytes == 0


async def test_a_client_that_closes_its_half_still_hears_the_answers() -> None:
    peer = Peer()
    await peer.settle()
    peer.hear(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\nx: y\r\n\r\n.\r\nNOOP\r\n")
    peer.session.eof_received()
    await peer.wait_committing()
    assert codes(peer.output) == [220, 250, 250, 250, 354, 250, 250]
    assert peer.transport.closed
    await peer.finish()


async def test_without_a_majority_mail_is_refused_at_mail_but_not_at_the_dot() -> None:
    peer = Peer(ready=False)
    output = await peer.say(b"EHLO c\r\n" + MAIL)
    assert output.endswith(b"\r\n")
    assert codes(output) == [250, 451]
    assert b"451 4.3.0 " in output
    peer.ready = True
    await peer.say(MAIL + RCPT)
    peer.ready = False
    assert codes(await peer.say(b"DATA\r\nx: y\r\n\r\n.\r\n")) == [354, 250]
    await peer.finish()


@pytest.mark.parametrize("decision", ["mail_refusal", "take_recipient", "commit"])
async def test_nothing_escapes_the_handler(decision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> str:
        raise ZeroDivisionError("a bug of ours")

    peer = Peer()
    monkeypatch.setattr(peer.server.handler, decision, broken)
    output = await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
    if decision == "commit":
        output = await peer.say(b"x: y\r\n\r\n.\r\n")
    assert b"451 4.3.0 " in output
    assert b"ZeroDivision" not in output
    monkeypatch.undo()
    output = await peer.say(b"RSET\r\n" + MAIL + RCPT + b"DATA\r\nx: y\r\n\r\n.\r\n")
    assert codes(output) == [250, 250, 250, 354, 250]
    await peer.finish()


async def test_a_bug_after_the_commit_is_no_451(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5321 §4.2.5: the message is committed and will be delivered, so no 4yz may follow."""

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    for name, told in (("smtpraft.smtp.handler.tell", [250]), ("smtpraft.smtp.statistics.Histogram.observe", [])):
        peer = Peer()
        await peer.say(b"EHLO c\r\n" + MAIL + RCPT + b"DATA\r\n")
        with monkeypatch.context() as patch:
            patch.setattr(name, broken)
            assert codes(await peer.say(b"x: y\r\n\r\n.\r\n")) == told
        assert peer.transport.closed == (not told)
        assert len(peer.accepted) == 1
        await peer.finish()


async def test_a_bug_in_a_command_is_a_451(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argument: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("smtpraft.smtp.rules.parse_mail", broken)
    peer = Peer()
    assert codes(await peer.say(b"EHLO c\r\n" + MAIL + b"NOOP\r\n")) == [250, 451, 250]
    await peer.finish()


async def test_the_session_knows_its_peer_as_aiosmtpd_s_does() -> None:
    peer = Peer(host="192.0.2.1", relay_networks=[])
    known: object = peer.session.session.peer
    assert known == ("192.0.2.1", 1025)
