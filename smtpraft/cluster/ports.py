"""Free ports, for examples, demonstrations and tests."""

from __future__ import annotations

import errno
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
    ours = random.SystemRandom().sample(_PORTS, min(_TRIES, len(_PORTS)))
    for port in [*ours, *[0] * _TRIES]:  # 0: the kernel chooses
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                if port:
                    continue
                raise
            found = int(probe.getsockname()[1])
        if (host, found) not in _given:
            _given.add((host, found))
            return found
    raise OSError(errno.EADDRNOTAVAIL, f"no free port on {host} that was not given before")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return `count` such ports.

    Raises:
        OSError: there are not so many.
    """
    return [free_port(host) for _ in range(count)]
