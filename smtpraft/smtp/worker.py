"""An SMTP worker: a process that accepts, reads and answers SMTP, and has its node commit the messages.

The server, the sessions and their rules are those of a node without workers (`server`, `handler`); `submit`, `ready`
and `full` go through `NodeLine`. What a worker holds is never the only copy of anything that was promised: a `250` is
said when the node has said so, and of a message that was handed over when the line was lost nothing is said (RFC 5321
§4.2.5: a 4yz would promise that it is not delivered, and nobody knows). All others hear 421.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from smtpraft.config import SmtpSettings
from smtpraft.errors import OutcomeUnknown, Stopped
from smtpraft.smtp.census import Census
from smtpraft.smtp.connection import AnySession, Client
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.worker_frames import (
    HEAD,
    MESSAGE,
    NUMBER,
    PART_BYTES,
    Begin,
    FrameError,
    Kind,
    Outcome,
    State,
    decode_answers,
    decode_drain,
    decode_settings,
    decode_state,
    encode,
    error_of,
    frame,
    report_of,
)
from smtpraft.smtp.worker_link import WorkerLine
from smtpraft.spool.client import encode_message
from smtpraft.spool.types import Envelope, MessageId

log = logging.getLogger(__name__)

REPORT_S: Final = 0.25
GOODBYE_S: Final = 1.0  # for sessions to hear 421 when the node is gone

Submitted = Callable[[MessageId | None, Exception | None], None]


class NodeLine(WorkerLine):
    """The line to the node, as the sessions' handler sees it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        state: State,
        *,
        on_state: Callable[[State], None],
        on_settings: Callable[[SmtpSettings], None],
        on_drain: Callable[[float], None],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(loop)
        self.state = state
        self._on_state = on_state
        self._on_settings = on_settings
        self._on_drain = on_drain
        self._on_lost = on_lost
        self._last_number = 0
        self._waiting: dict[int, Submitted] = {}
        self._long: deque[bytes] = deque()

    def submit(self, envelope: Envelope, content: Sequence[bytes], *, deadline_s: float, done: Submitted) -> None:
        """`SubmitMail`, through the node."""
        if self.lost:
            done(None, Stopped("the node is gone"))
            return
        try:
            command = encode_message(envelope, content)
        except Exception as error:
            done(None, error)
            return
        self._last_number = number = self._last_number + 1
        self._waiting[number] = done
        head = MESSAGE.pack(number, int(deadline_s * 1000))
        if command is not None:
            self.send(HEAD.pack(1 + len(head) + len(command), Kind.SUBMIT) + head, command)
            if len(self._waiting) == 1:
                self.flush()  # nobody else's is likely to come in this turn
            return
        self._long.append(frame(Kind.LONG, head + encode(envelope)))
        own = NUMBER.pack(number)
        for block in content:
            view = memoryview(block)
            for at in range(0, len(view), PART_BYTES):
                self._long.append(frame(Kind.PART, b"".join((own, view[at : at + PART_BYTES]))))
        self._long.append(frame(Kind.END, own))
        self.send()

    def ready(self) -> bool:
        """Could a message be committed now?"""
        return self.state.ready

    def full(self) -> bool:
        """Is there too little room on the disk to take one?"""
        return self.state.full

    def more_to_send(self) -> bytes:
        return self._long.popleft() if self._long else b""

    def take_frame(self, kind: int, body: memoryview) -> None:
        match kind:
            case Kind.ANSWERS:
                waiting = self._waiting
                for number, outcome, text in decode_answers(body):
                    done = waiting.pop(number, None)
                    if done is None:
                        raise FrameError(f"an answer to message {number}, which does not wait for one")
                    if outcome == Outcome.QUEUED:
                        done(MessageId(text), None)
                    else:
                        done(None, error_of(outcome, text))
            case Kind.STATE:
                self.state = decode_state(body)
                self._on_state(self.state)
            case Kind.SETTINGS:
                self._on_settings(decode_settings(body))
            case Kind.DRAIN:
                self._on_drain(decode_drain(body))
            case _:
                raise FrameError(f"a frame of kind {kind} from the node")

    def line_lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._long.clear()
        for done in waiting.values():
            done(None, OutcomeUnknown("the line to the node was lost"))
        self._on_lost()


class WorkerServer(SmtpServer):
    """The server of one worker: its limits on connections hold over all of them."""

    def __init__(self, settings: SmtpSettings, census: Census, **rest: Any) -> None:
        self._census = census
        super().__init__(settings, **rest)

    def admit(self, session: AnySession, peer: Any) -> Client | str:
        admitted = super().admit(session, peer)
        if not isinstance(admitted, str):
            self._census.come(self._sessions[session])
        return admitted

    def forget(self, session: AnySession) -> None:
        self._census.go(self._sessions[session])
        super().forget(session)

    def _connections(self) -> int:
        return self._census.total()

    def _connections_of(self, client: int) -> int:
        return self._census.of(client)


def share(settings: SmtpSettings, workers: int) -> SmtpSettings:
    """Return the settings of one worker: its part of the memory, but enough for the largest message."""
    memory_bytes = max(settings.max_inflight_bytes // workers, settings.max_message_bytes)
    return msgspec.structs.replace(settings, max_inflight_bytes=memory_bytes)


class Worker:
    """The life of a worker: begun by its node, ended by it, or by its end."""

    def __init__(self, begin: Begin, line: socket.socket, on_state: Callable[[State], None]) -> None:
        """`on_state` hears of every change of the node's state."""
        self._begin = begin
        self._socket = line
        self._on_state = on_state
        self._drain_s: asyncio.Future[float]

    async def run(self) -> None:
        """Serve until the node wants no more, or is gone.

        Raises:
            OSError: a listener cannot be used.
        """
        loop = asyncio.get_running_loop()
        begin = self._begin
        self._drain_s = loop.create_future()
        line = NodeLine(
            loop,
            begin.state,
            on_state=self._on_state,
            on_settings=self._configure,
            on_drain=self._end,
            on_lost=self._lost,
        )
        listeners = [(name, socket.socket(fileno=fd)) for name, fd in begin.listeners]
        self._server = server = WorkerServer(
            share(begin.settings, begin.workers),
            Census(begin.census, begin.workers, begin.census_key, begin.number),
            submit=line.submit,
            ready=line.ready,
            full=line.full,
            sockets=[listening for _, listening in listeners],
            names=[name for name, _ in listeners],
        )
        await loop.create_unix_connection(lambda: line, sock=self._socket)
        await server.start()
        line.send(frame(Kind.READY))
        reports = loop.create_task(self._report(line), name="worker-reports")
        reports.add_done_callback(self._reports_ended)
        try:
            drain_s = await self._drain_s
            if line.lost:
                log.warning("the node is gone: ending worker=%d", begin.number)
            await server.drain(drain_s)
        finally:
            reports.cancel()
            await server.close()
            line.send(frame(Kind.REPORT, encode(report_of(server.statistics))))
            line.end()
        await asyncio.sleep(0)

    def _configure(self, settings: SmtpSettings) -> None:
        self._server.configure(share(settings, self._begin.workers))

    def _end(self, drain_s: float) -> None:
        if not self._drain_s.done():
            self._drain_s.set_result(drain_s)

    def _lost(self) -> None:
        self._end(GOODBYE_S)

    async def _report(self, line: NodeLine) -> None:
        """Tell what is counted, at least to tell that this worker lives."""
        while True:
            line.send(frame(Kind.REPORT, encode(report_of(self._server.statistics))))
            await asyncio.sleep(REPORT_S)

    def _reports_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._drain_s.done():
            self._drain_s.set_exception(error)
