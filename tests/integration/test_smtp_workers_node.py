"""The node's side of `smtp.workers`: the test plays the worker, with the line of a process that only hands it on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from smtpraft.config import SmtpSettings
from smtpraft.errors import Stopped
from smtpraft.smtp import SmtpWorkers, WorkersFailed, workers
from smtpraft.smtp.listeners import close_listeners, open_listeners
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.smtp.worker_frames import (
    HEAD,
    MESSAGE,
    NUMBER,
    PART_BYTES,
    READ_BYTES,
    Kind,
    State,
    decode_answers,
    decode_begin,
    encode,
    frame,
    report_of,
)
from smtpraft.spool.client import encode_message
from smtpraft.spool.types import Envelope, MessageId

HAND_ON = """
import socket, sys, time
path, fd = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as there:
    there.connect(path)
    socket.send_fds(there, [b"x"], [int(fd)])
    there.recv(1)  # until the test lets it go
"""
ENVELOPE = Envelope("a@b", ("c@d",))
MIB = 1 << 20


class Played:
    """A worker that does as it is bid."""

    def __init__(self, line: socket.socket, process: socket.socket) -> None:
        self.line = line
        self._process = process
        line.setblocking(False)
        self._loop = asyncio.get_running_loop()

    async def hear(self, wanted: Kind) -> bytes:
        """Return the body of the next frame of this kind."""
        async with asyncio.timeout(20):
            while True:
                length, kind = HEAD.unpack(await self._receive(HEAD.size))
                body = await self._receive(length - 1)
                if kind == wanted:
                    return body

    async def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = await self._loop.sock_recv(self.line, count - len(data))
            assert more, "the node has hung up"
            data += more
        return data

    async def say(self, kind: Kind, body: bytes = b"") -> None:
        await self._loop.sock_sendall(self.line, frame(kind, body))

    def die(self) -> None:
        self.line.close()
        self._process.close()


class Stage:
    """A node's workers, and what they are told to commit."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.path = str(directory / "hand-on")
        self.meeting = socket.socket(socket.AF_UNIX)
        self.meeting.bind(self.path)
        self.meeting.listen()
        self.meeting.setblocking(False)
        self.submitted: list[tuple[int, Callable[[MessageId | None, Exception | None], None]]] = []
        self.contents: list[bytes] = []
        self.failures: list[BaseException] = []
        self.state = State(ready=True, full=False, term=3, log_level="info", log_format="text")
        self.stands_still_s = 0.0
        self.workers = SmtpWorkers(
            SmtpSettings(listen=["127.0.0.1:0"], workers=1, **settings),
            node="node-1",
            loop_name="asyncio",
            submit=self._submit,
            submit_encoded=self._submit_encoded,
            state=self._state,
            command=[sys.executable, "-S", "-c", HAND_ON, self.path],
            environ=os.environ,
            on_failure=self.failures.append,
        )

    def _state(self) -> State:
        if self.stands_still_s:
            time.sleep(self.stands_still_s)  # the whole process does
            self.stands_still_s = 0.0
        return self.state

    def _submit(
        self,
        envelope: Envelope,
        content: Sequence[bytes],
        *,
        deadline_s: float,
        done: Callable[[MessageId | None, Exception | None], None],
    ) -> None:
        self.contents.append(b"".join(content))
        self.submitted.append((sum(map(len, content)), done))

    def _submit_encoded(
        self, command: bytes, *, deadline_s: float, done: Callable[[MessageId | None, Exception | None], None]
    ) -> None:
        self.submitted.append((len(command), done))

    async def meet(self) -> Played:
        """Return the next worker that is started, which does not listen yet."""
        async with asyncio.timeout(20):
            there, _ = await asyncio.get_running_loop().sock_accept(self.meeting)
            there.setblocking(True)
            _, (fd,), _, _ = await asyncio.to_thread(socket.recv_fds, there, 1, 1)
        return Played(socket.socket(fileno=fd), there)

    async def begin(self) -> Played:
        """Start; return the worker."""
        starting = asyncio.create_task(self.workers.start())
        worker = await self.meet()
        begin = decode_begin(await worker.hear(Kind.BEGIN))
        assert (begin.number, begin.workers, begin.state.term) == (0, 1, 3)
        await worker.say(Kind.READY)
        async with asyncio.timeout(20):
            await starting
        return worker

    async def submissions(self, count: int) -> None:
        await soon(lambda: len(self.submitted) >= count)


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- it waits for processes
            await asyncio.sleep(0.01)


@pytest.fixture
async def stage_of(tmp_path: Path) -> AsyncIterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**settings: Any) -> Stage:
        stages.append(Stage(tmp_path, **settings))
        return stages[-1]

    yield make
    for stage in stages:
        stage.meeting.close()
        await stage.workers.close()
        assert stage.failures == []


