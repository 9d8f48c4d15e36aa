"""Exit statuses (sysexits.h, as sendmail made them familiar) and the error that carries one."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """What a process tells its caller."""

    OK = 0
    FAILED = 1
    USAGE = 64
    DATA = 65
    NO_SUCH = 67
    UNAVAILABLE = 69
    SOFTWARE = 70
    TEMPFAIL = 75
    CONFIG = 78


class CommandError(Exception):
    """The command cannot go on: `lines` go to stderr, `status` to the caller."""

    def __init__(self, status: Exit, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.status = status
        self.lines = lines
