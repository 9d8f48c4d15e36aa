"""What is wrong with what a client says: the findings of both halves of `scan`."""

from __future__ import annotations

import enum
from typing import Final

COMMAND_BYTES_MAX_EXTENDED: Final = 2048  # MAIL and RCPT: long and non-ASCII addresses, parameters (RFC 6531 §3.4)


class LineFault(enum.Enum):
    """Why something is no command line."""

    BARE = "bare CR, LF or NUL in a command"
    TOO_LONG = "line too long"


class BareOctet(ValueError):
    """The content holds a CR without LF, an LF without CR, or a NUL."""
