"""Log lines on stderr, for people or for machines: one event a line, either way."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

import msgspec

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_QUIET: Final = ("asyncio", "aiohttp", "mail.log")  # libraries: only what deserves a look


def configure(level: str, style: str) -> None:
    """Send every record to stderr in `style`, `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)


def _stamp(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _area(record: logging.LogRecord) -> str:
    return record.name.removeprefix("smtpraft.")


class TextFormatter(logging.Formatter):
    """`2026-11-23T04:50:38.123Z INFO cluster.node role=leader term=3`; further lines (a traceback) are indented."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{_stamp(record)} {record.levelname} {_area(record)} {record.getMessage()}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text.replace("\n", "\n    ")


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, area, message, thread, and the traceback if there is one."""

    _encode = staticmethod(msgspec.json.Encoder().encode)

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": _stamp(record),
            "level": record.levelname,
            "area": _area(record),
            "message": record.getMessage(),
            "thread": record.threadName,
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return self._encode(facts).decode()
