"""Behind a load balancer: whom the session takes its client for, on both event loops."""

from __future__ import annotations

import asyncio

from .room import StartRoom

LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 51000 25\r\n"
BINARY = bytes.fromhex("0d0a0d0a000d0a515549540a2111000c c000022a c0000201 c738 0019")
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a20000000")
MAIL = b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@mx.test>\r\nDATA\r\n"


async def test_the_client_is_the_one_that_the_balancer_names(start_room: StartRoom) -> None:
    """Header, and then mail in one segment with it or byte by byte: it is the same."""
    room = await start_room(proxy_protocol=["127.0.0.0/8"], relay_networks=["127.0.0.0/8"])
    script = MAIL + b"x\r\n.\r\nQUIT\r\n"
    for header, host in ((LINE, "192.0.2.7"), (BINARY, "192.0.2.42"), (LOCAL, "127.0.0.1")):
        for step in (len(header + script), 1):
            client = await room.connect()
            for start in range(0, len(header + script), step):
                await client.say((header + script)[start : start + step])
                await asyncio.sleep(0)
            assert b"queued as" in await client.hear_all()
            assert room.accepted[-1][0].client_host == host
            assert f"[{host}]".encode() in room.accepted[-1][1]


async def test_who_may_relay_is_judged_by_the_named_client(start_room: StartRoom) -> None:
    room = await start_room(proxy_protocol=["127.0.0.0/8"], relay_networks=["127.0.0.0/8"])
    client = await room.connect()
    await client.say(LINE)
    await client.greet()
    assert await client.ask(b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@elsewhere.example>") == 550


async def test_a_balancer_without_a_header_hears_nothing(start_room: StartRoom) -> None:
    room = await start_room(proxy_protocol=["127.0.0.0/8"])
    for noise in (b"EHLO client.example\r\n", LINE.replace(b"25\r", b"65536\r"), b"\r\n\r\n\x00\r\nX"):
        client = await room.connect()
        await client.say(noise)
        assert await client.hear_all() == b""
    silent = await room.connect()
    silent.writer.write_eof()
    assert await silent.hear_all() == b""
    assert room.server.statistics.connections_total == 0


async def test_who_is_no_balancer_is_served_at_once_and_may_not_name_another(start_room: StartRoom) -> None:
    room = await start_room(proxy_protocol=["192.0.2.0/24"])
    client = await room.connect()
    await client.greet()
    other = await room.connect()
    assert (await other.hear()).startswith(b"220 ")
    await other.say(LINE)
    assert (await other.hear()).startswith(b"500 ")


async def test_a_drain_cuts_connections_that_have_not_begun(start_room: StartRoom) -> None:
    room = await start_room(proxy_protocol=["127.0.0.0/8"])
    client = await room.connect()
    await client.say(LINE[:10])
    await asyncio.sleep(0.05)
    await room.server.drain(1.0)
    assert await client.hear_all() == b""


async def test_new_settings_count_for_new_sessions_only(start_room: StartRoom) -> None:
    room = await start_room(relay_networks=["127.0.0.0/8"])
    old = await room.connect()
    await old.greet()
    room.server.configure(type(room.settings)(listen=room.settings.listen, hostname="new.test", relay_networks=[]))
    new = await room.connect()
    assert (await new.hear()).startswith(b"220 new.test ")
    assert await new.ask(b"EHLO c", b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@elsewhere.example>") == 550
    assert await old.ask(b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@elsewhere.example>") == 250
