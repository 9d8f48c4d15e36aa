"""The secret that the nodes of a cluster share: when one is needed, and how it is read. Its use: `handshake.py`."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from smtpraft.cluster.addresses import Peer, format_address, is_loopback
from smtpraft.config import ConfigError

log = logging.getLogger(__name__)

SECRET_BYTES_MIN: Final = 16  # 128 bits: a captured handshake cannot be searched through
SECRET_BYTES_MAX: Final = 4096  # a larger file is surely the wrong one


def check_secret_policy(secret: bytes | None, listen: tuple[str, int], peers: Sequence[Peer]) -> None:
    """Refuse a cluster without a secret on anything but loopback.

    Raises:
        ConfigError: there is no secret, and another machine could reach this node or be reached by it.
    """
    if secret is not None:
        if len(secret) < SECRET_BYTES_MIN:
            raise ConfigError(
                f"cluster.secret_file: a secret needs at least {SECRET_BYTES_MIN} bytes, this one has {len(secret)}"
            )
        return
    places = [("cluster.listen", *listen)] + [(f"peer {peer.id}", peer.host, peer.port) for peer in peers]
    for what, host, port in places:
        if not is_loopback(host):
            raise ConfigError(
                f"cluster.secret_file is required: {what} ({format_address(host, port)}) is not a loopback address, "
                "and without a secret anybody who reaches it could join. Make one with `openssl rand -hex 32` and "
                "give every node the same"
            )


def read_secret(path: str) -> bytes:
    """Return the secret in the file at `path`, without the newline that ends it.

    A file that its group or others can read is used, with a warning.

    Raises:
        ConfigError: the file cannot be read, or what it holds is too short or too long.
    """
    try:
        with Path(path).open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(SECRET_BYTES_MAX + 3)
    except OSError as error:
        raise ConfigError(f"cluster.secret_file: cannot read {path!r}: {error.strerror or error}") from None
    secret = data[:-2] if data.endswith(b"\r\n") else data.removesuffix(b"\n")
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        size = "more" if len(secret) > SECRET_BYTES_MAX else str(len(secret))
        raise ConfigError(
            f"cluster.secret_file: {path!r} must hold {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes, it has {size}; "
            "make one with `openssl rand -hex 32`"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("secret readable by others path=%r mode=%o advice=%r", path, mode, f"chmod 600 {path}")
    return secret
