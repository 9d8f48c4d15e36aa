"""No byte sequence but CRLF.CRLF ends a message, and what others take for an end is refused, never accepted.

The endings are those that were found to work against other servers (SEC Consult, 2023; hannob/smtpsmug).
"""

from __future__ import annotations

import asyncio

import pytest

from .room import StartRoom

ENDINGS = {
    "LF.LF": b"\n.\n",
    "LF.CRLF": b"\n.\r\n",
    "CRLF.LF": b"\r\n.\n",
    "CR.CR": b"\r.\r",
    "CR.CRLF": b"\r.\r\n",
    "CRLF.CR": b"\r\n.\r",
    "LF.CR": b"\n.\r",
    "CRLF-NUL.CRLF": b"\r\n\0.\r\n",
    "CRLF.NUL-CRLF": b"\r\n.\0\r\n",
    "LFLF.CRLF": b"\n\n.\r\n",
    "CRCRLF.": b"\r\r\n.",
    "CRLF.CRCRLF": b"\r\n.\r\r\n",
}
SMUGGLED = b"MAIL FROM:<admin@victim>\r\nRCPT TO:<joe@victim>\r\nDATA\r\nFrom: admin\r\n\r\nsmuggled\r\n.\r\n"


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize("at_once", [True, False], ids=["one-write", "octets"])
async def test_a_false_ending_is_refused_and_the_connection_closed(
    start_room: StartRoom, ending: bytes, at_once: bool
) -> None:
    room = await start_room()
    client = await room.connect()
    await client.begin_data()
    data = b"Subject: x\r\n\r\nouter" + ending + SMUGGLED
    if at_once:
        await client.say(data)
    else:
        for place in range(len(data)):
            client.writer.write(data[place : place + 1])
            await asyncio.sleep(0)
    output = await client.hear_all()
    assert output.startswith(b"521 5.5.2 ")
    assert output.count(b"\r\n") == 1
    assert not room.accepted
    client.writer.close()


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\0\r\n", b"\r\0\n"])
async def test_only_crlf_ends_a_command(start_room: StartRoom, ending: bytes) -> None:
    room = await start_room()
    client = await room.connect()
    await client.greet()
    await client.say(b"NOOP" + ending + b"MAIL FROM:<a@b>" + ending + b"NOOP\r\nQUIT\r\n")
    codes = [int(line[:3]) for line in (await client.hear_all()).splitlines()]
    assert codes[-1] == 221
    assert set(codes[:-1]) <= {500, 250}
    assert codes[0] == 500
    assert room.server.statistics.messages_rejected["command", 500] == len(codes) - 1 - codes.count(250)


async def test_what_is_accepted_holds_no_bare_octet(start_room: StartRoom) -> None:
    """So nothing of the kind can leave us either."""
    room = await start_room()
    client = await room.connect()
    await client.begin_data()
    assert await client.ask(b"Subject: x\r\n\r\n..\r\n.x\r\n \xff\x80\x01\r\n.") == 250
    _, content = room.accepted[0]
    assert content.count(b"\r") == content.count(b"\n") == content.count(b"\r\n")
    assert b"\0" not in content
    assert room.contents() == [b"Subject: x\r\n\r\n.\r\nx\r\n \xff\x80\x01\r\n"]


async def test_commands_after_an_accepted_dot_are_commands(start_room: StartRoom) -> None:
    """Pipelining the next transaction right behind the dot is legal."""
    room = await start_room()
    client = await room.connect()
    await client.begin_data()
    await client.say(b"first\r\n.\r\n" + SMUGGLED + b"QUIT\r\n")
    codes = [int(line[:3]) for line in (await client.hear_all()).splitlines()]
    assert codes == [250, 250, 250, 354, 250, 221]
    assert len(room.accepted) == 2
