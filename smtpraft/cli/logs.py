"""Log lines on stderr, for people or for machines: one event a line, either way.

A thread of their own writes them, so that a reader of our stderr who stalls never holds up a heartbeat. What he leaves
lying beyond `WAITING_BYTES_MAX` is dropped, and the loss is told as soon as he reads again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from smtpraft.spool.messagelog import MessageEvent

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
WAITING_BYTES_MAX: Final = 8 * 1024 * 1024
GATHER_S: Final = 0.05  # lines of so long are written together; what is a warning does not wait
DRAIN_S: Final = 2.0
_QUIET: Final = ("asyncio", "aiohttp", "mail.log")  # libraries: only what deserves a look


def configure(level: str, style: str, standing: Callable[[], Standing] | None = None) -> None:
    """Send every record to stderr in `style`, `text` or `json`. May be called again."""
    formatter = JsonFormatter() if style == "json" else TextFormatter()
    if standing is not None:
        formatter.standing = standing
    root = logging.getLogger()
    ours = [known for known in root.handlers if isinstance(known, BackgroundHandler)]
    handler = ours[0] if ours else BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(formatter)
    root.handlers[:] = [handler]
    set_level(level)
    logging.captureWarnings(True)
    # No line of ours says where in the code it was written, or by which process: do not find that out for each.
    logging._srcfile = None
    logging.logProcesses = logging.logMultiprocessing = False


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
    """Formats at once, writes to `fd` from a thread. `close` waits until all is written, but not for ever."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._dropped = 0
        self._urgent = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Put the line in the queue."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            if len(self._waiting) == 1:
                self._changed.notify()
        if record.levelno >= logging.WARNING:
            self._urgent.set()

    def close(self) -> None:
        """Write what is left. Lines that come later are lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._urgent.set()
        self._thread.join(DRAIN_S)
        super().close()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
            self._urgent.wait(GATHER_S)
            self._urgent.clear()
            with self._changed:
                lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
                dropped, self._dropped = self._dropped, 0
                ends = self._closing
            if dropped:
                lines.append(self.format(_loss(dropped)))
            if lines:
                self._write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
            elif ends:
                return

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            pass  # nobody is left to be told


def _loss(count: int) -> logging.LogRecord:
    text = "log lines were dropped: nobody read them in time count=%d"
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (count,), None)


def _stamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _area(record: logging.LogRecord) -> str:
    return record.name.removeprefix("smtpraft.")


@dataclass(frozen=True, slots=True)
class Standing:
    """Who writes, and in which term: for the log of messages."""

    node: str = "-"
    term: int = 0


class _Formatter(logging.Formatter):
    standing: Callable[[], Standing] = Standing


class TextFormatter(_Formatter):
    """`2026-11-23T04:50:38.123Z INFO cluster.node role=leader term=3`; further lines (a traceback) are indented."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_stamp(record)} {record.levelname} {_area(record)} {record.getMessage()}"
        if type(record.msg) is MessageEvent:
            facts = self.standing()
            text = f"{text} node={facts.node} term={facts.term} index={record.msg.index}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text.replace("\n", "\n    ")


class JsonFormatter(_Formatter):
    """One object a line: time, level, area, message, thread, and the traceback if there is one."""

    _encode = staticmethod(msgspec.json.Encoder().encode)

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = {
            "time": _stamp(record),
            "level": record.levelname,
            "area": _area(record),
            "message": record.getMessage(),
            "thread": record.threadName,
        }
        if type(record.msg) is MessageEvent:
            standing = self.standing()
            facts |= record.msg.facts()
            facts |= {"node": standing.node, "term": standing.term, "index": record.msg.index}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return self._encode(facts).decode()
