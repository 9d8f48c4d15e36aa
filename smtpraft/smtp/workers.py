"""`smtp.workers`: the processes that speak SMTP for a node, as the node sees them.

    workers = SmtpWorkers(settings, begin, submit=…, submit_encoded=…, state=…, command=…, on_failure=…)
    await workers.start()      # listeners are bound, all workers listen
    ...
    await workers.drain(6.0)   # as SmtpServer.drain, in all of them
    await workers.close()

It stands where `SmtpServer` stands in a node that speaks SMTP itself. A worker that ends is started again, the others
go on; its listeners stay open meanwhile, so who comes to it waits and is not refused. The workers end with the node,
however that ends: their line to it is then closed. Memory is bounded by what the workers hold: a message is here no
longer than there, and a worker that sends more than its share is not read from until enough of it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from smtpraft.config import SmtpSettings
from smtpraft.errors import SmtpRaftError
from smtpraft.smtp.census import Census
from smtpraft.smtp.handler import SubmitMail
from smtpraft.smtp.listeners import Listeners, close_listeners, open_listeners
from smtpraft.smtp.server import listener_name
from smtpraft.smtp.statistics import SmtpStatistics
from smtpraft.smtp.worker import share
from smtpraft.smtp.worker_frames import (
    MESSAGE,
    NUMBER,
    AnswerRow,
    Begin,
    FrameError,
    Kind,
    Report,
    State,
    add_report,
    answer_of,
    decode_envelope,
    decode_report,
    encode,
    frame,
    report_of,
)
from smtpraft.smtp.worker_link import WorkerLine
from smtpraft.spool.types import Envelope, MessageId

log = logging.getLogger(__name__)

START_S: Final = 30.0  # for all to listen; usually well below one
END_S: Final = 2.0  # from the end of the line to the end of the process, or it is killed
STATE_S: Final = 0.05
SILENT_S: Final = 30.0  # it reports four times a second; so long, and its loop is stuck
AGAIN_S_MIN: Final = 0.1
AGAIN_S_MAX: Final = 5.0
LIVED_S: Final = 10.0  # who lived so long is started again without a growing delay

Done = Callable[[MessageId | None, Exception | None], None]


class SubmitEncoded(Protocol):
    """Where whole messages go: `SpoolClient.submit_encoded`."""

    def __call__(self, command: bytes, *, deadline_s: float, done: Done) -> None:
        """As `SubmitMail`, with what `spool.client.encode_message` returned."""


class WorkersFailed(SmtpRaftError):
    """A worker cannot start. The text says what it was; the worker's own log lines say why."""


@dataclass(slots=True)
class _Upload:
    """A message that comes in parts."""

    envelope: Envelope
    deadline_s: float
    content: list[bytes] = field(default_factory=list)
    size_bytes: int = 0


