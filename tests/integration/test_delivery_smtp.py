"""The SMTP and LMTP client against sinks: what each answer, and each silence, means to each recipient."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from smtpraft.cluster import direct
from smtpraft.delivery.attempt import Abandoned, Answer, DestinationFailed, Transaction, Verdict
from smtpraft.delivery.routes import parse_destination
from smtpraft.delivery.smtp_client import SmtpConnection, Timeouts
from tests.integration.sinks import DISCONNECT, EXTENSIONS, HANG, OK, Rule, Sink

CONTENT = b"Subject: hello\r\n\r\n.a line with a dot\r\n..two\r\nend\r\n"
TIMEOUTS = Timeouts(connect_s=5.0, command_s=5.0)
IMPATIENT = Timeouts(connect_s=5.0, command_s=1.0)  # for a sink that hangs; what it says before must arrive in time
WITHOUT_PIPELINING = tuple(name for name in EXTENSIONS if name != "PIPELINING")


@pytest.fixture(params=["pipelining", "stepwise"])
def extensions(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return EXTENSIONS if request.param == "pipelining" else WITHOUT_PIPELINING


def transaction(
    recipients: Sequence[str] = ("a@example.org",),
    content: Sequence[bytes] = (CONTENT,),
    *,
    sender: str = "sender@example.net",
    smtputf8: bool = False,
    may_send: Callable[[], bool] = lambda: True,
) -> Transaction:
    return Transaction("00000000000A", sender, recipients, content, smtputf8, may_send)


def when(stage: str, reply: str, said: str | None = None) -> Rule:
    """A rule that answers `reply` at one stage, to one thing said there if given."""
    return lambda at, what: reply if at == stage and said in (None, what) else OK


async def send(sink: Sink, what: Transaction, timeouts: Timeouts = TIMEOUTS) -> list[Answer]:
    connection = await SmtpConnection.open(parse_destination(sink.url), hostname="mx.example.org", timeouts=timeouts)
    try:
        return await connection.send(what)
    finally:
        connection.quit()


async def test_a_message_arrives_byte_for_byte(extensions: tuple[str, ...]) -> None:
    async with Sink(extensions=extensions) as sink:
        (answer,) = await send(sink, transaction())
        assert answer.verdict is Verdict.DELIVERED
        assert (answer.code, answer.status, answer.text) == (250, "2.0.0", "2.0.0 Ok: queued")
        (received,) = sink.received
        assert received.content == CONTENT
        assert (received.sender, received.recipients) == ("sender@example.net", ["a@example.org"])
        assert received.mail_parameters == f"SIZE={len(CONTENT)}"
        assert sink.sessions[0].commands[0] == "EHLO mx.example.org"


async def test_a_message_without_a_final_line_end_gets_one() -> None:
    async with Sink() as sink:
        await send(sink, transaction(content=(b"Subject: x\r\n\r\nno end",)))
        assert sink.received[0].content == b"Subject: x\r\n\r\nno end\r\n"


async def test_the_null_sender_is_written_as_such() -> None:
    async with Sink() as sink:
        await send(sink, transaction(sender=""))
        assert any(command.startswith("MAIL FROM:<> ") for command in sink.sessions[0].commands)


@pytest.mark.parametrize(
    ("stage", "reply", "verdict", "status"),
    [
        ("mail", "451 4.3.0 later", Verdict.DEFERRED, "4.3.0"),
        ("mail", "550 no", Verdict.FAILED, "5.0.0"),
        ("mail", "421 4.3.2 closing", Verdict.DEFERRED, "4.3.2"),
        ("mail", DISCONNECT, Verdict.DEFERRED, "4.4.2"),
        ("mail", HANG, Verdict.DEFERRED, "4.4.2"),
        ("mail", "nonsense", Verdict.DEFERRED, "4.4.2"),
        ("mail", "354 what", Verdict.DEFERRED, "4.5.0"),
        ("rcpt", "450 4.2.1 later", Verdict.DEFERRED, "4.2.1"),
        ("rcpt", "550 5.1.1 nobody", Verdict.FAILED, "5.1.1"),
        ("rcpt", "452 4.5.3 too many", Verdict.DEFERRED, "4.5.3"),
        ("rcpt", DISCONNECT, Verdict.DEFERRED, "4.4.2"),
        ("rcpt", HANG, Verdict.DEFERRED, "4.4.2"),
        ("data", "451 4.3.0 later", Verdict.DEFERRED, "4.3.0"),
        ("data", "554 5.7.1 no", Verdict.FAILED, "5.7.1"),
        ("data", "250 2.0.0 what", Verdict.DEFERRED, "4.5.0"),
        ("data", DISCONNECT, Verdict.DEFERRED, "4.4.2"),
        ("data", HANG, Verdict.DEFERRED, "4.4.2"),
        ("text", DISCONNECT, Verdict.DEFERRED, "4.4.2"),
        ("dot", "451 4.3.0 later", Verdict.DEFERRED, "4.3.0"),
        ("dot", "554 5.7.1 spam", Verdict.FAILED, "5.7.1"),
        ("dot", "554 4.7.1 a class that does not match", Verdict.FAILED, "5.0.0"),
        ("dot", "421 4.3.2 closing", Verdict.DEFERRED, "4.3.2"),
        ("dot", DISCONNECT, Verdict.DEFERRED, "4.4.2"),
        ("dot", HANG, Verdict.DEFERRED, "4.4.2"),
        ("dot", "999 what", Verdict.DEFERRED, "4.4.2"),
    ],
)
async def test_what_each_answer_means(
    extensions: tuple[str, ...], stage: str, reply: str, verdict: Verdict, status: str
) -> None:
    async with Sink(when(stage, reply), extensions=extensions) as sink:
        (answer,) = await send(sink, transaction(), IMPATIENT if reply is HANG else TIMEOUTS)
        assert (answer.verdict, answer.status) == (verdict, status)
        assert not sink.received


async def test_a_reply_that_comes_before_the_whole_message_is_the_answer() -> None:
    """A server may refuse in the middle of the text and close."""
    async with Sink(lambda stage, said: "552 5.3.4 too big" if stage == "text" else OK) as sink:
        big = [b"Subject: x\r\n\r\n", *[b"x" * 70 + b"\r\n"] * 200_000]
        (answer,) = await send(sink, transaction(content=big))
        assert (answer.verdict, answer.status, answer.command) == (Verdict.FAILED, "5.3.4", "DATA")
        await sink.sessions[0].over.wait()
        assert not sink.received


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (when("connect", "554 5.7.1 go away"), "refused to talk to us: 554"),
        (when("connect", "421 4.3.2 busy"), "refused to talk to us: 421"),
        (when("connect", HANG), "timed out while waiting for the answer to connect"),
        (when("connect", DISCONNECT), "lost connection while waiting for the answer to connect"),
        (when("connect", "SSH-2.0-OpenSSH"), "protocol error"),
        (when("connect", "x" * 5000), "protocol error"),
        (when("hello", "450 4.3.2 later"), "refused to talk to us: 450"),
        (when("hello", DISCONNECT), "lost connection while waiting for the answer to EHLO"),
        (when("hello", HANG), "timed out while waiting for the answer to EHLO"),
    ],
)
async def test_a_session_that_cannot_be_had_says_nothing_of_the_message(rule: Rule, text: str) -> None:
    async with Sink(rule) as sink:
        with pytest.raises(DestinationFailed) as failure:
            await send(sink, transaction(), IMPATIENT if "timed out" in text else TIMEOUTS)
        assert failure.value.answer.verdict is Verdict.DEFERRED
        assert text in failure.value.answer.text


async def test_a_refused_connection_is_a_failure_of_the_destination() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(DestinationFailed, match=r"connect to 127\.0\.0\.1: Connection refused"):
            await SmtpConnection.open(
                parse_destination(f"smtp://127.0.0.1:{unused.getsockname()[1]}"), hostname="x", timeouts=TIMEOUTS
            )


async def test_a_name_without_an_address_is_a_failure_of_the_destination() -> None:
    with pytest.raises(DestinationFailed, match="cannot find the address of nowhere") as failure:
        await SmtpConnection.open(parse_destination("smtp://nowhere.invalid:25"), hostname="x", timeouts=TIMEOUTS)
    assert failure.value.answer.status == "4.4.3"


async def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 5321 §5.1."""
    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def two(host: str, port: int, **kinds: Any) -> Any:
        found = await real("127.0.0.1", port, **kinds)
        return [(*found[0][:4], ("127.0.0.77", port)), *found]

    async with Sink() as sink:
        monkeypatch.setattr(loop, "getaddrinfo", two)
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        assert connection.peer == f"127.0.0.1:{sink.port}"
        connection.quit()


