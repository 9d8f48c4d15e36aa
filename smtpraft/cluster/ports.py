"""Free ports, for examples, demonstrations and tests."""

from __future__ import annotations

import random
import socket
from typing import Final

# Below what the kernel gives to outgoing connections (Linux: from 32768 on), which could take one at any moment.
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 100
_given: Final[set[tuple[str, int]]] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now, and that this process was not given before.

    So the ports of a cluster are distinct, though each is free until its node listens. Another program may take one
    before you do.

    Raises:
        OSError: there is none.
    """
    fresh = [port for port in _PORTS if (host, port) not in _given]
    for port in [*random.SystemRandom().sample(fresh, min(_TRIES, len(fresh))), 0]:
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                if port:
                    continue
                raise
            found = int(probe.getsockname()[1])
            _given.add((host, found))
            return found
    raise AssertionError("port 0 was free, or an error")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return as many of them.

    Raises:
        OSError: there are not so many.
    """
    return [free_port(host) for _ in range(count)]