class _Line(WorkerLine):
    """The line to one worker."""

    def __init__(self, workers: SmtpWorkers, number: int, process: subprocess.Popen[bytes]) -> None:
        super().__init__(workers.loop)
        self._workers = workers
        self.number = number
        self.process = process
        self.gone: asyncio.Future[None] = workers.loop.create_future()
        self.report: Report | None = None
        self.heard_at = monotonic()
        self.began_at = monotonic()
        self.under_way = 0
        """Messages handed to the cluster and not answered yet."""
        self._under_way_bytes = 0
        self._uploads: dict[int, _Upload] = {}
        self._uploads_bytes = 0
        self._answers: list[AnswerRow] = []

    def take_frame(self, kind: int, body: memoryview) -> None:
        match kind:
            case Kind.SUBMIT:
                number, deadline_ms = MESSAGE.unpack_from(body)
                command = bytes(body[MESSAGE.size :])
                done = self._begin(number, len(command))
                self._workers.submit_encoded(command, deadline_s=deadline_ms / 1000, done=done)
            case Kind.LONG:
                number, deadline_ms = MESSAGE.unpack_from(body)
                self._uploads[number] = _Upload(decode_envelope(body[MESSAGE.size :]), deadline_ms / 1000)
            case Kind.PART:
                upload = self._upload(body)
                upload.content.append(bytes(body[NUMBER.size :]))
                upload.size_bytes += len(upload.content[-1])
                self._uploads_bytes += len(upload.content[-1])
                if self._uploads_bytes > self._workers.uploads_bytes_max:
                    raise FrameError(f"{self._uploads_bytes} bytes of unfinished messages")
            case Kind.END:
                upload = self._upload(body)
                (number,) = NUMBER.unpack_from(body)
                del self._uploads[number]
                self._uploads_bytes -= upload.size_bytes
                done = self._begin(number, upload.size_bytes)
                self._workers.submit(upload.envelope, upload.content, deadline_s=upload.deadline_s, done=done)
            case Kind.REPORT:
                self.report = decode_report(body)
                self.heard_at = monotonic()
                self._workers.counted()
            case Kind.READY:
                self.heard_at = monotonic()
                self._workers.listens(self.number)
            case _:
                raise FrameError(f"a frame of kind {kind} from a worker")

    def line_lost(self) -> None:
        self._uploads.clear()  # nothing of these was handed to the cluster
        self.gone.set_result(None)

    def ended_unheard(self) -> bool:
        """Has the process ended while its line, whose end would say so, is not read from?"""
        return self._reading_paused and self.process.poll() is not None

    def silent_s(self, now: float, *, was_asleep: bool) -> float:
        """Return how long it has said nothing, though it was listened to."""
        if was_asleep or self._reading_paused:
            self.heard_at = now  # what it says waits in the kernel
        return now - self.heard_at

    def _upload(self, body: memoryview) -> _Upload:
        (number,) = NUMBER.unpack_from(body)
        upload = self._uploads.get(number)
        if upload is None:
            raise FrameError(f"a part of message {number}, which was not begun")
        return upload

    def _begin(self, number: int, size_bytes: int) -> Done:
        """Return what hears of a message once, and tells the worker."""
        self.under_way += 1
        self._under_way_bytes += size_bytes
        if self._under_way_bytes > self._workers.share_bytes:
            self.read(False)

        def done(message: MessageId | None, error: Exception | None) -> None:
            self.under_way -= 1
            self._under_way_bytes -= size_bytes
            if self.lost:
                if message is not None:
                    log.warning("queued, but its worker is gone and nobody was told id=%s", message)
                return
            self._answers.append(answer_of(number, message, error))
            if not self.under_way:
                self._answer()  # no other can join it: the client need not wait for what else this turn brings
            elif len(self._answers) == 1:
                self._loop.call_soon(self._answer)
            if self._reading_paused and self._under_way_bytes <= self._workers.share_bytes:
                self.read(True)

        return done

    def _answer(self) -> None:
        answers, self._answers = self._answers, []
        if not answers:
            return  # told at once
        self.send(frame(Kind.ANSWERS, encode(answers)))
        self.flush()


class _Place:
    """What stays when its worker ends: number, listeners, counters."""

    def __init__(self, number: int, listeners: Listeners) -> None:
        self.number = number
        self.listeners = listeners
        self.line: _Line | None = None
        self.listens = False
        self.restarts = 0
        self.ended = SmtpStatistics()


