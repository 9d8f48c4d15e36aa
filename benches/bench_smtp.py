"""Mail on its way in: the scanners, both halves side by side, and whole messages through each session: `make bench`.

A whole message is MAIL, RCPT, DATA and the content, one after the other, against a transport that only counts; its
commit is answered in the next turn of the loop. `stock` is aiosmtpd's own session with a handler that does nothing.
Not shown: system calls, and what the cluster does.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import pytest
import uvloop
from aiosmtpd.smtp import SMTP
from pytest_benchmark.fixture import BenchmarkFixture

from smtpraft.config import ENGINES, SmtpSettings
from smtpraft.smtp import SmtpServer
from smtpraft.spool.types import Envelope, MessageId

SIZES: Final = (1024, 4096, 10_240, 102_400, 1_048_576)
READ_BYTES: Final = 64 * 1024  # what a transport brings at a time
_HEAD: Final = b"From: <a@example.org>\r\nSubject: bench\r\n\r\n"
_LINE: Final = b"X" * 78 + b"\r\n"
_STOCK: Final = "stock"


@pytest.fixture(params=["_purescan", "_fastscan"], ids=["plain", "compiled"])
def half(request: pytest.FixtureRequest) -> ModuleType:
    name = f"smtpraft.smtp.{request.param}"
    if find_spec(name) is None:
        pytest.skip("the compiled half is not built")
    return import_module(name)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.run_until_complete(asyncio.sleep(0.01))  # what is left of sessions ends here, not in some later collection
    loop.close()
    gc.collect()


def grouped(benchmark: BenchmarkFixture, question: str) -> BenchmarkFixture:
    benchmark.group = question
    return benchmark


def content_of(size: int) -> bytes:
    return _HEAD + _LINE * ((size - len(_HEAD)) // len(_LINE))


def reads(data: bytes) -> list[bytes]:
    return [data[start : start + READ_BYTES] for start in range(0, len(data), READ_BYTES)]


@pytest.mark.parametrize("size", SIZES)
def bench_content_is_scanned(benchmark: BenchmarkFixture, half: ModuleType, size: int) -> None:
    content = content_of(size)
    chunks = reads(content + b".\r\n")

    def scan() -> list[bytes]:
        reader = half.ContentReader(1 << 30)
        for chunk in chunks:
            complete = reader.feed(chunk)
        assert complete
        blocks: list[bytes] = reader.take_blocks()
        return blocks

    assert b"".join(grouped(benchmark, f"DATA of {size} bytes")(scan)) == content


def bench_commands_are_cut(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    said = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"

    def cut() -> int:
        lines = half.CommandLines()
        lines.feed(said)
        count = 0
        while lines.next_command() is not None:
            count += 1
        return count

    assert grouped(benchmark, "MAIL, RCPT and DATA cut")(cut) == 3


def bench_a_path_is_read(benchmark: BenchmarkFixture, half: ModuleType) -> None:
    path = "<some.body@mail.example.org>"
    assert grouped(benchmark, "a plain path")(half.plain_path, path) == ("some.body", "mail.example.org", len(path))


class _Transport(asyncio.Transport):
    """Keeps the last reply."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1025)})
        self.said = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Nothing:
    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802 -- aiosmtpd's
        return "250 OK"


def session_of(kind: str, loop: asyncio.AbstractEventLoop) -> Any:
    """Return a session of one engine, or of aiosmtpd itself."""
    if kind == _STOCK:
        return SMTP(_Nothing(), loop=loop, hostname="mx.example", enable_SMTPUTF8=True)

    def submit(
        envelope: Envelope,
        content: Sequence[bytes],
        *,
        deadline_s: float,
        done: Callable[[MessageId | None, Exception | None], None],
    ) -> None:
        loop.call_soon(done, MessageId("5f-1"), None)

    server = SmtpServer(SmtpSettings(hostname="mx.example", engine=kind), submit=submit, ready=lambda: True)
    return server.session(loop)


def hear(session: Any, data: bytes) -> None:
    """Bring `data` to a session as a transport would."""
    if not isinstance(session, asyncio.BufferedProtocol):
        for chunk in reads(data):
            session.data_received(chunk)
        return
    while data:
        room = memoryview(session.get_buffer(READ_BYTES))
        part = data[: len(room)]
        room[: len(part)] = part
        session.buffer_updated(len(part))
        data = data[len(part) :]


@pytest.mark.parametrize("kind", [*ENGINES, _STOCK])
@pytest.mark.parametrize("size", SIZES)
def bench_a_whole_message(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, kind: str, size: int) -> None:
    content = content_of(size) + b".\r\n"
    transport = _Transport()

    async def ask(session: Any, what: bytes, code: bytes) -> None:
        transport.said = b""
        hear(session, what)
        while not transport.said.endswith(b"\r\n"):  # noqa: ASYNC110 -- a future would be measured too
            await asyncio.sleep(0)
        assert transport.said.startswith(code)

    async def begin() -> Any:
        session = session_of(kind, loop)
        session.connection_made(transport)
        while not transport.said:  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0)
        await ask(session, b"EHLO client.example\r\n", b"250")
        for _ in range(20):  # stock aiosmtpd writes the lines of this reply one by one
            await asyncio.sleep(0)
        return session

    async def message(session: Any) -> bytes:
        await ask(session, b"MAIL FROM:<a@example.org>\r\n", b"250")
        await ask(session, b"RCPT TO:<b@example.net>\r\n", b"250")
        await ask(session, b"DATA\r\n", b"354")
        await ask(session, content, b"250")
        return transport.said

    session = loop.run_until_complete(begin())
    said = grouped(benchmark, f"a whole message of {size} bytes")(lambda: loop.run_until_complete(message(session)))
    assert said.startswith(b"250")
    session.connection_lost(None)
