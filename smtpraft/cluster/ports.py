"""Free ports, for examples, demonstrations and tests."""

from __future__ import annotations

import random
import socket
from typing import Final

# Below what the kernel gives to outgoing connections (Linux: from 32768 on), which could take one at any moment.
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now. Another program may take it before you do.

    Raises:
        OSError: there is none.
    """
    for port in [*random.SystemRandom().sample(_PORTS, _TRIES), 0]:
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                if port:
                    continue
                raise
            return int(probe.getsockname()[1])
    raise AssertionError("port 0 was free, or an error")
