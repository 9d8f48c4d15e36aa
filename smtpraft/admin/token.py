"""The bearer token of the admin API: needed as soon as other machines can reach it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from smtpraft.config import ConfigError

log = logging.getLogger(__name__)

TOKEN_BYTES_MIN: Final = 16
_HINT: Final = "make one with `openssl rand -hex 32`"


def read_token(path: str, setting: str = "token_file") -> bytes:
    """Return the token in the file at `path`, without white space around it.

    Raises:
        ConfigError: the file cannot be read, or holds no token. The text never holds the token.
    """
    try:
        token = Path(path).read_bytes().strip()
        if os.stat(path).st_mode & 0o007:
            log.warning("token readable by every user path=%r advice=%r", path, f"chmod 640 {path}")
    except OSError as error:
        raise ConfigError(f"admin.{setting}: cannot read {path!r}: {error.strerror}; {_HINT}") from None
    if len(token) < TOKEN_BYTES_MIN:
        raise ConfigError(
            f"admin.{setting}: {path!r} holds {len(token)} bytes, a token needs {TOKEN_BYTES_MIN} or more; {_HINT}"
        )
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise ConfigError(f"admin.{setting}: {path!r} must hold one line of printable ASCII; {_HINT}")
    return token
