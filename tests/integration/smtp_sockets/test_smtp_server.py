"""The server on real sockets: ordinary clients, what is delivered, limits on connections, time, and the end."""

from __future__ import annotations

import asyncio
import email.message
import smtplib
import socket
from importlib import resources

import pytest

from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped

from .room import StartRoom


async def test_smtplib_sends_mail(start_room: StartRoom) -> None:
    room = await start_room(max_message_bytes=100_000)
    message = email.message.EmailMessage()
    message["Subject"] = "Grüße"
    message["From"] = "ann@example.org"
    message["To"] = "joe@example.net, jürgen@example.net"
    message.set_content(".one\n..two\n\nü\n.\n", cte="8bit")

    def send() -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP(*room.server.addresses[0], timeout=20) as client:
            assert client.has_extn("pipelining") is False  # nothing before EHLO
            client.ehlo()
            for extension in ("pipelining", "8bitmime", "smtputf8", "enhancedstatuscodes"):
                assert client.has_extn(extension)
            assert client.esmtp_features["size"] == "100000"
            assert client.verify("joe")[0] == 252
            assert client.help().startswith(b"2.0.0")
            return client.send_message(message)

    assert await asyncio.to_thread(send) == {}
    envelope, _ = room.accepted[0]
    assert envelope.smtputf8
    assert envelope.recipients == ("joe@example.net", "jürgen@example.net")
    assert ".one\r\n..two\r\n\r\nü\r\n.\r\n" in room.contents()[0].decode()


async def test_sample_messages_arrive_byte_for_byte(start_room: StartRoom) -> None:
    """The messages that CPython tests its own parser with: odd, broken, in many encodings."""
    room = await start_room()
    samples = []
    for path in sorted(resources.files("test.test_email.data").iterdir(), key=lambda path: path.name):
        if path.name.endswith(".txt"):
            text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            samples.append(text.replace(b"\0", b"").rstrip(b"\n").replace(b"\n", b"\r\n") + b"\r\n")
    assert len(samples) > 30

    def send() -> None:
        with smtplib.SMTP(*room.server.addresses[0], timeout=20) as client:
            for sample in samples:
                assert client.sendmail("a@b.c", ["d@e.f"], sample) == {}

    await asyncio.to_thread(send)
    assert room.contents() == samples


async def test_any_chunks_on_the_wire_are_the_same_mail(start_room: StartRoom) -> None:
    room = await start_room()
    content = b"Subject: x\r\n\r\n..stuffed\r\n...\r\ntext\r\n" * 3
    script = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + content + b".\r\nQUIT\r\n"
    replies = set()
    for chunk_bytes in (1, 7, 100, len(script)):
        client = await room.connect()
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(script), chunk_bytes):
            await client.say(script[start : start + chunk_bytes])
            await asyncio.sleep(0)
        replies.add((await client.hear_all()).replace(b"ID%d" % len(room.accepted), b"ID"))
    assert len(replies) == 1
    assert len(set(room.contents())) == 1
    assert len(room.accepted) == 4


