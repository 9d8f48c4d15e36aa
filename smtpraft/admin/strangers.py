"""What reaches the admin port and is no HTTP is the sender's fault: one line, no stack, no ERROR to look at."""

from __future__ import annotations

import logging
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError

_LOG: Final = logging.getLogger("aiohttp.server")


class QuietStrangers(logging.Filter):
    """On aiohttp's log of a server, for as long as it is installed."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Make an INFO of one line out of the complaint about bytes that are no request."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg = "refused what is no request: client=%s status=%d reason=%r"
        client = record.args[0] if isinstance(record.args, tuple) and record.args else "-"
        record.args = (client, error.code, str(error))
        record.exc_info = None
        return _LOG.isEnabledFor(logging.INFO)

    def install(self) -> None:
        """Begin."""
        _LOG.addFilter(self)

    def remove(self) -> None:
        """End."""
        _LOG.removeFilter(self)