async def test_a_server_without_extensions_is_greeted_with_helo() -> None:
    """RFC 5321 §3.2."""
    async with Sink(when("hello", "502 5.5.1 what?")) as sink:
        (answer,) = await send(sink, transaction())
        assert answer.verdict is Verdict.DELIVERED
        assert sink.sessions[0].commands[:3] == [
            "EHLO mx.example.org",
            "HELO mx.example.org",
            "MAIL FROM:<sender@example.net>",
        ]


async def test_each_recipient_has_its_own_answer(extensions: tuple[str, ...]) -> None:
    def rule(stage: str, said: str) -> str:
        return {"b@example.org": "550 5.1.1 nobody", "c@example.org": "451 4.2.0 later"}.get(said, OK)

    async with Sink(rule, extensions=extensions) as sink:
        answers = await send(sink, transaction([f"{name}@example.org" for name in "abcd"]))
        assert [answer.verdict for answer in answers] == [
            Verdict.DELIVERED,
            Verdict.FAILED,
            Verdict.DEFERRED,
            Verdict.DELIVERED,
        ]
        assert sink.received[0].recipients == ["a@example.org", "d@example.org"]


async def test_too_many_recipients_go_into_another_transaction(extensions: tuple[str, ...]) -> None:
    """RFC 5321 §4.5.3.1.10."""
    count = 0

    def rule(stage: str, said: str) -> str:
        nonlocal count
        count += stage == "rcpt"
        return "452 4.5.3 too many" if stage == "rcpt" and count > 2 else OK

    async with Sink(rule, extensions=extensions) as sink:
        answers = await send(sink, transaction([f"{name}@example.org" for name in "abc"]))
        assert [answer.verdict for answer in answers] == [Verdict.DELIVERED, Verdict.DELIVERED, Verdict.NOT_NOW]


