"""Loopback ports that no other run of these tests takes, not even while a node that was killed does not listen."""

from __future__ import annotations

import random
import socket
from typing import Final

_BLOCKS: Final = range(10_000, 20_000, 20)  # below what the kernel gives out, and beside what the demo picks from


class PortBlock:
    """Nineteen ports, ours as long as the socket on the one before them is open."""

    def __init__(self) -> None:
        """Take a block.

        Raises:
            OSError: there is none left.
        """
        for start in random.SystemRandom().sample(_BLOCKS, len(_BLOCKS)):
            ports = range(start + 1, start + _BLOCKS.step)
            gate = socket.socket()
            try:
                gate.bind(("127.0.0.1", start))
            except OSError:
                gate.close()
                continue
            if all(_is_free(port) for port in ports):
                self.ports = ports
                self._gate = gate
                return
            gate.close()
        raise OSError("no free ports")

    def close(self) -> None:
        """Leave the block to others."""
        self._gate.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As a server would: what is left of connections of a moment ago does not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
