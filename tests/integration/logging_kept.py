"""A daemon in the process of the tests sets up logging for the whole of it; the tests after it want theirs back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from smtpraft.cli import logs
from smtpraft.spool.messagelog import go_straight_to


@contextlib.contextmanager
def logging_as_it_was() -> Iterator[None]:
    """Take back what a daemon does to the logging of its process."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", *logs._QUIET)}
    try:
        yield
    finally:
        go_straight_to(None)
        ours = [handler for handler in root.handlers if handler not in handlers]
        root.handlers[:] = handlers
        for handler in ours:
            handler.close()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        logging.captureWarnings(False)