async def test_a_connection_is_used_again_after_every_kind_of_refusal(extensions: tuple[str, ...]) -> None:
    refusals = [("rcpt", "550 no"), ("data", "451 no"), ("dot", "451 no"), ("mail", "550 no"), ("", "")]
    async with Sink(extensions=extensions) as sink:
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        for stage, reply in refusals:
            sink.rule = when(stage, reply)
            assert connection.usable
            (answer,) = await connection.send(transaction())
        assert answer.verdict is Verdict.DELIVERED
        assert len(sink.received) == 1
        assert len(sink.sessions) == 1
        connection.quit()
        await sink.sessions[0].over.wait()
        assert sink.sessions[0].commands[-1] == "QUIT"


async def test_a_lone_dot_answers_a_354_that_nobody_is_left_for() -> None:
    """RFC 2920 §3.1: the client that pipelined DATA must then send a dot, and no message."""
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        got.extend(await reader.readuntil(b"\n"))
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        got.extend(await reader.readuntil(b"DATA\r\n"))
        writer.write(b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n")
        got.extend(await reader.readuntil(b"\r\n"))
        writer.write(b"554 5.5.1 nobody\r\n")
        got.extend(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    connection = await SmtpConnection.open(
        parse_destination(f"smtp://127.0.0.1:{port}"), hostname="x", timeouts=TIMEOUTS
    )
    (answer,) = await connection.send(transaction())
    assert (answer.verdict, answer.status) == (Verdict.FAILED, "5.1.1")
    assert connection.usable
    connection.quit()
    server.close()
    await asyncio.sleep(0.05)
    assert bytes(got).endswith(b"DATA\r\n.\r\nQUIT\r\n")


@pytest.mark.parametrize("path", [False, True])
async def test_lmtp_answers_for_each_recipient_after_the_dot(path: bool, tmp_path: Path) -> None:
    """RFC 2033 §4.2."""

    def rule(stage: str, said: str) -> str:
        table = {"b@example.org": "452 4.2.2 full", "c@example.org": "550 5.2.1 gone"}
        return table.get(said, OK) if stage == "dot" else OK

    async with Sink(rule, lmtp=True, path=str(tmp_path / "lmtp") if path else "") as sink:
        answers = await send(sink, transaction([f"{name}@example.org" for name in "abcd"]))
        assert [(answer.verdict, answer.status) for answer in answers] == [
            (Verdict.DELIVERED, "2.0.0"),
            (Verdict.DEFERRED, "4.2.2"),
            (Verdict.FAILED, "5.2.1"),
            (Verdict.DELIVERED, "2.0.0"),
        ]
        assert sink.sessions[0].commands[0] == "LHLO mx.example.org"


async def test_lmtp_answers_that_came_before_the_connection_was_lost_count() -> None:
    def rule(stage: str, said: str) -> str:
        return DISCONNECT if (stage, said) == ("dot", "b@example.org") else OK

    async with Sink(rule, lmtp=True) as sink:
        answers = await send(sink, transaction(["a@example.org", "x@example.org", "b@example.org", "c@example.org"]))
        assert [answer.verdict for answer in answers] == [
            Verdict.DELIVERED,
            Verdict.DELIVERED,
            Verdict.DEFERRED,
            Verdict.DEFERRED,
        ]


@pytest.mark.parametrize("sort", ["small", "big", "slow"])
async def test_the_dot_is_never_sent_once_the_right_to_send_is_gone(extensions: tuple[str, ...], sort: str) -> None:
    """Fail the first question, then the second, until the message goes through: before that, no dot."""
    big = [b"Subject: x\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 3000]
    content = {"small": [CONTENT], "big": big, "slow": [b"".join(big[:40])]}[sort]
    slowly: dict[str, Any] = {"read_pause_s": 0.02, "receive_bytes": 2048} if sort == "slow" else {}
    for allowed in range(200):
        left = allowed

        def may_send() -> bool:
            nonlocal left
            left -= 1
            return left >= 0

        async with Sink(extensions=extensions, **slowly) as sink:
            connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
            if sort == "slow":  # the kernel takes a part of the only piece
                shrink(connection)
            try:
                answers = await connection.send(transaction(content=content, may_send=may_send))
            except Abandoned:
                await sink.sessions[0].over.wait()
                assert not sink.received
                assert not connection.transmitted
                assert b"\r\n.\r\n" not in sink.sessions[0].got
                continue
            assert answers[0].verdict is Verdict.DELIVERED
            assert sink.received[0].content == b"".join(content)
            connection.quit()
            assert allowed >= (4 if sort == "slow" else 3)
            return
    pytest.fail("never went through")


def shrink(connection: SmtpConnection) -> asyncio.Transport:
    """Leave the kernel little room for what `connection` writes."""
    transport = connection._transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return transport


async def test_a_message_leaves_in_one_write_with_its_dot() -> None:
    """A segment less for each message, and a wake-up of the server less."""
    read: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        await reader.readuntil(b"\n")
        writer.write(b"250-x\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        read.append(await reader.read(100_000))
        writer.write(b"250 2.0.0 ok\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    destination = parse_destination(f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    connection = await SmtpConnection.open(destination, hostname="x", timeouts=TIMEOUTS)
    (answer,) = await connection.send(transaction(content=[b"Subject: x\r\n\r\none line\r\n"]))
    assert answer.verdict is Verdict.DELIVERED
    connection.quit()
    server.close()
    assert read == [b"Subject: x\r\n\r\none line\r\n.\r\n"]


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize("allowed", [True, False])
async def test_no_byte_of_the_dot_waits_in_this_process(
    taken: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is full when all but `3 - taken` bytes of the dot have left: they wait, and ask again."""
    text = b"Subject: x\r\n\r\nline\r\n"
    calls: list[bytes] = []

    def write_now(transport: asyncio.Transport, fd: int, data: bytes) -> int:
        calls.append(data)
        assert transport.get_write_buffer_size() == 0
        if len(calls) == 1:
            return os.write(fd, data[: len(text) + taken])
        return 0 if len(calls) < 4 else os.write(fd, data)

    monkeypatch.setattr(direct, "write_now", write_now)
    async with Sink() as sink:
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        sending = connection.send(transaction(content=[text], may_send=lambda: allowed or len(calls) < 3))
        if not allowed and taken < 3:
            with pytest.raises(Abandoned):
                await sending
            await sink.sessions[0].over.wait()
            assert not connection.transmitted
            assert not sink.received
            assert len(calls) == 3
            return
        (answer,) = await sending
        assert answer.verdict is Verdict.DELIVERED
        assert connection.transmitted
        assert sink.received[0].content == text
        assert len(calls) == (1 if taken == 3 else 4)
        connection.quit()


async def test_room_for_the_dot_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"Subject: x\r\n\r\nline\r\n"

    def write_now(transport: asyncio.Transport, fd: int, data: bytes) -> int:
        return os.write(fd, text) if len(data) > len(text) else 0

    monkeypatch.setattr(direct, "write_now", write_now)
    async with Sink() as sink:
        (answer,) = await send(sink, transaction(content=[text]), IMPATIENT)
        assert (answer.verdict, answer.status) == (Verdict.DEFERRED, "4.4.2")
        assert "timed out while sending the message" in answer.text
        await sink.sessions[0].over.wait()
        assert not sink.received


async def test_a_pause_while_the_body_is_written_stops_the_dot() -> None:
    """The server reads slowly, so most of the text waits in this process when the lease goes."""
    content = [b"Subject: x\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 20_000]
    allowed = True
    async with Sink(read_pause_s=0.3) as sink:
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        sending = asyncio.create_task(connection.send(transaction(content=content, may_send=lambda: allowed)))
        await sink.wait(lambda: "DATA" in sink.sessions[0].commands)
        allowed = False
        with pytest.raises(Abandoned):
            await sending
        await sink.sessions[0].over.wait()
        assert not sink.received


async def test_the_last_question_is_asked_when_nothing_waits_in_this_process() -> None:
    """Else a pause between the question and the write of what waits would send the dot without asking."""
    content = [b"Subject: x\r\n\r\n", *[b"x" * 998 + b"\r\n"] * 40]
    waiting: list[int] = []
    async with Sink(read_pause_s=0.2, receive_bytes=2048) as sink:
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        transport = shrink(connection)

        def may_send() -> bool:
            waiting.append(transport.get_write_buffer_size())
            return True

        (answer,) = await connection.send(transaction(content=content, may_send=may_send))
        assert answer.verdict is Verdict.DELIVERED
        assert waiting[-1] == 0
        connection.quit()


async def test_what_is_written_is_in_the_kernel_before_the_loop_turns() -> None:
    """The dot follows the question at once: no loop may keep it for its next turn. This is what we rely on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: SmtpConnection(lmtp=False, timeouts=TIMEOUTS), *listener.getsockname()
        )
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(5)
            connection._write(b".\r\n")
            assert peer.recv(10) == b".\r\n"  # blocks the loop
        connection.abort()
        await asyncio.sleep(0)


async def test_a_big_message_to_a_slow_reader_arrives() -> None:
    lines = [b"%07d " % i + b"y" * 60 + b"\r\n" for i in range(150_000)]
    body = b"Subject: x\r\n\r\n" + b".stuffed\r\n" + b"".join(lines)
    blocks = [body[start : start + 983_040] for start in range(0, len(body), 983_040)]
    async with Sink(read_pause_s=0.2) as sink:
        (answer,) = await send(sink, transaction(content=blocks))
        assert answer.verdict is Verdict.DELIVERED
        assert sink.received[0].content == body
        assert sink.received[0].mail_parameters == f"SIZE={len(body)}"


async def test_a_message_larger_than_the_server_takes_is_not_offered() -> None:
    """RFC 1870 §6.1."""
    async with Sink(extensions=("SIZE 10",)) as sink:
        (answer,) = await send(sink, transaction())
        assert (answer.verdict, answer.status) == (Verdict.FAILED, "5.3.4")
        assert not any(command.startswith("MAIL") for command in sink.sessions[0].commands)


async def test_eight_bit_text_needs_8bitmime() -> None:
    """RFC 6152 §3."""
    content = ("Subject: x\r\n\r\nGrüße\r\n".encode(),)
    async with Sink() as sink:
        await send(sink, transaction(content=content))
        assert "BODY=8BITMIME" in sink.received[0].mail_parameters
        assert "SMTPUTF8" not in sink.received[0].mail_parameters
    async with Sink(extensions=("PIPELINING",)) as sink:
        (answer,) = await send(sink, transaction(content=content))
        assert (answer.verdict, answer.status) == (Verdict.FAILED, "5.6.3")


async def test_utf8_addresses_need_smtputf8() -> None:
    """RFC 6531 §3.2; a domain alone goes as A-labels instead."""
    recipients = ["jürgen@example.org", "a@bücher.example", "plain@example.org"]
    async with Sink() as sink:
        answers = await send(sink, transaction(recipients, smtputf8=True))
        assert {answer.verdict for answer in answers} == {Verdict.DELIVERED}
        assert sink.received[0].recipients == recipients
        assert "SMTPUTF8" in sink.received[0].mail_parameters
    async with Sink(extensions=("PIPELINING", "8BITMIME")) as sink:
        answers = await send(sink, transaction(recipients, smtputf8=True))
        assert [(answer.verdict, answer.status) for answer in answers] == [
            (Verdict.FAILED, "5.6.7"),
            (Verdict.DELIVERED, "2.0.0"),
            (Verdict.DELIVERED, "2.0.0"),
        ]
        assert sink.received[0].recipients == ["a@xn--bcher-kva.example", "plain@example.org"]


async def test_utf8_headers_need_smtputf8() -> None:
    content = ("Subject: Grüße\r\n\r\nx\r\n".encode(),)
    async with Sink(extensions=("8BITMIME",)) as sink:
        (answer,) = await send(sink, transaction(content=content, smtputf8=True))
        assert (answer.verdict, answer.status) == (Verdict.FAILED, "5.6.7")


@pytest.mark.parametrize(
    "address",
    [
        "a@example.org>\r\nRCPT TO:<victim@example.org",
        "a@example.org\r\nDATA",
        "a\nb@example.org",
        "a\x00b@example.org",
        "a@example.org> SIZE=1",
        "a b@example.org",
        "a@exa mple.org",
        '"a\r\nb"@example.org',
        '"unclosed@example.org',
        "a\u2028b@example.org",
        "a\x85b@example.org",
        "a\udcffb@example.org",
        "<a@example.org>",
    ],
)
async def test_an_address_is_nothing_but_an_address_on_the_wire(address: str) -> None:
    """GHSA-v3q9-hj7j-63hq in another client: CRLF in an address was a command."""
    async with Sink() as sink:
        answers = await send(sink, transaction([address, "good@example.org"], smtputf8=True))
        assert [(answer.verdict, answer.status) for answer in answers] == [
            (Verdict.FAILED, "5.1.3"),
            (Verdict.DELIVERED, "2.0.0"),
        ]
        commands = [c for c in sink.sessions[0].commands if c.startswith(("MAIL", "RCPT", "DATA"))]
        assert commands == [commands[0], "RCPT TO:<good@example.org>", "DATA"]
    async with Sink() as sink:
        (answer,) = await send(sink, transaction(sender=address))
        assert (answer.verdict, answer.status) == (Verdict.FAILED, "5.1.7")


async def test_no_bare_cr_lf_or_nul_leaves() -> None:
    """The twelve endings of SMTP smuggling, each in the middle of a message: the server sees one message."""
    endings = [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\n.\r",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
    ]
    endings += [b"\n\n.\r\n", b"\r\n\r.", b"\r\n.\r\r\n"]
    for ending in endings:
        content = b"Subject: x\r\n\r\nfirst" + ending + b"MAIL FROM:<evil@example.org>\r\n"
        async with Sink() as sink:
            await send(sink, transaction(content=[content]))
            await sink.sessions[0].over.wait()
            text = bytes(sink.sessions[0].got).partition(b"DATA\r\n")[2].removesuffix(b"QUIT\r\n")
            assert text.endswith(b"\r\n.\r\n")
            assert text.count(b"\r\n.\r\n") == 1
            assert text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n")
            assert b"\0" not in text
            assert len(sink.received) == 1


async def test_an_idle_connection_tells_when_the_server_leaves() -> None:
    async with Sink() as sink:
        connection = await SmtpConnection.open(parse_destination(sink.url), hostname="x", timeouts=TIMEOUTS)
        await connection.send(transaction())
        connection.lost = asyncio.get_running_loop().create_future()
    await asyncio.wait_for(connection.lost, 5)
    assert not connection.usable


async def test_a_recipient_that_a_confused_server_accepted_gets_no_empty_message() -> None:
    """MAIL answered 354: the lone dot that RFC 2920 wants would be a message to whom RCPT accepted."""
    async with Sink(when("mail", "354 what")) as sink:
        (answer,) = await send(sink, transaction())
        assert answer.verdict is Verdict.DEFERRED
        await sink.sessions[0].over.wait()
        assert not sink.received


@pytest.mark.parametrize(
    "check",
    [
        test_a_pause_while_the_body_is_written_stops_the_dot,
        test_the_last_question_is_asked_when_nothing_waits_in_this_process,
        test_what_is_written_is_in_the_kernel_before_the_loop_turns,
        test_a_big_message_to_a_slow_reader_arrives,
        test_a_reply_that_comes_before_the_whole_message_is_the_answer,
        test_an_idle_connection_tells_when_the_server_leaves,
        test_no_bare_cr_lf_or_nul_leaves,
        *(
            partial(test_the_dot_is_never_sent_once_the_right_to_send_is_gone, extensions, sort)
            for extensions in (EXTENSIONS, WITHOUT_PIPELINING)
            for sort in ("small", "big")
        ),
        *(
            partial(test_what_each_answer_means, EXTENSIONS, "dot", reply, Verdict.DEFERRED, "4.4.2")
            for reply in (HANG, DISCONNECT)
        ),
    ],
)
def test_on_uvloop_too(check: Callable[[], Coroutine[None, None, None]]) -> None:
    """It buffers what is written in its own way."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())
