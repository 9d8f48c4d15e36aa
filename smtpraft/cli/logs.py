"""Log lines on stderr, for people or for machines: one event a line, either way.

A thread of their own writes them, so that a reader of our stderr who stalls never holds up a heartbeat. What he leaves
lying beyond `WAITING_BYTES_MAX` is dropped, and the loss is told as soon as he reads again.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.spool import messagelog
from smtpraft.spool.messagelog import MessageEvent

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
STDERR: Final = 2
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
GATHER_S: Final = 0.05  # lines of so long are written together; what is a warning does not wait
DRAIN_S: Final = 2.0
EVENT_BYTES: Final = 600  # a line of the log of messages takes about so much, until it is made
_QUIET: Final = ("asyncio", "aiohttp", "mail.log")  # libraries: only what deserves a look


def configure(level: str, style: str, standing: Callable[[], Standing] | None = None) -> None:
    """Send every record to stderr in `style`, `text` or `json`. May be called again."""
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    if standing is not None:
        formatter.standing = standing
    root = logging.getLogger()
    ours = [known for known in root.handlers if isinstance(known, BackgroundHandler)]
    handler = ours[0] if ours else BackgroundHandler(STDERR)
    handler.setFormatter(formatter)
    root.handlers[:] = [handler]
    messagelog.go_straight_to(handler.take_event)
    set_level(level)
    logging.captureWarnings(True)
    # No line of ours says where in the code it was written, or by which process: do not find that out for each.
    logging._srcfile = None
    logging.logProcesses = logging.logMultiprocessing = False


def share_stderr() -> None:
    """Other processes log to our stderr, too: from now on write whole lines in pieces that are not torn."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, BackgroundHandler):
            handler.shared = True


def set_level(level: str) -> None:
    """Say no less than `level` from now on, and of libraries no less than warnings."""
    logging.getLogger().setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))


def level_now() -> str:
    """Return the level that is in force."""
    now = logging.getLogger().level
    return next(name for name, number in _LEVELS.items() if number == now)


class BackgroundHandler(logging.Handler):
    """Formats at once, but for events of messages, and writes to `fd` from a thread.

    `close` waits until all is written, but not for ever.
    """

    formatter: _Formatter | None

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._guard = threading.Lock()
        self._some = threading.Event()
        self._waiting: list[str | _Event] = []
        self._waiting_bytes = 0
        self._dropped = 0
        self._urgent = threading.Event()
        self._closing = False
        self.shared = False
        """Do other processes write to `fd`, too? Then no line may be torn by theirs."""
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the line in the queue."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._put(line, len(line))
        if record.levelno >= logging.WARNING:
            self._urgent.set()

    def take_event(self, area: str, event: MessageEvent) -> None:
        """Put an event of level INFO in the queue; its line is made by the thread."""
        form = self.formatter
        standing = form.standing() if form is not None else Standing()
        self._put((time.time(), area, event, standing, threading.current_thread().name), EVENT_BYTES)

    def _put(self, what: str | _Event, size: int) -> None:
        with self._guard:
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._dropped += 1
                return
            self._waiting.append(what)
            self._waiting_bytes += size
            if len(self._waiting) > 1:
                return
        self._some.set()

    def close(self) -> None:
        """Write what is left. Lines that come later are lost."""
        with self._guard:
            self._closing = True
        self._some.set()
        self._urgent.set()
        self._thread.join(DRAIN_S)
        super().close()

    def _run(self) -> None:
        while True:
            self._some.wait()
            self._urgent.wait(GATHER_S)
            self._urgent.clear()
            with self._guard:
                waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
                dropped, self._dropped = self._dropped, 0
                ends = self._closing
                if not ends:
                    self._some.clear()
            lines = [what if isinstance(what, str) else self._line(what) for what in waiting]
            if dropped:
                lines.append(self.format(_loss(dropped)))
            if lines:
                self._write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
            elif ends:
                return

    def _line(self, event: _Event) -> str:
        try:
            assert self.formatter is not None
            return self.formatter.event_line(*event)
        except Exception as error:
            return f"{_stamp(event[0])} ERROR {_area(__name__)} an event could not be written error={error!r}"

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        at = 0
        try:
            while at < len(data):
                at += os.write(self._fd, view[at : _lines_end(data, at)] if self.shared else view[at:])
        except OSError:
            pass  # nobody is left to be told


def _lines_end(data: bytes, at: int) -> int:
    """Return where a write that begins at `at` ends: with a line, and in one piece if that is shorter than PIPE_BUF."""
    if len(data) - at <= select.PIPE_BUF:
        return len(data)
    return data.rfind(b"\n", at, at + select.PIPE_BUF) + 1 or data.find(b"\n", at) + 1


def _loss(count: int) -> logging.LogRecord:
    text = "log lines were dropped: nobody read them in time count=%d"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


_second = (0, "")  # the one that was written last, and how


def _stamp(created: float) -> str:
    global _second
    whole, ms = divmod(int(created * 1000), 1000)
    second, text = _second
    if second != whole:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = whole, text
    return f"{text}.{ms:03d}Z"


def _area(name: str) -> str:
    return name.removeprefix("smtpraft.")


@dataclass(frozen=True, slots=True)
class Standing:
    """Who writes, and in which term: for the log of messages."""

    node: str = "-"
    term: int = 0


_Event = tuple[float, str, MessageEvent, Standing, str]
"""When (seconds since the epoch), by which logger, what, who stood how, in which thread."""


class _Formatter(logging.Formatter):
    standing: Callable[[], Standing] = Standing

    def event_line(self, created: float, name: str, event: MessageEvent, standing: Standing, thread: str) -> str:
        """Return the line of an event of level INFO."""
        raise NotImplementedError


class TextFormatter(_Formatter):
    """`2026-11-23T04:50:38.123Z INFO cluster.node role=leader term=3`; further lines (a traceback) are indented."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_stamp(record.created)} {record.levelname} {_area(record.name)} {record.getMessage()}"
        if type(record.msg) is MessageEvent:
            text += _standing_text(record.msg, self.standing())
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text.replace("\n", "\n    ")

    def event_line(self, created: float, name: str, event: MessageEvent, standing: Standing, thread: str) -> str:
        """Return the line, the same as `format` makes of its record."""
        text = f"{_stamp(created)} INFO {_area(name)} {event}{_standing_text(event, standing)}"
        return text.replace("\n", "\n    ")


def _standing_text(event: MessageEvent, standing: Standing) -> str:
    return f" node={standing.node} term={standing.term} index={event.index}"


class JsonFormatter(_Formatter):
    """One object a line: time, level, area, message, thread, and the traceback if there is one."""

    _encode = staticmethod(msgspec.json.Encoder().encode)

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = {
            "time": _stamp(record.created),
            "level": record.levelname,
            "area": _area(record.name),
            "message": record.getMessage(),
            "thread": record.threadName,
        }
        if type(record.msg) is MessageEvent:
            facts |= _event_facts(record.msg, self.standing())
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return self._encode(facts).decode()

    def event_line(self, created: float, name: str, event: MessageEvent, standing: Standing, thread: str) -> str:
        """Return the line, the same as `format` makes of its record."""
        facts = {"time": _stamp(created), "level": "INFO", "area": _area(name), "message": str(event), "thread": thread}
        return self._encode(facts | _event_facts(event, standing)).decode()


def _event_facts(event: MessageEvent, standing: Standing) -> dict[str, object]:
    return {**event.facts(), "node": standing.node, "term": standing.term, "index": event.index}