def submission(number: int, size_bytes: int) -> bytes:
    command = encode_message(ENVELOPE, [bytes(size_bytes)])
    assert command is not None
    return MESSAGE.pack(number, 5000) + command


async def blocked(writing: Awaitable[None]) -> asyncio.Task[None]:
    """Begin to write, and fail if that is possible."""
    task = asyncio.ensure_future(writing)
    await asyncio.wait((task,), timeout=0.5)
    assert not task.done(), "the node reads on"
    return task


async def test_a_worker_that_sends_more_than_its_share_is_not_read_from(stage_of: Callable[..., Stage]) -> None:
    """And is again as soon as enough of it is answered; nothing is lost."""
    stage = stage_of(max_inflight_bytes=2 * MIB, max_message_bytes=MIB)
    worker = await stage.begin()

    async def flood() -> None:
        for number in range(1, 65):
            await worker.say(Kind.SUBMIT, submission(number, 128 * 1024))

    flooding = await blocked(flood())
    held = sum(size for size, _ in stage.submitted)
    assert 2 * MIB < held <= 2 * MIB + READ_BYTES + 256 * 1024
    answered = 0
    while answered < 64:
        await stage.submissions(answered + 1)
        for number, (_, done) in enumerate(stage.submitted[answered:], answered + 1):
            done(MessageId(f"{number:012}"), None)
        answered = len(stage.submitted)
    await flooding
    found: list[tuple[int, int, str]] = []
    while len(found) < 64:
        found += decode_answers(await worker.hear(Kind.ANSWERS))
    assert sorted(found) == [(number, 0, f"{number:012}") for number in range(1, 65)]