async def test_a_pipelined_group_is_one_segment(start_room: StartRoom) -> None:
    """RFC 2920 §3.2: no client should see a reply in pieces, or pay a packet for each."""
    room = await start_room()
    client = await room.connect()
    await client.greet()
    await client.say(b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<c@d>\r\n" * 50 + b"DATA\r\n")
    await client.reader.readexactly(1)
    # What has arrived with the first octet is everything: 1 MAIL, 50 RCPT, 1 DATA.
    assert bytes(client.reader._buffer).count(b"\r\n") == 52  # type: ignore[attr-defined]


async def test_ipv6(start_room: StartRoom) -> None:
    room = await start_room()
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listener.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    finally:
        listener.close()
    room6 = type(room)()
    room6.server.settings = room6.settings = type(room.settings)(listen=["[::1]:0"], hostname="mx.test")
    await room6.server.start()
    try:
        client = await room6.connect()
        await client.begin_data()
        assert await client.ask(b"x: y\r\n\r\n.") == 250
        envelope, content = room6.accepted[0]
        assert envelope.client_host == "IPv6:::1"
        assert content.startswith(b"Received: from client.example ([IPv6:::1])\r\n")
    finally:
        await room6.close()


async def test_two_listeners_and_a_failed_start(start_room: StartRoom) -> None:
    room = await start_room()
    port = room.server.addresses[0][1]
    other = type(room)()
    other.server.settings = type(room.settings)(listen=["127.0.0.1:0", f"127.0.0.1:{port}"], hostname="mx.test")
    with pytest.raises(OSError):
        await other.server.start()
    await asyncio.sleep(0)
    assert not other.server.addresses


# The answer to the final dot.


async def test_the_250_waits_for_the_commit(start_room: StartRoom) -> None:
    room = await start_room()
    room.shut_gate()
    client = await room.connect()
    await client.begin_data()
    await client.say(b"x: y\r\n\r\n.\r\n")
    await room.until(lambda: room.handed_over == 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
    room.open_gate()
    assert await client.hear() == b"250 2.0.0 Ok: queued as ID1\r\n"
    assert room.server.statistics.ack_seconds.sum >= 0.1


@pytest.mark.parametrize(
    ("answer", "heard"),
    [
        (NotReplicated("withdrawn"), b"451 4.3.0 "),
        (Stopped("stopping"), b"421 4.3.2 "),
        (OutcomeUnknown("no majority"), b""),
        (RuntimeError("a bug"), b""),
    ],
)
async def test_a_commit_that_fails(start_room: StartRoom, answer: Exception, heard: bytes) -> None:
    """RFC 5321 §4.2.5."""
    room = await start_room()
    room.answer = lambda: answer
    client = await room.connect()
    await client.begin_data()
    await client.say(b"x: y\r\n\r\n.\r\nQUIT\r\n")
    output = await client.hear_all()
    assert output.startswith(heard)
    assert output.count(b"\r\n") == {b"": 0, b"4": 1}[heard[:1]] + (heard[:3] == b"451")
    assert not output.startswith(b"2")


STAGES = {
    "connect": b"",
    "hello": b"EHLO x\r\n",
    "mail": b"MAIL FROM:<a@b>\r\n",
    "rcpt": b"RCPT TO:<c@d>\r\n",
    "data": b"DATA\r\n",
    "content": b"x: y\r\n\r\nmore",
    "commit": b"\r\n.\r\n",
}


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_may_vanish_at_any_stage(start_room: StartRoom, stage: str, reset: bool) -> None:
    """Before the dot nothing is handed over; after it the message stays, and is waited for (RFC 5321 §4.1.1.10)."""
    room = await start_room()
    room.shut_gate()
    client = await room.connect()
    for name, text in STAGES.items():
        await client.say(text)
        if name == stage:
            break
    await room.until(lambda: room.server.statistics.connections == 1)
    if stage == "commit":
        await room.until(lambda: room.handed_over == 1)
    client.vanish(reset=reset)
    if stage == "commit":
        await asyncio.sleep(0.05)
        assert room.server.statistics.connections == 1
        room.open_gate()
    await room.until(lambda: room.server.statistics.connections == 0)
    assert len(room.accepted) == (stage == "commit")
    assert room.server.memory.used_bytes == 0


# Time, on the server's own clock.


async def test_a_slow_steady_message_gets_through_and_a_silent_client_does_not(start_room: StartRoom) -> None:
    room = await start_room(command_timeout_s=0.5, data_timeout_s=0.5)
    client = await room.connect()
    await client.begin_data()
    for _ in range(15):
        await client.say(b"x")
        await asyncio.sleep(0.1)
    assert await client.ask(b"\r\n.") == 250
    assert (await client.hear_all()).startswith(b"421 4.4.2 ")
    assert room.server.statistics.timeouts == 1


async def test_content_that_stalls_is_cut(start_room: StartRoom) -> None:
    room = await start_room(command_timeout_s=30.0, data_timeout_s=0.2)
    client = await room.connect()
    await client.begin_data()
    await client.say(b"x: y\r\n")
    assert (await client.hear_all()).startswith(b"421 4.4.2 ")
    assert not room.accepted


async def test_a_client_that_never_reads_is_cut(start_room: StartRoom) -> None:
    room = await start_room(command_timeout_s=0.3)
    client = await room.connect(limit=1)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    # Long replies: the kernel takes megabytes of them before the server notices.
    content = b"EHLO x\r\n" * 40 + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n"

    async def talk_on() -> None:
        while True:
            await client.say(content * 20)

    talking = asyncio.create_task(talk_on())
    await room.until(lambda: room.server.statistics.connections == 0)
    assert room.accepted  # it was not cut for what it said
    talking.cancel()
    await asyncio.wait([talking])


# How many.


async def test_too_many_connections_are_turned_away(start_room: StartRoom) -> None:
    room = await start_room(max_connections=3, max_connections_per_client=2)
    first = await room.connect()
    second = await room.connect()
    await first.greet()
    await second.greet()
    third = await room.connect()
    assert (await third.hear_all()).startswith(b"421 4.7.0 mx.test ")
    assert room.server.statistics.connections_denied == {"client": 1}
    assert await first.ask(b"QUIT") == 221
    await room.until(lambda: room.server.statistics.connections == 1)
    fourth = await room.connect()
    await fourth.greet()


async def test_the_total_is_limited_too(start_room: StartRoom) -> None:
    room = await start_room(max_connections=2)
    clients = [await room.connect() for _ in range(2)]
    for client in clients:
        await client.greet()
    refused = await room.connect()
    assert (await refused.hear_all()).startswith(b"421 4.3.2 mx.test ")
    assert room.server.statistics.connections_denied == {"total": 1}


# The end.


async def test_drain_answers_what_is_under_way_and_takes_nothing_new(start_room: StartRoom) -> None:
    room = await start_room()
    idle, in_mail, in_data, committing = [await room.connect() for _ in range(4)]
    await idle.greet()
    await in_mail.greet()
    assert await in_mail.ask(b"MAIL FROM:<a@b>") == 250
    await in_data.begin_data()
    await in_data.say(b"x: y\r\n\r\nhalf")
    room.shut_gate()
    await committing.begin_data()
    await committing.say(b"x: y\r\n\r\n.\r\n")
    await room.until(lambda: room.handed_over == 1)
    address = room.server.addresses[0]

    draining = asyncio.create_task(room.server.drain(20.0))
    for client in (idle, in_mail):
        assert (await client.hear_all()).startswith(b"421 4.3.2 ")
        client.writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert not draining.done()
    await in_data.say(b"\r\nthe other half\r\n.\r\nNOOP\r\n")
    room.open_gate()
    for client in (committing, in_data):
        output = await client.hear_all()
        assert output.startswith(b"250 2.0.0 Ok: queued as ID")
        assert output.split(b"\r\n")[1].startswith(b"421 4.3.2 ")
        client.writer.close()
    await draining
    assert len(room.accepted) == 2
    assert room.server.statistics.connections == 0


async def test_drain_is_bounded(start_room: StartRoom) -> None:
    room = await start_room()
    client = await room.connect()
    await client.begin_data()
    started = asyncio.get_running_loop().time()
    await room.server.drain(0.2)
    assert asyncio.get_running_loop().time() - started < 5
    await room.server.close()
    assert not (await client.hear_all()).startswith(b"2")


async def test_close_cuts_what_is_left_and_says_nothing(start_room: StartRoom) -> None:
    room = await start_room()
    room.shut_gate()
    client = await room.connect()
    await client.begin_data()
    await client.say(b"x: y\r\n\r\n.\r\n")
    await room.until(lambda: room.handed_over == 1)
    await room.server.close()
    assert await client.hear_all() == b""
    assert room.server.statistics.connections == 0


# Load.


async def test_many_clients_at_once(start_room: StartRoom) -> None:
    room = await start_room()

    async def send(number: int) -> None:
        client = await room.connect()
        await client.greet()
        for message in range(10):
            await client.say(b"MAIL FROM:<%d@x>\r\nRCPT TO:<%d@y>\r\nDATA\r\n" % (number, message))
            for _ in range(3):
                await client.hear()
            assert await client.ask(b"%d/%d\r\n." % (number, message)) == 250
        assert await client.ask(b"QUIT") == 221
        client.writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(send(number))
    assert len(set(room.contents())) == 500
    for (envelope, _), content in zip(room.accepted, room.contents(), strict=True):
        sender, recipient = content.decode().strip().split("/")
        assert envelope.sender == f"{sender}@x"
        assert envelope.recipients == (f"{recipient}@y",)
    statistics = room.server.statistics
    assert statistics.messages_received == statistics.recipients_received == 500
    assert statistics.connections_total == 50
    assert statistics.ack_seconds.count == statistics.message_bytes.count == 500


async def test_a_large_message_uses_its_own_size_of_memory(start_room: StartRoom) -> None:
    size = 50_000_000
    room = await start_room(max_message_bytes=size, max_inflight_bytes=size)
    line = b"0123456789" * 9 + b"\r\n"
    block = line * 1000
    client = await room.connect()
    await client.begin_data()
    for _ in range(size // len(block)):
        await client.say(block)
        assert room.server.memory.used_bytes <= size
    await room.until(lambda: room.server.memory.used_bytes > size * 0.99)
    assert await client.ask(b".") == 250
    assert room.server.memory.used_bytes == 0
    assert room.server.statistics.bytes_received == size // len(block) * len(block)
    assert room.contents()[0] == block * (size // len(block))

    assert await client.ask(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA") == 354
    for _ in range(size // len(block) + 20):
        await client.say(block)
        assert room.server.memory.used_bytes <= size
    assert await client.ask(b".") == 552
    assert room.server.memory.used_bytes == 0


async def test_log_lines_tell_the_story_and_keep_the_secrets(
    start_room: StartRoom, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="smtpraft.smtp")
    room = await start_room(relay_networks=["192.0.2.0/24"], local_domains=["here.example"])
    client = await room.connect()
    await client.greet()
    assert await client.ask(b"MAIL FROM:<ann@example.org>", b"RCPT TO:<else@where.example>") == 550
    assert await client.ask(b"RCPT TO:<secret.recipient@here.example>", b"DATA") == 354
    assert await client.ask(b"Subject: secret body\r\n\r\n.") == 250
    text = caplog.text
    assert "Reception id=ID1 trace=" in text
    assert "client=127.0.0.1 helo='client.example' sender='ann@example.org' nrcpt=1 size=24 ms=" in text
    assert "refused stage=rcpt reply='550 5.7.1 " in text
    assert "secret" not in text