class SmtpWorkers:
    """All workers of one node."""

    def __init__(
        self,
        settings: SmtpSettings,
        *,
        node: str,
        loop_name: str,
        submit: SubmitMail,
        submit_encoded: SubmitEncoded,
        state: Callable[[], State],
        command: Sequence[str],
        environ: Mapping[str, str],
        on_failure: Callable[[BaseException], None],
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """`state` is asked often, and must be quick. `command` starts a worker; the descriptor of its line is added.

        `sockets` are listeners that are open already; all workers accept from them. `on_failure` hears if the workers
        cannot be looked after any more.
        """
        self.settings = settings
        self.submit = submit
        self.submit_encoded = submit_encoded
        self._node = node
        self._loop_name = loop_name
        self._state = state
        self._command = list(command)
        self._environ = environ
        self._on_failure = on_failure
        self._sockets: Listeners = [(listener_name(listening), listening) for listening in sockets]
        self._places: list[_Place] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._state_task: asyncio.Task[None] | None = None
        self._listeners: list[Listeners] = []
        self._stopping = False
        self._merged: SmtpStatistics | None = None
        self.uploads_bytes_max = 0
        self._set_bounds()

    # What the node asks, as of an SmtpServer.

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where they listen: host and port as bound, in the order of the settings."""
        return self._addresses

    @property
    def statistics(self) -> SmtpStatistics:
        """What all workers have counted, a quarter of a second ago; those that ended, too."""
        if self._merged is None:
            self._merged = merged = self._none_yet()
            for place in self._places:
                for ended, counted in ((True, report_of(place.ended)), (False, place.line and place.line.report)):
                    if counted:
                        add_report(merged, counted, ended=ended)
        return self._merged

    def view(self) -> list[dict[str, object]]:
        """Return what the status tells of each worker."""
        now = monotonic()
        rows: list[dict[str, object]] = []
        for place in self._places:
            line = place.line
            counted = line.report if line is not None else None
            rows.append(
                {
                    "worker": place.number,
                    "pid": line.process.pid if line is not None else None,
                    "state": "listens" if place.listens else "starts",
                    "uptime_s": round(now - line.began_at, 1) if line is not None else 0.0,
                    "restarts": place.restarts,
                    "connections": counted.connections if counted is not None else 0,
                    "under_way": line.under_way if line is not None else 0,
                }
            )
        return rows

    async def start(self) -> None:
        """Bind the listeners, start the workers, return when all listen.

        Raises:
            OSError: an address cannot be bound.
            WorkersFailed: a worker ended at once, or does not listen in time.
        """
        self.loop = loop = asyncio.get_running_loop()
        count = self.settings.workers
        self._all_listen: asyncio.Future[None] = loop.create_future()
        self._stopped: asyncio.Future[None] = loop.create_future()
        if self._sockets:
            found = [list(self._sockets) for _ in range(count)]
        else:
            found = await open_listeners(self.settings.listen, count)
        self._listeners = found
        self._addresses = [listening.getsockname()[:2] for _, listening in found[0]]
        self._census = Census.create(count)
        self._told = self._state()
        self._places = [_Place(number, listeners) for number, listeners in enumerate(found)]
        for place in self._places:
            self._keepers.append(self._begin_task(self._keep(place), f"smtp-worker-{place.number}"))
        self._state_task = self._begin_task(self._tell_state(), "smtp-workers-state")
        try:
            async with asyncio.timeout(START_S):
                await self._all_listen
        except TimeoutError:
            raise WorkersFailed(f"not all SMTP workers listen after {START_S:.0f} s") from None
        pids = ",".join(str(place.line.process.pid) for place in self._places if place.line is not None)
        log.info(
            "listening addresses=%s workers=%d pids=%s",
            ",".join(f"{host}:{port}" for host, port in self._addresses),
            count,
            pids,
        )

    def configure(self, settings: SmtpSettings) -> None:
        """Take new settings, as `SmtpServer.configure` does, in all workers."""
        self.settings = settings
        self._set_bounds()
        self._tell_all(frame(Kind.SETTINGS, encode(settings)))

    async def drain(self, timeout_s: float) -> None:
        """Have all workers drain as `SmtpServer.drain` does, and end."""
        self._stop()
        self._tell_all(frame(Kind.DRAIN, encode(float(timeout_s))))
        if running := [place.line.gone for place in self._places if place.line is not None]:
            await asyncio.wait(running, timeout=timeout_s + 1.0)

    async def close(self) -> None:
        """End what still runs. What was handed over and is not yet answered stays unanswered."""
        self._stop()
        for place in self._places:
            if place.line is not None:
                place.line.cut()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=2 * END_S)  # they kill what does not end
        tasks = [*self._keepers, *([self._state_task] if self._state_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What a line tells.

    def listens(self, number: int) -> None:
        """A worker takes clients."""
        self._places[number].listens = True
        if not self._all_listen.done() and all(place.listens for place in self._places):
            self._all_listen.set_result(None)

    def counted(self) -> None:
        """A report came."""
        self._merged = None

    # The life of the workers.

    def _stop(self) -> None:
        self._stopping = True
        close_listeners(self._listeners)
        if self._keepers and not self._stopped.done():
            self._stopped.set_result(None)

    def _set_bounds(self) -> None:
        self.share_bytes = share(self.settings, self.settings.workers).max_inflight_bytes
        # Sessions end under the settings that they began with: a lower limit on messages must not break their line.
        self.uploads_bytes_max = max(self.uploads_bytes_max, self.share_bytes + 2 * self.settings.max_message_bytes)

    def _none_yet(self) -> SmtpStatistics:
        statistics = SmtpStatistics()
        for name in [name for name, _ in self._sockets] or self.settings.listen:
            statistics.connections_by_listener[name] = statistics.received_by_listener[name] = 0
        return statistics

    async def _keep(self, place: _Place) -> None:
        """Start a worker, and another whenever one ends, until the node stops."""
        again_s = AGAIN_S_MIN
        while not self._stopping:
            began = self.loop.time()
            status = "did not start"
            try:
                line = place.line = await self._spawn(place)
            except OSError as error:
                status = f"did not start: {error.strerror or error}"
            else:
                if self._ends():
                    line.cut()  # it began while the others were told to end
                await line.gone
                status = await self._reap(line)
                if line.report is not None:
                    add_report(place.ended, line.report, ended=True)
                place.line, place.listens = None, False
                self._merged = None
                self._census.clear(place.number)
                if line.under_way:
                    log.warning("worker=%d left messages under way count=%d", place.number, line.under_way)
            if self._ends():
                return
            lived_s = self.loop.time() - began
            if not self._all_listen.done():
                self._all_listen.set_exception(
                    WorkersFailed(f"SMTP worker {place.number} ended at its start: {status}")
                )
                return
            again_s = AGAIN_S_MIN if lived_s > LIVED_S else min(again_s * 2, AGAIN_S_MAX)
            place.restarts += 1
            log.error(
                "worker=%d ended status=%r lived_s=%.1f: another is started in %.1f s",
                place.number,
                status,
                lived_s,
                again_s,
            )
            await asyncio.wait((self._stopped,), timeout=again_s)

    async def _spawn(self, place: _Place) -> _Line:
        """Start a process, tell it what it is, return the line to it.

        Raises:
            OSError: the system does not let us.
        """
        process, ours = self._launch(place)
        line = _Line(self, place.number, process)
        await self.loop.create_unix_connection(lambda: line, sock=ours)
        begin = Begin(  # from here to the line's place there is no await: no change is missed
            number=place.number,
            workers=self.settings.workers,
            node=self._node,
            loop=self._loop_name,
            state=self._told,
            settings=self.settings,
            listeners=[(name, listening.fileno()) for name, listening in place.listeners],
            census=self._census.fd,
            census_key=self._census.key,
        )
        line.send(frame(Kind.BEGIN, encode(begin)))
        return line

    def _launch(self, place: _Place) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start a process; the loop is held for a millisecond. Only the two of them have an end of this socket."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                process = subprocess.Popen(
                    [*self._command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    env=self._environ,
                    pass_fds=[
                        theirs.fileno(),
                        self._census.fd,
                        *(listening.fileno() for _, listening in place.listeners),
                    ],
                )
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return process, ours

    def _ends(self) -> bool:
        return self._stopping

    async def _reap(self, line: _Line) -> str:
        """Return how a process ended whose line is gone; one that does not end is killed."""
        process = line.process
        deadline = self.loop.time() + END_S
        while (status := process.poll()) is None:
            if self.loop.time() > deadline:
                process.kill()
            await asyncio.sleep(0.01)
        return f"signal {-status}" if status < 0 else f"exit {status}"

    async def _tell_state(self) -> None:
        """Tell the workers what changes here, and end one that is stuck."""
        now = monotonic()
        while True:
            await asyncio.sleep(STATE_S)
            state = self._state()
            if state != self._told:
                self._told = state
                self._tell_all(frame(Kind.STATE, encode(state)))
            before, now = now, monotonic()
            was_asleep = now - before > SILENT_S / 2  # this process stood still: they may have spoken meanwhile
            for place in self._places:
                line = place.line
                if line is None or line.lost:
                    continue
                if line.ended_unheard():
                    line.cut()
                elif line.silent_s(now, was_asleep=was_asleep) > SILENT_S:
                    log.error("worker=%d is silent for %.0f s: it is killed", place.number, SILENT_S)
                    line.process.kill()
                    line.cut()

    def _tell_all(self, told: bytes) -> None:
        for place in self._places:
            if place.line is not None:
                place.line.send(told)

    def _begin_task(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = self.loop.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