async def test_answers_of_one_turn_are_one_frame(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()
    worker = await stage.begin()
    for number in (1, 2, 3):
        await worker.say(Kind.SUBMIT, submission(number, 100))
    await stage.submissions(3)
    for (_, done), error in zip(stage.submitted, (None, Stopped("stops"), RuntimeError("?")), strict=True):
        done(MessageId("000000000R00") if error is None else None, error)
    rows = decode_answers(await worker.hear(Kind.ANSWERS))
    assert rows == [(1, 0, "000000000R00"), (2, 3, "stops"), (3, 2, "RuntimeError('?')")]


async def test_short_messages_pass_a_long_one_that_comes_in_parts(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()
    worker = await stage.begin()
    content = os.urandom(3 * PART_BYTES)
    await worker.say(Kind.LONG, MESSAGE.pack(1, 5000) + encode(ENVELOPE))
    for at in range(0, len(content), PART_BYTES):
        await worker.say(Kind.PART, NUMBER.pack(1) + content[at : at + PART_BYTES])
        await worker.say(Kind.SUBMIT, submission(2 + at, 100))
    await stage.submissions(3)
    assert stage.contents == []
    await worker.say(Kind.END, NUMBER.pack(1))
    await stage.submissions(4)
    assert stage.contents == [content]


@pytest.mark.parametrize("wrong", ["part of nothing", "end of nothing", "too much", "kind", "submission"])
async def test_a_worker_that_speaks_nonsense_is_parted_with_and_another_started(
    stage_of: Callable[..., Stage], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "END_S", 0.1)
    stage = stage_of(max_inflight_bytes=MIB, max_message_bytes=MIB)
    worker = await stage.begin()
    with contextlib.suppress(OSError):
        match wrong:
            case "part of nothing":
                await worker.say(Kind.PART, NUMBER.pack(5) + b"x")
            case "end of nothing":
                await worker.say(Kind.END, NUMBER.pack(5))
            case "kind":
                await worker.say(Kind.BEGIN)
            case "submission":
                await worker.say(Kind.SUBMIT, b"x")
            case _:
                await worker.say(Kind.LONG, MESSAGE.pack(1, 5000) + encode(ENVELOPE))
                for _ in range(40):
                    await worker.say(Kind.PART, NUMBER.pack(1) + bytes(PART_BYTES))
    await soon(lambda: stage.workers.view()[0]["state"] == "starts")
    worker.die()
    again = await stage.meet()
    await again.hear(Kind.BEGIN)
    await again.say(Kind.READY)
    await soon(lambda: stage.workers.view()[0]["state"] == "listens")
    assert stage.workers.view()[0]["restarts"] == 1
    assert stage.submitted == []
    again.die()


async def test_what_an_ended_worker_had_under_way_is_told_to_the_log(
    stage_of: Callable[..., Stage], caplog: pytest.LogCaptureFixture
) -> None:
    """And its counters stay, and its connections go."""
    stage = stage_of()
    worker = await stage.begin()
    statistics = SmtpStatistics()
    statistics.connections = statistics.connections_total = statistics.messages_received = 4
    await worker.say(Kind.REPORT, encode(report_of(statistics)))
    await worker.say(Kind.SUBMIT, submission(1, 100))
    await stage.submissions(1)
    assert stage.workers.statistics.connections == 4
    with caplog.at_level(logging.WARNING):
        worker.die()
        await soon(lambda: stage.workers.statistics.connections == 0)
        assert stage.workers.statistics.messages_received == 4
        stage.submitted[0][1](MessageId("000000000R00"), None)
    assert "queued, but its worker is gone and nobody was told id=000000000R00" in caplog.text
    assert any("worker=0 ended status='exit 0'" in record.getMessage() for record in caplog.records)
    assert next(record for record in caplog.records if " ended status" in record.getMessage()).levelname == "ERROR"


async def test_a_worker_that_falls_silent_is_killed(
    stage_of: Callable[..., Stage], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SILENT_S", 0.3)
    stage = stage_of()
    worker = await stage.begin()
    with caplog.at_level(logging.ERROR):
        await soon(lambda: "another is started" in caplog.text)
    assert "worker=0 is silent" in caplog.text
    assert "status='signal 9'" in caplog.text
    worker.die()


async def test_a_worker_that_is_not_read_from_is_not_silent(
    stage_of: Callable[..., Stage], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has under way may take longer than its silence may last: `commit_timeout_s` is up to five minutes."""
    monkeypatch.setattr(workers, "SILENT_S", 0.3)
    stage = stage_of(max_inflight_bytes=MIB, max_message_bytes=MIB)
    worker = await stage.begin()
    await worker.say(Kind.SUBMIT, submission(1, 900 * 1024))
    await worker.say(Kind.SUBMIT, submission(2, 200 * 1024))
    await stage.submissions(2)
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(0.8)
        assert "is silent" not in caplog.text
        for number, (_, done) in enumerate(stage.submitted, 1):
            done(MessageId(f"{number:012}"), None)  # it is read from again, and says nothing more
        await soon(lambda: "worker=0 is silent" in caplog.text)
    worker.die()


async def test_a_worker_that_ends_while_it_is_not_read_from_is_started_again(stage_of: Callable[..., Stage]) -> None:
    """At once, and not when the messages that it had under way are answered."""
    stage = stage_of(max_inflight_bytes=MIB, max_message_bytes=MIB)
    worker = await stage.begin()
    await worker.say(Kind.SUBMIT, submission(1, 900 * 1024))
    await worker.say(Kind.SUBMIT, submission(2, 200 * 1024))
    await stage.submissions(2)
    worker.die()
    again = await stage.meet()
    await again.hear(Kind.BEGIN)
    again.die()


async def test_a_node_that_stood_still_does_not_kill_its_workers(
    stage_of: Callable[..., Stage], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was stopped, or whose machine was: what they said meanwhile is not read yet."""
    monkeypatch.setattr(workers, "SILENT_S", 0.6)
    stage = stage_of()
    worker = await stage.begin()
    with caplog.at_level(logging.ERROR):
        stage.stands_still_s = 1.0
        await soon(lambda: not stage.stands_still_s)
        await worker.say(Kind.READY)
        await asyncio.sleep(0.2)
    assert "is silent" not in caplog.text


async def test_state_is_told_when_it_changes(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()
    worker = await stage.begin()
    stage.state = State(ready=False, full=True, term=4, log_level="debug", log_format="json")
    assert await worker.hear(Kind.STATE) == encode(stage.state)


async def test_workers_that_cannot_start_are_an_error_of_the_start(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of()
    starting = asyncio.create_task(stage.workers.start())
    (await stage.meet()).die()
    async with asyncio.timeout(20):
        with pytest.raises(WorkersFailed, match="SMTP worker 0 ended at its start: exit 0"):
            await starting


async def test_an_address_is_bound_for_all_or_for_none(stage_of: Callable[..., Stage]) -> None:
    """Not even with SO_REUSEPORT of its own user."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        stage = stage_of()
        stage.workers.settings = SmtpSettings(listen=["127.0.0.1:0", f"127.0.0.1:{other.getsockname()[1]}"], workers=2)
        with pytest.raises(OSError, match="in use"):
            await stage.workers.start()
    assert stage.workers.view() == []


async def test_two_nodes_that_start_together_do_not_share_an_address() -> None:
    """The second finds it taken before any worker of the first is there."""
    first = await open_listeners(["127.0.0.1:0"], 2)
    try:
        port = first[0][0][1].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            close_listeners(await open_listeners([f"127.0.0.1:{port}"], 2))
    finally:
        close_listeners(first)
